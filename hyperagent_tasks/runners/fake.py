"""FakeRunner: plays what a function says instead of running anything; for tests of everything above a runner."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hyperagent_common.errors import HyperagentError
from hyperagent_tasks.runners import profile, trees
from hyperagent_tasks.runners.base import RunnerResult, RunSpec, Sink
from hyperagent_tasks.runners.watch import DiskWatch, Watch, writable

CHUNK = 4096
TICK = 0.01


@dataclass(frozen=True)
class Play:
    """What one command is to have done: printed, taken `seconds`, ended with `exit_code`. Its effects on the mounts
    are the function's own doing, before it returns this."""

    stdout: bytes = b""
    stderr: bytes = b""
    exit_code: int = 0
    seconds: float = 0.0
    oom: bool = False


class FakeRunner:
    """Calls `behaviour(spec)` for each run and keeps every spec in `specs`; `fault` is raised by `check` and `run`."""

    name = "fake"

    def __init__(
        self,
        behaviour: Callable[[RunSpec], Play] = lambda spec: Play(),
        *,
        instance: str = "fake",
        work_root: Path | None = None,
        fault: HyperagentError | None = None,
    ) -> None:
        self.behaviour, self.fault = behaviour, fault
        self.specs: list[RunSpec] = []
        self.alive: dict[str, dict[str, str]] = {}
        self._instance, self._work_root = instance, work_root

    def check(self) -> None:
        """Raise `fault` where there is one."""
        if self.fault is not None:
            raise self.fault

    def run(self, spec: RunSpec, *, sink: Sink | None = None, cancelled: Callable[[], bool] | None = None) -> RunnerResult:
        """Play the command under the same limits as the real runners."""
        self.check()
        self.specs.append(spec)
        name = profile.container_name(spec)
        self.alive[name] = profile.labels(spec.owner, spec.role)
        try:
            with DiskWatch(writable(spec), spec.disk_limit) as disk:
                return self._play(name, spec, Watch(spec, sink, cancelled, disk), disk)
        finally:
            self.alive.pop(name, None)

    def _play(self, name: str, spec: RunSpec, watch: Watch, disk: DiskWatch) -> RunnerResult:
        play = self.behaviour(spec)
        watch.start()
        for stream, data in (("stdout", play.stdout), ("stderr", play.stderr)):
            for start in range(0, len(data), CHUNK):
                watch.take("stdout" if stream == "stdout" else "stderr", data[start : start + CHUNK])
        until = time.monotonic() + play.seconds
        ended = watch.end()
        while ended is None and time.monotonic() < until and name in self.alive:
            time.sleep(TICK)
            ended = watch.end()
        if ended is None and disk.look():
            ended = "disk"
        if ended is None:
            ended = "oom" if play.oom else "exited"
        code = play.exit_code if ended == "exited" else 137 if ended == "oom" else None
        return watch.result(ended, code, container_id=name, image_id="fake", inspect={"runner": self.name})

    def workspace(self, path: Path) -> None:
        """A directory for this user alone."""
        self._place(path).chmod(0o700)

    def remove_tree(self, path: Path) -> None:
        """Remove a directory, below `work_root` where one was given."""
        trees.remove(self._place(path))

    def reap(self, keep: Callable[[Mapping[str, str]], bool]) -> list[str]:
        """End each run that is under way and whose labels `keep` refuses."""
        ended = [name for name, labels in self.alive.items() if not keep(dict(labels))]
        for name in ended:
            self.alive.pop(name, None)
        return ended

    def _place(self, path: Path) -> Path:
        return path if self._work_root is None else trees.inside(self._work_root, path)
