"""One bench for every runner: the same command for a shell and, as a play, for the fake."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from hyperagent_tasks.runners.base import Mount, Owner, Runner, RunnerResult, RunSpec, Sink
from hyperagent_tasks.runners.docker import DockerRunner
from hyperagent_tasks.runners.fake import FakeRunner, Play
from hyperagent_tasks.runners.process import ProcessRunner
from tests import parts

REAL = ["docker", "process"]
ALL = [*REAL, "fake"]

real = pytest.mark.parametrize("bench", REAL, indirect=True)
only_docker = pytest.mark.parametrize("bench", ["docker"], indirect=True)
leaks_sockets = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
"""docker-py does not close the socket it could not connect (`docker.transport.unixconn`)."""
only_process = pytest.mark.parametrize("bench", ["process"], indirect=True)


@dataclass
class Bench:
    """One runner with a directory of its own; `run` gives the same command to a shell and to the fake."""

    kind: str
    root: Path
    runner: Runner
    instance: str
    plays: list[Callable[[RunSpec], Play]] = field(default_factory=list)

    @property
    def ws(self) -> Path:
        """A writable workspace."""
        path = self.root / "work" / "a1" / "ws"
        if not path.exists():
            path.mkdir(parents=True)
            self.runner.workspace(path)
        return path

    def spec(self, shell: str, **changes: Any) -> RunSpec:
        """A spec that runs `shell` in a fresh workspace."""
        deadline = datetime.now(UTC) + timedelta(minutes=5)
        owner = Owner(self.instance, "wf", "st", changes.pop("attempt", "0190-aaaa-bbbbccccdddd"), 7, deadline)
        mounts = changes.pop("mounts", (Mount(self.ws, "/workspace", read_only=False),))
        values: dict[str, Any] = {"role": "check", "argv": ("sh", "-c", shell), "timeout": 60.0, **changes}
        return RunSpec(owner=owner, mounts=mounts, **values)

    def run(
        self,
        shell: str,
        play: Play | Callable[[RunSpec], Play] | None = None,
        *,
        sink: Sink | None = None,
        cancelled: Callable[[], bool] | None = None,
        **changes: Any,
    ) -> RunnerResult:
        """Run it; `play` is what the fake makes of it."""
        self.plays[:] = [play if callable(play) else lambda _spec: play or Play()]
        return self.runner.run(self.spec(shell, **changes), sink=sink, cancelled=cancelled)

    def left(self) -> list[str]:
        """What this instance has left: containers, or processes and their records."""
        if self.kind == "docker":
            found = parts.require_docker().api.containers(all=True, filters={"label": f"hyperagent.instance={self.instance}"})
            return [str(one["Names"]) for one in found]
        runs = self.root / "run" / "processes"
        return [path.name for path in runs.iterdir()] if runs.exists() else []


class Kept:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.stdout, self.stderr = bytearray(), bytearray()
        self.first = threading.Event()

    def __call__(self, stream: str, data: bytes, /) -> None:
        (self.stdout if stream == "stdout" else self.stderr).extend(data)
        self.first.set()


def make(kind: str, root: Path) -> Bench:
    """A bench whose runner is `kind`."""
    instance = f"t-{uuid4().hex[:10]}"
    plays: list[Callable[[RunSpec], Play]] = []
    work = root / "work"
    work.mkdir(mode=0o700, exist_ok=True)
    runner: Runner
    if kind == "docker":
        runner = DockerRunner(instance=instance, image=parts.require_runner_image(), work_root=work)
    elif kind == "process":
        runner = ProcessRunner(instance=instance, work_root=work)
    else:
        runner = FakeRunner(lambda spec: plays[0](spec), instance=instance, work_root=work)
    return Bench(kind, root, runner, instance, plays)


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def socat() -> str:
    """The forwarder."""
    found = shutil.which("socat")
    return found if found else parts.missing("socat", "ops/parts services")
