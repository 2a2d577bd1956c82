"""Which version of a CLI an agent run used: the image's label in Docker, else what the CLI says of itself."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Mapping
from functools import lru_cache

import docker
import requests
from docker.errors import DockerException

from hyperagent_common.errors import DependencyDown
from hyperagent_common.settings import Settings
from hyperagent_tasks import trouble
from hyperagent_tasks.agents.base import Agent

SECONDS = 20


def of(settings: Settings, sandbox: str, agent: Agent) -> str | None:
    """The version, None where nobody says or can be asked now."""
    try:
        return labelled(labels(settings.runner_image) or {}, agent) if sandbox == "docker" else said(agent)
    except DependencyDown:
        return None


def labelled(found: Mapping[str, str], agent: Agent) -> str | None:
    """What the labels of an image say of the CLI in it."""
    return found.get(f"hyperagent.{agent.name}")


def said(agent: Agent) -> str | None:
    """What the CLI on the PATH says, None where it is not there or says nothing. Raises `DependencyDown` where this host has
    no process, memory or time left to ask it: that is not kept, an answer is."""
    return _said(tuple(agent.probe()))


def labels(image: str) -> dict[str, str] | None:
    """The labels of an image, None where it or the engine is not there. Asked each time: an image may be built anew."""
    try:
        with contextlib.closing(docker.from_env(timeout=5)) as client:
            return {str(name): str(value) for name, value in client.images.get(image).labels.items()}
    except (DockerException, requests.RequestException):
        return None


@lru_cache(maxsize=8)
def _said(argv: tuple[str, ...]) -> str | None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise DependencyDown(
            f"The agent CLI {argv[0]} did not tell its version within {SECONDS} s.", mend=trouble.MEND
        ) from error
    except OSError as error:
        if ailing := trouble.named(error):
            raise ailing from error
        return None
    if done.returncode in trouble.KILLED:
        raise DependencyDown(f"The agent CLI {argv[0]} was killed when it was asked for its version.", mend=trouble.MEND)
    return done.stdout.strip()[:64] or None
