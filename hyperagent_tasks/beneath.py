"""Opening files beneath a directory without following any link: `openat2` where the kernel has it, else step by step."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from functools import cache
from pathlib import Path

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_OPENAT2 = 437  # the same on every Linux architecture but alpha
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x01, 0x02, 0x04, 0x08
_RESOLVE = _NO_XDEV | _NO_MAGICLINKS | _NO_SYMLINKS | _BENEATH


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def directory(path: Path, under: str) -> int:
    """A descriptor of the directory `path/under`; `path` is ours and trusted, `under` is not. Raises `OSError`."""
    top = os.open(path, DIRECTORY)
    if not under:
        return top
    try:
        return open_at(top, under, DIRECTORY)
    finally:
        os.close(top)


def open_at(top: int, path: str, flags: int) -> int:
    """Open the relative `path` beneath the open directory `top`, through no link and no other mount. Raises `OSError`."""
    if not path or path.startswith("/") or ".." in path.split("/") or "\x00" in path:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    return _openat2(top, path, flags) if has_openat2() else open_stepwise(top, path, flags)


@cache
def has_openat2() -> bool:
    """True where the kernel has `openat2` and nothing (a seccomp profile) forbids it."""
    if not sys.platform.startswith("linux") or platform.machine() == "alpha":
        return False
    top = os.open("/", DIRECTORY)
    try:
        os.close(_openat2(top, ".", DIRECTORY))
    except OSError:
        return False
    finally:
        os.close(top)
    return True


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _openat2(top: int, path: str, flags: int) -> int:
    how = _OpenHow(flags=flags, mode=0, resolve=_RESOLVE)
    for _ in range(16):  # EAGAIN: something was renamed meanwhile, and the kernel could not be sure
        file = _libc().syscall(
            ctypes.c_long(_OPENAT2), top, os.fsencode(path), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))
        )
        if file >= 0:
            return int(file)
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(code, os.strerror(code))


def open_stepwise(top: int, path: str, flags: int) -> int:
    """The same without `openat2`: each part is opened by itself, refusing links and other file systems."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    device = os.fstat(top).st_dev
    here = os.dup(top)
    try:
        for position, part in enumerate(parts):
            last = position == len(parts) - 1
            below = os.open(part, flags if last else DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
            if os.fstat(here).st_dev != device:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    except BaseException:
        os.close(here)
        raise
    return here
