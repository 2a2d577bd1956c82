"""The one place of the host that starts git: a clean environment, our settings only, a deadline, a cap on what it says."""

from __future__ import annotations

import logging
import os
import re
import resource
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from hyperagent_common.errors import DependencyDown, IntakeRefused, NotReady

log = logging.getLogger(__name__)
SECONDS = 60.0
OUTPUT = 64 << 20
STDERR = 64 << 10
OLDEST = (2, 38)
REAP_SECONDS = 10.0

# Repeated on each command line: a repository's own file may have been edited by a tool of the forge.
_SETTINGS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.fsync=committed",  # loose objects too: else a ref can outlive its commit in a power cut
    "fetch.fsck.badTimezone=ignore",  # faults of old tools that real histories carry and that harm nothing
    "fetch.fsck.missingSpaceBeforeDate=ignore",
    "fetch.fsck.zeroPaddedFilemode=ignore",
    "core.attributesFile=/dev/null",
    "core.filesRefLockTimeout=2000",
    "core.packedRefsTimeout=2000",
    "gc.auto=0",
    "maintenance.auto=false",
    "submodule.recurse=false",
    "protocol.allow=never",
)
_FULL = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
_KEPT = ("PATH", "TMPDIR", "DEVELOPER_DIR", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class Ended:
    """A git that ended: exit code, stdout (`cut` where it was longer than allowed), the end of stderr."""

    code: int
    out: bytes
    err: str
    cut: bool = False

    @property
    def text(self) -> str:
        """stdout without its last newline."""
        return self.out.decode("utf-8", "replace").rstrip("\n")

    @property
    def reason(self) -> str:
        """The first telling line of stderr."""
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        telling = [line for line in lines if line.startswith(("fatal:", "error:"))]
        return (telling or lines or [f"exit code {self.code}"])[0][:300]


class GitFailed(DependencyDown):
    """Git did not do what it was asked to."""

    type = "git-failed"

    ended = Ended(-1, b"", "")


def environment(protocols: str = "", more: Mapping[str, str] | None = None) -> dict[str, str]:
    """All that git sees of this process's environment: no GIT_* of the caller's, no configuration but the repository's own."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {
        **kept,
        "HOME": "/dev/null",
        "XDG_CONFIG_HOME": "/dev/null",
        "LC_ALL": "C",
        "TZ": "UTC",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_SYSTEM": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "/bin/false",
        "GIT_SSH_COMMAND": "/bin/false",
        "GIT_ALLOW_PROTOCOL": protocols,
        "GIT_PROTOCOL_FROM_USER": "0",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_CEILING_DIRECTORIES": "/",
        **(more or {}),
    }


def git(
    repo: Path | None,
    *args: str,
    stdin: bytes | IO[bytes] | None = None,
    out: IO[bytes] | None = None,
    timeout: float = SECONDS,
    limit: int = OUTPUT,
    cut: bool = False,
    ok: Sequence[int] = (0,),
    protocols: str = "",
    env: Mapping[str, str] | None = None,
    memory: int | None = None,
) -> Ended:
    """Run git on the bare repository `repo` (None: on none); stdout goes to `out` where given.

    Raises `GitFailed` on another exit code than `ok`, `IntakeRefused` where it says more than `limit` bytes (or stops it there
    where `cut`), `DependencyDown` on a full disk or after `timeout` seconds, `NotReady` where git is missing.
    """
    where = [f"--git-dir={repo}"] if repo else []
    settings = [word for setting in _SETTINGS for word in ("-c", setting)]
    with ExitStack() as stack:
        if isinstance(stdin, bytes):
            stdin = stack.enter_context(_spooled(stdin))
        process = subprocess.Popen(
            [_program(), *where, *settings, *args],
            stdin=stdin or subprocess.DEVNULL,
            stdout=out or subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=repo or "/dev",
            env=environment(protocols, env),
            start_new_session=True,
        )
        stack.callback(_end, process)
        _limit(process.pid, memory)
        ended = _collect(process, _verb(args), time.monotonic() + timeout, timeout, limit, cut)
    return _judged(ended, _verb(args), ok)


def failure(ended: Ended, command: str) -> GitFailed:
    """What git said, as an error."""
    error = GitFailed(f"git {command} failed: {ended.reason}")
    error.ended = ended
    return error


def check() -> str:
    """The version of git on this host. Raises `NotReady` where it is missing or too old."""
    said = git(None, "version").text
    found = re.search(r"(\d+)\.(\d+)", said)
    if not found or (int(found[1]), int(found[2])) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise NotReady(f"This host has {said}, which is too old.", mend=f"Install git {wanted} or newer.")
    return said


def _verb(args: Sequence[str]) -> str:
    """The subcommand: the first word that is neither an option nor the value of `-c` or `-C`."""
    words = iter(args)
    return next((word for word in words if not word.startswith("-") or (word in ("-c", "-C") and not next(words, ""))), "")


@cache
def _found() -> str | None:
    return shutil.which("git")


def _program() -> str:
    program = _found()
    if program is None:
        _found.cache_clear()
        raise NotReady("git is not installed on this host.", mend="Install it, for example `apt-get install git`.")
    return program


def _spooled(data: bytes) -> IO[bytes]:
    """`data` as a file to read: a pipe could stall where git talks before it has read everything."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.write(data)
    file.seek(0)
    return file


def _limit(pid: int, memory: int | None) -> None:
    """Cap the child's address space where the system can (Linux); elsewhere the deadline has to do."""
    if memory is None or not hasattr(resource, "prlimit"):
        return
    try:
        resource.prlimit(pid, resource.RLIMIT_AS, (memory, memory))
    except ProcessLookupError:
        return  # it ended already


def _collect(process: subprocess.Popen[bytes], command: str, deadline: float, timeout: float, limit: int, cut: bool) -> Ended:
    """Read both streams to their end, within deadline and limits."""
    said: dict[str, bytearray] = {"out": bytearray(), "err": bytearray()}
    stopped = False
    with selectors.DefaultSelector() as selector:
        for name, stream in (("out", process.stdout), ("err", process.stderr)):
            if stream is not None:
                selector.register(stream, selectors.EVENT_READ, name)
        while selector.get_map() and not stopped:
            for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                _take(selector, key, said[key.data])
            if time.monotonic() > deadline:
                raise _late(command, timeout)
            stopped = len(said["out"]) > limit
    if stopped and not cut:
        raise IntakeRefused(f"git {command} said more than {limit} bytes about this repository.")
    code = 0 if stopped else _wait(process, command, deadline, timeout)
    return Ended(code, bytes(said["out"][:limit]), said["err"].decode("utf-8", "replace"), stopped)


def _take(selector: selectors.BaseSelector, key: selectors.SelectorKey, into: bytearray) -> None:
    data = os.read(key.fd, 1 << 16)
    if not data:
        selector.unregister(key.fileobj)
    into += data
    if key.data == "err" and len(into) > STDERR:
        del into[: len(into) - STDERR]


def _wait(process: subprocess.Popen[bytes], command: str, deadline: float, timeout: float) -> int:
    try:
        return process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise _late(command, timeout) from None


def _late(command: str, timeout: float) -> DependencyDown:
    return DependencyDown(
        f"git {command} did not end within {timeout:.0f} s.", mend="Look at the load and the disk of this host."
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing of it behind: git's helpers are in its session."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            process.kill()
        try:
            process.wait(REAP_SECONDS)
        except subprocess.TimeoutExpired:  # it hangs in the system, on a disk that does not answer
            log.warning("git.unkillable", extra={"pid": process.pid})
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _judged(ended: Ended, command: str, ok: Sequence[int]) -> Ended:
    if ended.code and _FULL.search(ended.err):
        raise DependencyDown(f"git {command} found the disk full.", mend="Make room on this host's disk.")
    if ended.code in ok:
        return ended
    raise failure(ended, command)
