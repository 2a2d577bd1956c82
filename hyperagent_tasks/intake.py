"""The only reader of directories an agent could write: no link is followed, nothing but plain files comes out, within limits.

`take` copies a directory's files and notes what it refused; `read_small` and `copy_file` read one known file. A name that changes
under the reader, a link, a pipe or a growing file is a refusal, never an error and never a read outside the directory. Only
a host in trouble (too many open files, a disk that fails) is an error: that says nothing of what the agent left.
"""

from __future__ import annotations

import os
import stat
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hyperagent_common.errors import DependencyDown, IntakeRefused
from hyperagent_tasks import beneath, trouble

CHUNK = 1 << 20
NAME_LIMIT = 200
REFUSALS_KEPT = 100


@dataclass(frozen=True)
class Caps:
    """Limits of one `take`: bytes a file, bytes in all, files, entries looked at, depth of directories, seconds."""

    file_bytes: int = 64 << 20
    total_bytes: int = 512 << 20
    files: int = 2000
    entries: int = 8000
    depth: int = 8
    seconds: float = 120.0


@dataclass(frozen=True)
class Refusal:
    """A name that was left out, printable, and why in one sentence."""

    name: str
    reason: str


@dataclass
class Report:
    """What `take` copied: relative names, their bytes in all; what it left out, the first hundred and how many."""

    names: list[str] = field(default_factory=list)
    total: int = 0
    refused: list[Refusal] = field(default_factory=list)
    refused_count: int = 0

    def refuse(self, name: str, reason: str) -> None:
        """Note a refusal."""
        self.refused_count += 1
        if len(self.refused) < REFUSALS_KEPT:
            self.refused.append(Refusal(printable(name), reason))


class _Left(Exception):
    """This entry is left out; the message is the reason."""


class _Full(Exception):
    """A limit of the whole intake is reached; the message says which."""


def take(source: Path, dest: Path, *, under: str = "", caps: Caps | None = None) -> Report:
    """Copy the plain files below `source/under` to `dest` (made where missing). Hostile content is only noted in the report.

    Raises `DependencyDown` where `dest` cannot be written, or this host is in trouble.
    """
    report, limits = Report(), caps or Caps()
    walk = _Walk(dest, report, limits, time.monotonic() + limits.seconds)
    try:
        with _opened(lambda: beneath.directory(source, under)) as top:
            walk.directory(top, "", 1)
    except FileNotFoundError:
        return report
    except _Left as left:
        report.refuse(under or ".", str(left))
    except _Full as full:
        report.refuse(".", str(full))
    return report


def read_small(directory: Path, name: str, *, limit: int) -> bytes | None:
    """The bytes of one plain file of at most `limit` bytes; None where it is missing or is anything else.

    Raises `DependencyDown` where this host is in trouble.
    """
    try:
        with (
            _opened(lambda: beneath.directory(directory, "")) as top,
            _opened(lambda: _plain(top, name, limit)) as file,
        ):
            return b"".join(_chunks(file, limit))
    except (FileNotFoundError, _Left):
        return None


def copy_file(directory: Path, name: str, dest: Path, *, limit: int) -> int:
    """Copy one plain file of at most `limit` bytes to the new file `dest`; returns its size in bytes.

    Raises `IntakeRefused` where it is missing or anything else, `DependencyDown` where `dest` cannot be written or this host is
    in trouble.
    """
    try:
        with (
            _opened(lambda: beneath.directory(directory, "")) as top,
            _opened(lambda: _plain(top, name, limit)) as file,
        ):
            return _write(dest, file, limit)
    except FileNotFoundError:
        raise IntakeRefused(f"The sandbox left no file {printable(name)}.") from None
    except _Left as left:
        raise IntakeRefused(f"The file {printable(name)} that the sandbox left cannot be taken: {left}.") from None


def printable(name: str) -> str:
    """`name` with everything but printable characters escaped, at most 200 characters."""
    raw = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in raw[:1000])[:NAME_LIMIT]


