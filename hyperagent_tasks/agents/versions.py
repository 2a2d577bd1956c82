"""Which version of a CLI an agent run used: the image's label in Docker, else what the CLI says of itself."""

from __future__ import annotations

import subprocess
from functools import lru_cache

import docker
import requests
from docker.errors import DockerException

from hyperagent_common.settings import Settings
from hyperagent_tasks.agents.base import Agent

SECONDS = 20


def of(settings: Settings, sandbox: str, agent: Agent) -> str | None:
    """The version, None where nobody says."""
    if sandbox == "docker":
        return _labelled(settings.runner_image, agent.name)
    return _said(tuple(agent.probe()))


@lru_cache(maxsize=8)
def _labelled(image: str, name: str) -> str | None:
    try:
        found = docker.from_env(timeout=5).images.get(image).labels.get(f"hyperagent.{name}")
    except (DockerException, requests.RequestException):
        return None
    return None if found is None else str(found)


@lru_cache(maxsize=8)
def _said(argv: tuple[str, ...]) -> str | None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip()[:64] or None
