"""ProcessRunner: a plain process group on this machine. **It is not a sandbox**; it is there for a laptop's demo.

The command runs as the worker's own user, sees this machine's files and network, and read-only mounts are not enforced.
What it has of a runner: a scrubbed environment, a home of its own, limits, deadlines, and nothing left running afterwards.
"""

from __future__ import annotations

import logging
import os
import re
import select
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import IO

from hyperagent_common.errors import BadInput, NotReady
from hyperagent_common.ids import new_id
from hyperagent_tasks.runners import leftovers, profile, trees
from hyperagent_tasks.runners.base import Ended, RunnerResult, RunSpec, Sink
from hyperagent_tasks.runners.watch import TICK, DiskWatch, Stream, Watch, writable

log = logging.getLogger(__name__)

SCRIPTS = "/usr/local/lib/hyperagent"
DRAIN_SECONDS = 2.0
_LIMITED = 'ulimit -c 0; ulimit -f "$1"; ulimit -t "$2"; shift 2; exec "$@"'


class ProcessRunner:
    """Runs commands as plain processes; keeps a record of each in `run_dir` (default: beside `work_root`)."""

    name = "process"

    def __init__(self, *, instance: str, work_root: Path, run_dir: Path | None = None) -> None:
        self._instance, self._work_root = instance, work_root
        self._run_dir = run_dir or work_root.parent / "run" / "processes"
        log.warning("sandbox.none", extra={"runner": self.name, "why": "agents run as this user, without any sandbox"})

    def check(self) -> None:
        """Raise `NotReady` where not even a shell can be run."""
        if os.name != "posix":
            raise NotReady("The plain-process runner needs a POSIX system.", mend="Use Docker: HYPERAGENT_SANDBOX=docker.")

    def run(self, spec: RunSpec, *, sink: Sink | None = None, cancelled: Callable[[], bool] | None = None) -> RunnerResult:
        """Run to the end, the deadline or until `cancelled()`. Raises `NotReady`, `BadInput`."""
        place = Place(spec, self._run_dir / new_id())
        with leftovers.Record(place.root, profile.labels(spec.owner, spec.role)) as record:
            process = _start(spec, place, record.mark)
            try:
                record.started(process.pid)
                with DiskWatch(writable(spec), spec.disk_limit) as disk:
                    watch = Watch(spec, sink, cancelled, disk)
                    ended = _take(process, watch, record)
                    return _judge(process, ended, watch, disk, self.name)
            finally:
                record.end()
                _close(process)

    def workspace(self, path: Path) -> None:
        """A directory for this user alone."""
        trees.inside(self._work_root, path).chmod(0o700)

    def remove_tree(self, path: Path) -> None:
        """Remove a directory below the work directory. Raises `BadInput` elsewhere."""
        trees.remove(trees.inside(self._work_root, path))

    def reap(self, keep: Callable[[Mapping[str, str]], bool]) -> list[str]:
        """End each process group of this instance whose labels `keep` refuses; returns their record ids."""
        ended = []
        for record in leftovers.records(self._run_dir):
            mine = record.labels.get(profile.INSTANCE) == self._instance
            if mine and not keep(dict(record.labels)):
                record.end()
                record.forget()
                ended.append(record.root.name)
        return ended


