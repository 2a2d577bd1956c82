"""Real parts for tests: there, or a skip that says how to get it; in CI (CI=true) a missing part is a failure."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NoReturn

import docker
import pytest
from docker.errors import DockerException, ImageNotFound

RADICLE = "cli0.23.0-node0.21.1-remote0.18.1"
RUNNER_IMAGE = "hyperagent/runner:dev"
RADICLE_IMAGE = "hyperagent/radicle:dev"


def missing(what: str, mend: str) -> NoReturn:
    """Skip on a laptop, fail in CI."""
    message = f"{what} is missing; to get it: {mend}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def require_docker() -> Any:
    """A client of a running engine."""
    try:
        client = docker.from_env(timeout=60)
        client.ping()
    except DockerException:
        missing("a Docker engine", "ops/parts engine")
    return client


def _image(name: str, step: str) -> str:
    try:
        require_docker().images.get(name)
    except ImageNotFound:
        missing(f"the image {name}", f"ops/parts {step}")
    return name


def require_runner_image() -> str:
    """The runner image's name."""
    return _image(RUNNER_IMAGE, "runner-image")


def require_radicle_image() -> str:
    """The Radicle image's name."""
    return _image(RADICLE_IMAGE, "radicle-image")


def require_radicle() -> Path:
    """The directory that holds rad, radicle-node and git-remote-rad."""
    cache = Path(os.environ.get("HYPERAGENT_CACHE", Path.home() / ".cache" / "hyperagent"))
    path = cache / "radicle" / RADICLE / "bin"
    if not (path / "git-remote-rad").exists():
        missing("Radicle", "ops/parts radicle")
    return path


def require_redis_server() -> str:
    """Debian's redis-server."""
    found = shutil.which("redis-server")
    return found if found else missing("redis-server", "ops/parts services")


def require_postgres() -> Path:
    """The directory of PostgreSQL's server programs."""
    for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (path / "postgres").exists():
            return path
    missing("PostgreSQL", "ops/parts services")


def require_chromium() -> str:
    """The browser."""
    found = shutil.which("chromium")
    return found if found else missing("Chromium", "ops/parts browser")
