"""The deadline of an attempt, by the step's own choices: told in the step's own thread, and enforced where that does not listen.

Celery's limits are of a task, or of a message that was sent before the step's choices were read; so they only bound this one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from celery.exceptions import SoftTimeLimitExceeded

GRACE_SECONDS = 60.0
"""How long an attempt that was told may take to write its end, before its process is killed and its lease runs out."""
LATE_SECONDS = 120.0
"""How long after its deadline an attempt is taken from its worker, whatever that does."""


@contextlib.contextmanager
def within(seconds: float, *, grace: float = GRACE_SECONDS) -> Iterator[None]:
    """Raise `SoftTimeLimitExceeded(seconds)` in what takes longer. Only a process's main thread can be told, as steps are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    killer = threading.Timer(seconds + grace, os.kill, (os.getpid(), signal.SIGKILL))
    killer.daemon = True

    def late(_number: int, _frame: FrameType | None) -> None:
        raise SoftTimeLimitExceeded(seconds)

    before = signal.signal(signal.SIGALRM, late)
    try:
        killer.start()
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        killer.cancel()
