"""A host in trouble is no fault of its step: another host may take it, and it waits at no cost."""

from __future__ import annotations

import errno
import re

from hyperagent_common.errors import DependencyDown, DiskFull

MEND = "Look at its disk, memory and limits."
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
AILING = frozenset({errno.EIO, errno.EROFS, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What the system says where a disk, the memory or a limit of this host is at its end, whichever file was asked for."""
_SAID = re.compile(
    r"^(?:fatal|error): (?!object )(?:.* died of signal (?:9|15)\b|cannot (?:fork|lock ref)\b"
    r"|.*: (?:resource temporarily unavailable|too many open files|input/output error|read-only file system|stale file handle)$)",
    re.IGNORECASE | re.MULTILINE,
)
"""Git's own lines: those of its fsck quote what the agent wrote, and begin otherwise."""
KILLED = frozenset({-1, -2, -9, -15})
"""Exit codes of a git that somebody else ended: a person, an init system, the kernel where memory is short."""


def told_by(code: int, said: str) -> bool:
    """Whether a git that ended so, and said this, met trouble of this host and not of what it was given."""
    return code in KILLED or _SAID.search(said) is not None


def of_files(error: OSError) -> DependencyDown | None:
    """The error as one of ours where this host's files or memory are in trouble; None where it is something else."""
    if error.errno not in FULL | AILING:
        return None
    told = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    kind = DiskFull if error.errno in FULL else DependencyDown
    return kind(f"This host cannot go on: {told}.", mend=MEND)


def named(error: BaseException) -> DependencyDown | None:
    """The error as one of ours where this host is in trouble; None where it is something else.

    Where no process, thread or memory is left the system says so in three ways.
    """
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.EAGAIN) or _threadless(error):
        return DependencyDown(f"This host cannot go on: {str(error) or 'out of memory'}.", mend=MEND)
    return of_files(error) if isinstance(error, OSError) else None


def _threadless(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and "can't start new thread" in str(error)
