"""Scratch directories that a killed process leaves behind and the reaper can tell from those in use: each holds a lock."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from hyperagent_common.ids import new_id

LONELY_SECONDS = 60.0


@contextlib.contextmanager
def directory(place: Path) -> Iterator[Path]:
    """A private directory below `place`, gone at the end; its lock (a file beside it) ends with this process, killed or not."""
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = place / new_id()
    with _lock_of(made).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made.mkdir(mode=0o700)  # after the lock: a directory without one is nobody's
        try:
            yield made
        finally:
            _remove(made)


def reap(place: Path) -> int:
    """Remove the directories below `place` whose process is gone; returns how many."""
    ended = 0
    for path in list(place.iterdir()) if place.is_dir() else []:
        if path.is_dir() or _lonely(path):
            ended += _reap(path.with_suffix(""))
    return ended


def _lonely(lock: Path) -> bool:
    """Whether a lock has no directory and is old enough that nobody is about to make one."""
    with contextlib.suppress(FileNotFoundError):
        return not lock.with_suffix("").exists() and time.time() - lock.stat().st_mtime > LONELY_SECONDS
    return False


def _reap(path: Path) -> int:
    with _lock_of(path).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        there = path.exists()
        _remove(path)
    return int(there)


def _lock_of(path: Path) -> Path:
    return path.with_suffix(".lock")


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    _lock_of(path).unlink(missing_ok=True)
