"""Which version of a CLI an agent run used: the image's label in Docker, else what the CLI says of itself."""

from __future__ import annotations

import contextlib
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
        return (labels(settings.runner_image) or {}).get(f"hyperagent.{agent.name}")
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
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip()[:64] or None