class _Walk:
    """One `take` on its way: copies directory by directory, by file descriptors only."""

    def __init__(self, dest: Path, report: Report, caps: Caps, deadline: float) -> None:
        self._dest, self._report, self._caps, self._deadline = dest, report, caps, deadline
        self._entries = 0

    def directory(self, top: int, prefix: str, depth: int) -> None:
        """Take what stands in the open directory `top`, whose name below the source is `prefix` (ends with `/`)."""
        for name in self._names(top):
            path = prefix + name
            try:
                self._entry(top, name, path, depth)
            except FileNotFoundError:
                self._report.refuse(path, "it vanished while it was read")
            except _Left as left:
                self._report.refuse(path, str(left))

    def _names(self, top: int) -> list[str]:
        names = []
        with os.scandir(top) as found:
            for entry in found:
                if self._entries >= self._caps.entries:
                    self._report.refuse(".", f"there are more than {self._caps.entries} entries; some are left out")
                    break
                self._entries += 1
                names.append(entry.name)
        return sorted(names)

    def _entry(self, top: int, name: str, path: str, depth: int) -> None:
        if time.monotonic() > self._deadline:
            raise _Full(f"reading took more than {self._caps.seconds:.0f} s; the rest is left out")
        fault = _odd(name, path)
        if fault:
            raise _Left(fault)
        if stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
            if depth >= self._caps.depth:
                raise _Left(f"it is deeper than {self._caps.depth} directories")
            with _opened(lambda: beneath.open_at(top, name, beneath.DIRECTORY)) as below:
                self.directory(below, f"{path}/", depth + 1)
            return
        self._file(top, name, path)

    def _file(self, top: int, name: str, path: str) -> None:
        if len(self._report.names) >= self._caps.files:
            raise _Full(f"there are more than {self._caps.files} files; the rest is left out")
        limit = min(self._caps.file_bytes, self._caps.total_bytes - self._report.total)
        with _opened(lambda: _plain(top, name, limit)) as file:
            self._report.total += _write(self._dest / path, file, limit)
        self._report.names.append(path)


def _odd(name: str, path: str) -> str:
    """Why this name is not taken, or nothing."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") or c == "\\" for c in name):
        return "its name holds control characters or a backslash"
    return "" if len(path) <= NAME_LIMIT else f"its name is longer than {NAME_LIMIT} characters"


def _plain(top: int, name: str, limit: int) -> int:
    """A descriptor of the plain file `name` in the open directory `top`."""
    found = os.stat(name, dir_fd=top, follow_symlinks=False)
    _must_be_plain(found, limit)  # before it is opened: opening a device can do something
    file = beneath.open_at(top, name, beneath.FILE)
    try:
        _must_be_plain(os.fstat(file), limit)
    except BaseException:
        os.close(file)
        raise
    return file


def _must_be_plain(found: os.stat_result, limit: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        kinds = {
            stat.S_IFLNK: "a symbolic link",
            stat.S_IFIFO: "a pipe",
            stat.S_IFSOCK: "a socket",
            stat.S_IFDIR: "a directory",
        }
        raise _Left(f"it is {kinds.get(stat.S_IFMT(found.st_mode), 'a device')}, not a plain file")
    if found.st_nlink > 1:
        raise _Left("it has more than one name (a hard link)")
    if found.st_size > limit:
        raise _Left(f"it has {found.st_size} bytes, more than the {limit} allowed")


@contextmanager
def _opened(opener: Callable[[], int]) -> Iterator[int]:
    """A descriptor, closed at the end. Whatever the system refuses of it is a reason to leave the entry out."""
    try:
        file = opener()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _reason(error, "opened without leaving the directory") from error
    try:
        yield file
    finally:
        os.close(file)


def _chunks(file: int, limit: int) -> Iterator[bytes]:
    """The bytes of `file`; a file that grows beyond `limit` is left out."""
    seen = 0
    while data := _read(file):
        seen += len(data)
        if seen > limit:
            raise _Left(f"it grew beyond {limit} bytes while it was read")
        yield data


def _read(file: int) -> bytes:
    try:
        return os.read(file, CHUNK)
    except OSError as error:
        raise _reason(error, "read") from error


def _reason(error: OSError, what: str) -> Exception:
    return trouble.of_files(error) or _Left(f"it cannot be {what}: {error.strerror}")


def _write(dest: Path, file: int, limit: int) -> int:
    """Copy `file` to the new file `dest`; half a copy is removed."""
    size = 0
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        with dest.open("xb") as out:
            for data in _chunks(file, limit):
                size += out.write(data)
    except _Left:
        dest.unlink()
        raise
    except OSError as error:
        raise DependencyDown(f"{dest} cannot be written: {error.strerror}.", mend="Make room on this disk.") from error
    return size
