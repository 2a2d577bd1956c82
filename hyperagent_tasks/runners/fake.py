"""FakeRunner: for unit tests. It runs a function, not a command, and keeps every spec it was given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hyperagent_tasks.runners import trees
from hyperagent_tasks.runners.base import RunnerResult, RunSpec, Sink
from hyperagent_tasks.runners.watch import Watch


@dataclass(frozen=True)
class Said:
    """What a fake command did: its exit code and output."""

    exit_code: int = 0
    stdout: bytes = b""
    stderr: bytes = b""


class FakeRunner:
    """Answers every run by `act(spec)`, which may also change the mounts; None stands for `Said()`."""

    name = "fake"

    def __init__(self, act: Callable[[RunSpec], Said | None]) -> None:
        self._act = act
        self.specs: list[RunSpec] = []

    def check(self) -> None:
        """Always there."""

    def run(
        self, spec: RunSpec, *, sink: Sink | None = None, cancelled: Callable[[], bool] | None = None
    ) -> RunnerResult:
        """Act, then tell."""
        self.specs.append(spec)
        watch = Watch(spec, sink, cancelled)
        if cancelled is not None and cancelled():
            return watch.result("cancelled", None)
        said = self._act(spec) or Said()
        watch.take("stdout", said.stdout)
        watch.take("stderr", said.stderr)
        return watch.result("output" if watch.truncated else "exited", None if watch.truncated else said.exit_code)

    def workspace(self, path: Path) -> None:
        """Nothing to do."""

    def remove_tree(self, path: Path) -> None:
        """Remove it."""
        trees.remove(path)

    def reap(self, keep: Callable[[Mapping[str, str]], bool]) -> list[str]:
        """Nothing is ever left."""
        return []