class Place:
    """Where a command runs: a home and a temporary directory of its own, container paths rewritten to real ones."""

    def __init__(self, spec: RunSpec, root: Path) -> None:
        self.root = root
        self._sources = {SCRIPTS: str(files("hyperagent_tasks").joinpath("sandbox")), profile.HOME: str(root / "home")}
        self._sources |= {mount.target: os.path.abspath(mount.source) for mount in spec.mounts}
        targets = "|".join(re.escape(target) for target in sorted(self._sources, key=len, reverse=True))
        self._pattern = re.compile(rf"(?<![\w./-])({targets})(?![\w.-])")
        missing = [str(mount.source) for mount in spec.mounts if not mount.source.exists()]
        if missing:
            raise NotReady(f"{', '.join(missing)} is to be used by the sandbox and does not exist.")

    def real(self, text: str) -> str:
        """`text` with each mount target at the start of a path replaced by its source."""
        return self._pattern.sub(lambda found: self._sources[found[1]], text)

    def environment(self, given: Mapping[str, str], mark: str) -> dict[str, str]:
        """Nothing of the worker's environment but where programs are."""
        base = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.root / "home"), "LANG": "C.UTF-8"}
        mine = {name: self.real(value) for name, value in given.items()}
        return {**base, **mine, "TMPDIR": str(self.root / "tmp"), leftovers.MARK: mark}

    def workdir(self, path: str) -> Path:
        """The directory to run in; one that is no mount becomes the private temporary directory."""
        real = Path(self.real(path))
        return real if str(real) != path and real.is_dir() else self.root / "tmp"


def _start(spec: RunSpec, place: Place, mark: str) -> subprocess.Popen[bytes]:
    argv = [place.real(word) for word in spec.argv]
    if not argv or any("\0" in word for word in (*argv, *spec.env, *spec.env.values())):
        raise BadInput("A sandbox needs a command, and no word of it may hold a NUL character.")
    if spec.argv[0].startswith(f"{SCRIPTS}/"):
        argv.insert(0, "sh")  # a wheel does not keep the executable bit
    limits = [str(max(1, spec.disk_limit // 512)), str(max(1, int(spec.timeout * max(1.0, spec.cpus)) + 1))]
    return subprocess.Popen(
        ["/bin/sh", "-c", _LIMITED, "sh", *limits, *argv],
        cwd=place.workdir(spec.workdir),
        env=place.environment(spec.env, mark),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        bufsize=0,
    )


def _take(process: subprocess.Popen[bytes], watch: Watch, record: leftovers.Record) -> Ended | None:
    """Take output until the command ends (None) or must be ended (why); everything it started is dead on return."""
    watch.start()
    pipes = _pipes(process)
    ended = None
    while process.poll() is None and ended is None:
        _read_once(pipes, watch, TICK if pipes else 0.02)
        if not pipes:
            time.sleep(0.02)
        ended = watch.end()
    leftovers.kill_group(process.pid)  # at once: while the group has members its number means nothing else
    record.end()
    deadline = time.monotonic() + DRAIN_SECONDS
    while pipes and time.monotonic() < deadline and not watch.truncated:
        _read_once(pipes, watch, TICK)
    process.wait(timeout=10)
    return ended


def _pipes(process: subprocess.Popen[bytes]) -> dict[int, tuple[Stream, IO[bytes]]]:
    assert process.stdout is not None
    assert process.stderr is not None
    return {process.stdout.fileno(): ("stdout", process.stdout), process.stderr.fileno(): ("stderr", process.stderr)}


def _read_once(pipes: dict[int, tuple[Stream, IO[bytes]]], watch: Watch, seconds: float) -> None:
    """Take what the pipes hold now; a pipe at its end leaves `pipes`."""
    poll = select.poll()
    for number in pipes:
        poll.register(number, select.POLLIN | select.POLLHUP)
    for number, _event in poll.poll(seconds * 1000) if pipes else ():
        data = os.read(number, 64 << 10)
        if data:
            watch.take(pipes[number][0], data)
        else:
            del pipes[number]


def _judge(process: subprocess.Popen[bytes], ended: Ended | None, watch: Watch, disk: DiskWatch, name: str) -> RunnerResult:
    code = process.returncode
    if ended is None:
        ended = "output" if watch.truncated else "disk" if disk.look() else "exited"
    shown = None if ended != "exited" else code if code >= 0 else 128 - code  # as a shell, and a container, say it
    return watch.result(ended, shown, inspect={"runner": name, "pid": process.pid, "ExitCode": code})


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    process.wait(timeout=10)
