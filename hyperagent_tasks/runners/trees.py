"""Directories that a sandbox may have filled: measured and removed without ever following a link, however deep or odd."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import uuid4

from hyperagent_common.errors import BadInput, DependencyDown

MAX_ENTRIES = 400_000
FREE_RESERVE = 128 << 20
REMOVE_SECONDS = 120.0
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def measure(paths: Sequence[Path], limit: int, stop: Callable[[], bool] = lambda: False) -> dict[str, bool]:
    """Which limits `paths` break together: `bytes`, `entries`, `depth` (a path too long to look at), `free` space."""
    broken = {"bytes": False, "entries": False, "depth": False, "free": any(_nearly_full(path) for path in paths)}
    waiting = [os.fspath(path) for path in paths]
    size, entries, shared = 0, 0, set[int]()
    while waiting and not any(broken.values()) and not stop():
        try:
            with os.scandir(waiting.pop()) as found:
                for entry in found:
                    size, entries = size + _blocks(entry, shared), entries + 1
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except FileNotFoundError:
            continue  # the command removed it meanwhile
        except OSError as error:
            broken["depth"] = error.errno == errno.ENAMETOOLONG
        broken["bytes"], broken["entries"] = size > limit, entries > MAX_ENTRIES
    return broken


def _blocks(entry: os.DirEntry[str], shared: set[int]) -> int:
    try:
        seen = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return 0
    if seen.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
        if seen.st_ino in shared:
            return 0
        shared.add(seen.st_ino)
    return seen.st_blocks * 512


def _nearly_full(path: Path) -> bool:
    try:
        seen = os.statvfs(path)
    except FileNotFoundError:
        return False
    return seen.f_bavail * seen.f_frsize < FREE_RESERVE


def inside(root: Path, path: Path) -> Path:
    """`path` as it stands below `root`. Raises `BadInput` where it is not, or where a link leads to it."""
    real, given = root.resolve(), Path(os.path.abspath(path))
    base = next((base for base in (Path(os.path.abspath(root)), real) if base in given.parents), None)
    placed = real / given.relative_to(base) if base else given
    if base is None or placed.resolve() != placed:
        raise BadInput(f"{path} is not a plain path below the work directory {root}.")
    return placed


def remove(path: Path) -> None:
    """Remove a file or a whole directory; what vanishes meanwhile is fine. Raises `DependencyDown` where it stays.

    Every subdirectory is first moved up beside its parent, so that neither depth nor a link swapped in can mislead it.
    """
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
            return
    except FileNotFoundError:
        return
    deadline = time.monotonic() + REMOVE_SECONDS
    try:
        top = os.open(path, _DIRECTORY)
        try:
            while _empty_once(top, deadline):
                pass
        finally:
            os.close(top)
        os.rmdir(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise DependencyDown(f"{path} cannot be removed: {error.strerror}.", mend="Remove it by hand.") from error


def _empty_once(top: int, deadline: float) -> bool:
    """Remove each entry of the open directory once, lifting what lies deeper into it; True while entries are left."""
    names = os.listdir(top)
    for name in names:
        if time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, "it took too long")
        try:
            if stat.S_ISDIR(os.lstat(name, dir_fd=top).st_mode):
                _lift(top, name)
                os.rmdir(name, dir_fd=top)
            else:
                os.unlink(name, dir_fd=top)
        except FileNotFoundError:
            continue
    return bool(names)


def _lift(top: int, name: str) -> None:
    """Empty the directory `name`: its files are unlinked, its directories moved up into `top`."""
    if os.geteuid() != 0:
        os.chmod(name, 0o700, dir_fd=top)
    inner = os.open(name, _DIRECTORY, dir_fd=top)
    try:
        for child in os.listdir(inner):
            if stat.S_ISDIR(os.lstat(child, dir_fd=inner).st_mode):
                _movable(inner, child)
                os.rename(child, f".gone-{uuid4().hex}", src_dir_fd=inner, dst_dir_fd=top)
            else:
                os.unlink(child, dir_fd=inner)
    finally:
        os.close(inner)


def _movable(inner: int, child: str) -> None:
    if os.geteuid() != 0:
        os.chmod(child, 0o700, dir_fd=inner)  # moving a directory writes its own `..`
