"""Named points at which a test kills this process the hard way: `HYPERAGENT_FAILPOINT=after_seal[:STEP_KEY]`."""

from __future__ import annotations

import os
import signal
from pathlib import Path

NAMES = ("after_claim", "after_agent", "after_seal", "after_commit", "after_push", "after_publish", "before_finish", "in_trigger")


def failpoint(name: str) -> None:
    """SIGKILL this process here where the environment says so, once: the file named by `..._ONCE` marks it done."""
    if os.environ.get("HYPERAGENT_FAILPOINT") != name:
        return
    marker = os.environ.get("HYPERAGENT_FAILPOINT_ONCE")
    if marker:
        path = Path(marker)
        if path.exists():
            return
        path.touch()
    os.kill(os.getpid(), signal.SIGKILL)
