"""The Runner port: one command in one sandbox, from a frozen spec to a frozen result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

Role = Literal["materialise", "agent", "seal", "check", "probe"]
Ended = Literal["exited", "timeout", "idle", "oom", "disk", "output", "cancelled"]


@dataclass(frozen=True)
class Mount:
    """A host directory seen inside the sandbox at `target` (an absolute container path)."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True)
class Owner:
    """Whose sandbox this is: written on it as labels, so that a reaper can end what nobody owns."""

    instance: str
    workflow_id: str
    step_id: str
    attempt_id: str
    fence: int
    deadline: datetime


@dataclass(frozen=True)
class RunSpec:
    """Everything about one run. Times in seconds, sizes in bytes. `argv` and `env` values may name mount targets;
    a runner without a mount namespace replaces a target at the start of a path by its source."""

    role: Role
    argv: Sequence[str]
    owner: Owner
    mounts: Sequence[Mount] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = "/workspace"
    timeout: float = 600.0
    idle_timeout: float | None = None
    memory: int = 2 << 30
    cpus: float = 2.0
    pids: int = 512
    output_limit: int = 64 << 20
    disk_limit: int = 2 << 30
    gateway_socket: Path | None = None


@dataclass(frozen=True)
class RunnerResult:
    """What the runner itself observed. `exit_code` is None where the command never reported one."""

    ended: Ended
    exit_code: int | None
    started_at: datetime
    finished_at: datetime
    stdout_tail: str = ""
    stderr_tail: str = ""
    truncated: bool = False
    container_id: str | None = None
    image_id: str | None = None
    inspect: Mapping[str, object] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """True only where the command itself ended with 0."""
        return self.ended == "exited" and self.exit_code == 0


class Sink(Protocol):
    """Takes output as it comes: `stream` is `stdout` or `stderr`, `data` raw bytes."""

    def __call__(self, stream: Literal["stdout", "stderr"], data: bytes, /) -> None: ...


class Runner(Protocol):
    """Runs one command in a sandbox of its own."""

    name: str
    """`docker` or `process`: said in every result and by the demo."""

    def check(self) -> None:
        """Raise `NotReady` (with its mend) or `DependencyDown` where this runner cannot run now."""

    def run(self, spec: RunSpec, *, sink: Sink | None = None, cancelled: Callable[[], bool] | None = None) -> RunnerResult:
        """Run to the end, the deadline or until `cancelled()` is true (asked at least once a second).

        Nothing of the sandbox is left when this returns or raises. Raises `NotReady`, `DependencyDown`.
        """

    def workspace(self, path: Path) -> None:
        """Make `path` (a directory) writable by the sandbox's user and by nobody else who matters."""

    def remove_tree(self, path: Path) -> None:
        """Remove a directory that the sandbox may have filled, whoever owns the files in it."""

    def reap(self, keep: Callable[[Mapping[str, str]], bool]) -> list[str]:
        """End every sandbox of this instance whose labels `keep` refuses; returns their ids."""
