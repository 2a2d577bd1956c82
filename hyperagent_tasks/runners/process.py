"""ProcessRunner: one command as a plain process. THIS IS NO SANDBOX: it is for the demo on a laptop without Docker."""

from __future__ import annotations

import json
import logging
import os
import resource
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from hyperagent_common.errors import NotReady
from hyperagent_tasks.runners import profile, trees
from hyperagent_tasks.runners.base import Ended, RunnerResult, RunSpec, Sink
from hyperagent_tasks.runners.watch import TICK, DiskWatch, Watch, writable

log = logging.getLogger(__name__)
NOTICE = "agents run as plain processes, without any sandbox"
SCRIPTS = Path(__file__).resolve().parents[1] / "sandbox"
INSIDE_SCRIPTS = "/usr/local/lib/hyperagent"
MAX_FILE = 2 << 30


class ProcessRunner:
    """Runs commands as processes of this user in their own session, below `work_root`."""

    name = "process"

    def __init__(self, *, instance: str, work_root: Path) -> None:
        self._instance, self._work_root = instance, work_root
        self._pids = work_root / ".processes"
        log.warning("sandbox.none", extra={"notice": NOTICE})

    def check(self) -> None:
        """A shell, git and Python must be there."""
        for program in ("sh", "git"):
            if not any((Path(folder) / program).exists() for folder in os.get_exec_path()):
                raise NotReady(f"{program} is not on this host.", mend=f"Install {program}.")

    def run(
        self, spec: RunSpec, *, sink: Sink | None = None, cancelled: Callable[[], bool] | None = None
    ) -> RunnerResult:
        """Run to the end, the deadline or until `cancelled()`; every process of its session is ended with it."""
        with DiskWatch(writable(spec), spec.disk_limit) as disk:
            watch = Watch(spec, sink, cancelled, disk)
            process = self._start(spec)
            note = self._note(spec, process.pid)
            try:
                watch.start()
                ended = _follow(process, watch)
            finally:
                _kill(process)
                note.unlink(missing_ok=True)
            code = process.returncode
            if ended is None:
                ended = "output" if watch.truncated else "disk" if disk.look() else "exited"
            return watch.result(ended, (code if code >= 0 else 128 - code) if ended == "exited" else None)

    def _start(self, spec: RunSpec) -> subprocess.Popen[bytes]:
        home = self._work_root / ".home" / spec.owner.attempt_id
        home.mkdir(parents=True, exist_ok=True)
        paths = {mount.target: str(mount.source) for mount in spec.mounts} | {INSIDE_SCRIPTS: str(SCRIPTS)}
        env = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "HOME": str(home),
            "TMPDIR": str(home),
            "LANG": "C.UTF-8",
            **{name: mapped(value, paths) for name, value in spec.env.items()},
        }
        workdir = mapped(spec.workdir, paths)
        try:
            return subprocess.Popen(
                [mapped(word, paths) for word in spec.argv],
                cwd=workdir if Path(workdir).is_dir() else home,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=_limits,
            )
        except FileNotFoundError as error:
            raise NotReady(f"{spec.argv[0]} is not on this host.", mend="Install it, or use Docker.") from error

    def _note(self, spec: RunSpec, pid: int) -> Path:
        """A file by which a reaper finds this process and knows that it is the same."""
        self._pids.mkdir(parents=True, exist_ok=True, mode=0o700)
        note = self._pids / str(pid)
        note.write_text(json.dumps({"labels": profile.labels(spec.owner, spec.role), "started": _started(pid)}))
        return note

    def workspace(self, path: Path) -> None:
        """The same user writes it: nothing to do but to be sure where it is."""
        trees.inside(self._work_root, path)

    def remove_tree(self, path: Path) -> None:
        """Remove a directory below the work directory, and the home its commands had."""
        place = trees.inside(self._work_root, path)
        trees.remove(place)
        home = self._work_root / ".home" / path.name
        if home.exists():
            trees.remove(home)

    def reap(self, keep: Callable[[Mapping[str, str]], bool]) -> list[str]:
        """End every session noted here whose labels `keep` refuses; returns their pids."""
        ended = []
        for note in self._pids.iterdir() if self._pids.is_dir() else ():
            try:
                said = json.loads(note.read_text())
            except (OSError, ValueError):
                continue  # being written or removed just now
            if keep(said["labels"]):
                continue
            if said["started"] is not None and _started(int(note.name)) == said["started"]:
                _signal(int(note.name))
                ended.append(note.name)
            note.unlink(missing_ok=True)
        return ended


def mapped(text: str, paths: Mapping[str, str]) -> str:
    """`text` with a mount target at its start, or after `=` or `:`, replaced by its source."""
    for target, source in sorted(paths.items(), key=lambda pair: -len(pair[0])):
        if text == target or text.startswith(target + "/"):
            return source + text[len(target) :]
    return text


def _limits() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE, MAX_FILE))


def _follow(process: subprocess.Popen[bytes], watch: Watch) -> Ended | None:
    """Take its output until it has ended (None) or must be ended (why)."""
    with selectors.DefaultSelector() as selector:
        for name, stream in (("stdout", process.stdout), ("stderr", process.stderr)):
            if stream is not None:
                selector.register(stream, selectors.EVENT_READ, name)
        while selector.get_map() and process.poll() is None:
            if ended := _once(selector, watch):
                return ended
        while selector.get_map() and _more(selector, watch):
            continue  # what it wrote before it ended; a child that lives on is not waited for
    while process.poll() is None:
        try:
            process.wait(TICK)
        except subprocess.TimeoutExpired:
            if ended := watch.end():
                return ended
    return None


def _once(selector: selectors.BaseSelector, watch: Watch) -> Ended | None:
    ended = watch.end()
    if ended is None:
        _read(selector, watch, TICK)
    return ended


def _more(selector: selectors.BaseSelector, watch: Watch) -> bool:
    return watch.end() is None and _read(selector, watch, 0.05)


def _read(selector: selectors.BaseSelector, watch: Watch, seconds: float) -> bool:
    """Take what is there; False where nothing was."""
    ready = selector.select(seconds)
    for key, _ in ready:
        data = os.read(key.fd, 1 << 16)
        if data:
            watch.take(key.data, data)
        else:
            selector.unregister(key.fileobj)
    return bool(ready)


def _kill(process: subprocess.Popen[bytes]) -> None:
    _signal(process.pid)
    process.wait(10)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _signal(session: int) -> None:
    try:
        os.killpg(session, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # the whole session has ended already


def _started(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
    except OSError:
        return None
