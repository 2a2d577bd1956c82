"""The parts of this host that a step needs, chosen once from the settings: runner, agents, forge, git, storage.

`auto` takes the real part where it is there, and says loudly where it is not. What was once real stays required:
a host that ran agents in Docker never falls back to no sandbox by itself (`run/chosen.json` remembers).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from celery import Celery

from hyperagent_common import queue
from hyperagent_common.errors import DependencyDown, HyperagentError, NotReady
from hyperagent_common.ids import new_id
from hyperagent_common.settings import Settings
from hyperagent_common.storage import Storage, open_storage
from hyperagent_tasks.agents import choose as agents
from hyperagent_tasks.agents import versions
from hyperagent_tasks.agents.base import Agent
from hyperagent_tasks.gateway.client import GatewayClient
from hyperagent_tasks.gitgate import GitGate
from hyperagent_tasks.radicle import choose as forges
from hyperagent_tasks.radicle.base import Forge
from hyperagent_tasks.runners.base import Runner
from hyperagent_tasks.runners.docker import DockerRunner
from hyperagent_tasks.runners.process import ProcessRunner

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """Which class stands behind each port on this host."""

    sandbox: str
    agent: str
    forge: str


def instance(settings: Settings) -> str:
    """This host's id, made once and kept in `home`."""
    path = settings.home / "instance"
    if not path.exists():
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(new_id()[-12:])
        os.link(fresh, path) if not path.exists() else None
        fresh.unlink()
    return path.read_text().strip()


class Parts:
    """Everything a step's hops call, made on first use in each process."""

    def __init__(self, settings: Settings, app: Celery | None = None, chosen: Chosen | None = None) -> None:
        self.settings = settings
        self.app = app or queue.make(settings)
        self._chosen = chosen

    @cached_property
    def chosen(self) -> Chosen:
        """What `auto` came to."""
        return self._chosen or choose(self.settings)

    @cached_property
    def worker(self) -> str:
        """The name under which this process claims."""
        return f"{socket.gethostname()}:{os.getpid()}"

    @cached_property
    def runner(self) -> Runner:
        """Runs agent, sealer and check containers."""
        return make_runner(self.settings, self.chosen.sandbox)

    @cached_property
    def forge(self) -> Forge:
        """Where patches go."""
        return make_forge(self.settings, self.chosen.forge, self.gitgate)

    @cached_property
    def gitgate(self) -> GitGate:
        """The only way to git."""
        return GitGate(self.settings.home / "repos")

    @cached_property
    def gateway(self) -> GatewayClient:
        """Grants at the model gateway of this host."""
        return GatewayClient(self.settings.run_dir)

    @cached_property
    def storage(self) -> Storage:
        """Shared storage."""
        return open_storage(self.settings.storage)

    def agent(self, provider: str) -> Agent:
        """The adapter of an agent CLI; `auto` is what this host chose. Raises `BadInput`."""
        name = self.chosen.agent if provider == "auto" else provider
        return agents.agent(name, sandbox=self.chosen.sandbox)

    def agent_version(self, agent: Agent) -> str | None:
        """The CLI's version: the image's label in Docker, else what the CLI says; None where it does not say."""
        return versions.of(self.settings, self.chosen.sandbox, agent)

    def forget_connections(self) -> None:
        """Drop what must not cross a fork."""
        for name in ("runner", "forge", "gateway", "storage", "gitgate", "worker"):
            self.__dict__.pop(name, None)


def make_runner(settings: Settings, kind: str) -> Runner:
    """The runner called `kind`."""
    if kind == "docker":
        return DockerRunner(
            instance=instance(settings),
            image=settings.runner_image,
            work_root=settings.home / "work",
            runtime=settings.container_runtime or None,
        )
    return ProcessRunner(instance=instance(settings), work_root=settings.home / "work")


def make_forge(settings: Settings, kind: str, gitgate: GitGate) -> Forge:
    """The forge called `kind`: `radicle` or `stand-in`."""
    return forges.choose_forge(settings, kind, instance=instance(settings), gitgate=gitgate)


def choose(settings: Settings) -> Chosen:
    """Resolve `auto`, remember it, and refuse to fall behind what was chosen before. Raises `NotReady`, or `DependencyDown`
    where what was chosen is only away, as an engine that starts later than the worker is."""
    path = settings.run_dir / "chosen.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    sandbox = settings.sandbox if settings.sandbox != "auto" else _sandbox(settings, before.get("sandbox"))
    agent = settings.agent_provider if settings.agent_provider != "auto" else _agent(settings, sandbox)
    forge = settings.forge if settings.forge != "auto" else _forge(settings, before.get("forge"))
    chosen = Chosen(sandbox, agent, forge)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(chosen.__dict__))
    fresh.replace(path)
    return chosen


def _sandbox(settings: Settings, before: str | None) -> str:
    try:
        make_runner(settings, "docker").check()
    except HyperagentError as error:
        if before == "docker":
            raise _lost(
                error, "Agents ran in Docker", "set HYPERAGENT_SANDBOX=process to run agents without any sandbox"
            ) from error
        log.warning("sandbox.missing", extra={"reason": error.sentence, "instead": "process: no sandbox at all"})
        return "process"
    return "docker"


def _agent(settings: Settings, sandbox: str) -> str:
    if sandbox == "docker":
        return "opencode"  # the runner image carries it; the runner's check has seen the image
    return "opencode" if shutil.which("opencode") else "mock"


def _forge(settings: Settings, before: str | None) -> str:
    fault = forges.missing(settings)
    if fault and before == "radicle":
        raise _lost(fault, "Patches went to Radicle", "set HYPERAGENT_FORGE=stand-in to publish nowhere")
    if fault:
        log.warning("forge.missing", extra={"reason": fault.sentence, "instead": "stand-in: nothing leaves this machine"})
    return "stand-in" if fault else "radicle"


def _lost(error: HyperagentError, what: str, instead: str) -> HyperagentError:
    """The refusal to fall behind what was chosen before; what is only away may come back, and is waited for."""
    kind = DependencyDown if isinstance(error, DependencyDown) else NotReady
    return kind(f"{what} on this host before, and now it cannot be used: {error.message}", mend=f"{error.mend} Or {instead}.")


def with_settings(parts: Parts, **changes: object) -> Parts:
    """The same parts under changed settings, for tests and the doctor."""
    return Parts(replace(parts.settings, **changes), parts.app, parts._chosen)  # type: ignore[arg-type]


def run_files(settings: Settings) -> Path:
    """The directory of sockets and pid files, made where missing."""
    settings.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    return settings.run_dir
