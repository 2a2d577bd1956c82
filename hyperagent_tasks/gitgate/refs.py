"""Writes to refs that wait for other writers, and get past what a killed process or a power cut left in their way."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path

from hyperagent_common.errors import DependencyDown
from hyperagent_tasks.gitgate.commands import Ended, GitFailed, git

log = logging.getLogger(__name__)

STALE_LOCK = 60.0
"""Seconds after which a ref's lock file is nobody's: git holds one for milliseconds."""

LOCK_WAIT = 15.0
ABSENT = "0" * 40
_MOVED = ("but expected", "reference already exists", "unable to resolve reference")
_LOCKED = re.compile(r"Unable to create '(.+\.lock)': File exists")


def move(repo: Path, ref: str, new: str, old: str | None) -> bool:
    """Set `ref` from `old` (None: it must not exist) to `new`; False where it stands elsewhere. Raises `DependencyDown`."""
    try:
        write(lambda: git(repo, "update-ref", ref, new, old or ABSENT))
    except GitFailed as error:
        if any(said in error.ended.err for said in _MOVED):
            return False
        raise
    return True


def write(run: Callable[[], Ended]) -> Ended:
    """Run a git that writes refs; a lock in its way is waited for, and removed where nobody can be holding it any more."""
    deadline = time.monotonic() + LOCK_WAIT
    while True:
        try:
            return run()
        except GitFailed as error:
            found = _LOCKED.search(error.ended.err)
            if not found:
                raise
            lock = Path(found[1])
            if not _removed_stale(lock) and time.monotonic() > deadline:
                raise DependencyDown(
                    f"Another git process holds {lock}.", mend="Wait for it; where no git runs here, remove that file."
                ) from error
            time.sleep(0.1)


def _removed_stale(lock: Path) -> bool:
    """Remove a lock that is too old to be held."""
    try:
        age = time.time() - lock.stat().st_mtime
        if age < STALE_LOCK:
            return False
        lock.unlink()
    except FileNotFoundError:
        return True
    log.warning("git.stale_lock_removed", extra={"path": str(lock), "age": round(age)})
    return True
