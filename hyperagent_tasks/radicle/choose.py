"""Which forge this host uses: Radicle in its container, Radicle's programs of the host, or the stand-in."""

from __future__ import annotations

from pathlib import Path

import docker
import requests
from docker.errors import DockerException, ImageNotFound

from hyperagent_common.errors import DependencyDown, NotReady
from hyperagent_common.settings import Settings
from hyperagent_tasks.gitgate import GitGate
from hyperagent_tasks.radicle.base import Forge
from hyperagent_tasks.radicle.executor import ContainerExecutor, Executor, HostExecutor, host_programs
from hyperagent_tasks.radicle.forge import RadicleForge
from hyperagent_tasks.radicle.home import NodeConfig
from hyperagent_tasks.radicle.standin import StandInForge

HELPER = Path(__file__).resolve().parents[2] / "images" / "radicle" / "rad-push"


def missing(settings: Settings) -> NotReady | DependencyDown | None:
    """Why there is no Radicle here, or None where there is; `DependencyDown` where only the engine is away."""
    fault = _no_image(settings)
    if fault is None or (host_programs() and HELPER.exists()):
        return None
    return fault


def _no_image(settings: Settings) -> NotReady | DependencyDown | None:
    try:
        client = docker.from_env(timeout=5)
        client.images.get(settings.radicle_image)
    except ImageNotFound:
        return NotReady(f"The image {settings.radicle_image} is missing.", mend="Run `ops/parts radicle-image`.")
    except (DockerException, requests.RequestException):
        told = "Neither does a Docker engine answer, nor is there rad on this host."
        return DependencyDown(told, mend="Start the engine: `ops/parts engine` as root, or `systemctl start docker`.")
    return None


def choose_forge(settings: Settings, kind: str, *, instance: str, gitgate: GitGate) -> Forge:
    """The forge called `kind`: `radicle` or `stand-in`."""
    if kind == "stand-in":
        return StandInForge(settings.home / "stand-in", gitgate)
    passphrase = settings.radicle_passphrase.reveal()
    config = NodeConfig(
        settings.radicle_alias, settings.radicle_network, settings.radicle_listen, tuple(settings.radicle_connect)
    )
    executor = _executor(settings, instance, passphrase)
    return RadicleForge(settings.rad_home, executor, config, passphrase=bool(passphrase))


def _executor(settings: Settings, instance: str, passphrase: str) -> Executor:
    programs = host_programs()
    if programs and HELPER.exists() and _no_image(settings) is not None:
        return HostExecutor(programs=programs, helper=HELPER, home=settings.rad_home, passphrase=passphrase)
    repos = settings.home / "repos"
    repos.mkdir(parents=True, exist_ok=True, mode=0o700)
    return ContainerExecutor(
        instance=instance,
        image=settings.radicle_image,
        home=settings.rad_home,
        repos=repos,
        network=settings.radicle_container_network,
        passphrase=passphrase,
    )
