"""Named points at which a test kills this process the hard way.

`HYPERAGENT_FAILPOINT` names the point, or a file that does; `HYPERAGENT_FAILPOINT_ONCE` names a file that marks it done.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

NAMES = (
    "after_claim",
    "after_agent",
    "after_seal",
    "after_build",
    "after_commit",
    "before_push",
    "after_push",
    "before_review",
    "after_review",
    "after_publish",
    "before_finish",
)
"""Points of a step, from its claim to its end."""
WATCH_NAMES = ("in_trigger",)
"""Points of the watch."""
PUSH_NAMES = ("push_opened", "push_revised", "push_titled", "review_written")
"""Points inside `rad-push`, which dies there instead of the worker."""
VARIABLES = ("HYPERAGENT_FAILPOINT", "HYPERAGENT_FAILPOINT_ONCE")


def environment() -> dict[str, str]:
    """What `rad-push` must be told to know the point too; empty but in tests."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def failpoint(name: str) -> None:
    """SIGKILL this process here where the environment says so, once."""
    asked = os.environ.get("HYPERAGENT_FAILPOINT", "")
    if "/" in asked:
        asked = Path(asked).read_text().strip() if Path(asked).exists() else ""
    if asked != name:
        return
    marker = os.environ.get("HYPERAGENT_FAILPOINT_ONCE")
    if marker:
        path = Path(marker)
        if path.exists():
            return
        path.touch()
    os.kill(os.getpid(), signal.SIGKILL)
