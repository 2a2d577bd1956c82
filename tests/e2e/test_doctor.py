"""The doctor and the API name what is wrong and how to mend it, before an agent starts."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperagent_common import db
from hyperagent_common.ids import new_id
from hyperagent_common.models import Project
from hyperagent_common.states import ProjectState
from hyperagent_tasks.parts import instance
from tests import parts
from tests.harness import Host, plan_of

NO_ENGINE = "unix:///nonexistent/docker.sock"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A HyperAgent with every real part."""
    parts.require_runner_image()
    parts.require_radicle_image()
    home = Path(f"/tmp/ha-doc-{uuid.uuid4().hex[:6]}")
    try:
        with Host(home) as made:
            made.register_example()
            yield made
    finally:
        subprocess.run(["rm", "-rf", str(home)], check=False, timeout=60)


def doctor(host: Host, **env: str) -> tuple[int, dict[str, Any]]:
    """Exit code and checks by name."""
    done = host.cli("doctor", "--json", check=False, **env)
    said = json.loads(done.stdout.strip().splitlines()[-1])
    assert said["ok"] is (done.returncode == 0)
    return done.returncode, {check["name"]: check for check in said["checks"]}


def test_everything_right(host: Host) -> None:
    code, checks = doctor(host)
    assert code == 0, checks
    assert all(check["ok"] for check in checks.values())
    assert {"database", "broker", "storage", "sandbox", "gateway", "model", "forge", "disk"} <= set(checks)


@pytest.mark.parametrize(
    ("env", "name", "word", "mend"),
    [
        ({"DOCKER_HOST": NO_ENGINE}, "sandbox", "engine", "ops/parts engine"),
        ({"HYPERAGENT_RUNNER_IMAGE": "hyperagent/none:dev"}, "sandbox", "hyperagent/none:dev", "ops/parts runner-image"),
        ({"WORKFLOW_AGENT_MODEL": "replay/nothing"}, "model", "nothing", "Known are"),
        ({"WORKFLOW_AGENT_MODEL": "paid/m"}, "model", "not configured", "providers.paid"),
        ({"HYPERAGENT_BROKER_URL": "redis://127.0.0.1:9/0"}, "broker", "Redis", "HYPERAGENT_BROKER_URL"),
        ({"HYPERAGENT_DATABASE_URL": "postgresql://127.0.0.1:9/x"}, "database", "does not answer", "database_url"),
        ({"HYPERAGENT_RADICLE_HOME": "/tmp/" + "x" * 100}, "forge", "too long", "HYPERAGENT_RADICLE_HOME"),
    ],
)
def test_what_is_wrong_is_named_with_its_mend(host: Host, env: dict[str, str], name: str, word: str, mend: str) -> None:
    code, checks = doctor(host, **env)
    assert code == 5
    assert not checks[name]["ok"], checks
    told = f"{checks[name]['message']} {checks[name]['mend']}"
    assert word in told
    assert mend in told


def test_a_dirty_radicle_home_is_named(host: Host, tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir()
    code, checks = doctor(host, HYPERAGENT_RADICLE_HOME=str(tmp_path))
    assert code == 5
    assert "dirty" in checks["forge"]["message"]
    assert checks["forge"]["mend"]


def test_wrong_settings_are_all_named_at_once(host: Host) -> None:
    done = host.cli("doctor", check=False, HYPERAGENT_API_PORT="x", HYPERAGENT_NOPE="1")
    assert done.returncode == 2
    assert "HYPERAGENT_API_PORT" in done.stdout
    assert "HYPERAGENT_NOPE" in done.stdout


def test_a_stopped_node_is_named_and_the_api_refuses_before_anything_is_stored(host: Host) -> None:
    node = parts.require_docker().containers.get(f"ha-radicle-{instance(type('S', (), {'home': host.home})())}")
    node.stop(timeout=5)
    try:
        code, checks = doctor(host)
        assert code == 5
        assert "node" in checks["forge"]["message"]
        before = len(host.get("/api/v1/workflows"))
        status, said = _until_refused(host)
        assert status == 503, said
        assert any(entry["field"] == "forge" and "hyperagent up" in entry["message"] for entry in said["errors"])
        assert len(host.get("/api/v1/workflows")) == before
    finally:
        node.start()
    host.await_node()


def _until_refused(host: Host) -> tuple[int, Any]:
    """The API knows what the worker last said: at most one heartbeat ago."""
    deadline = time.monotonic() + 15
    while True:
        status, said = host.request("GET", "/readyz")
        if status == 503 and said.get("errors"):
            body = {"project": "example", "plan": plan_of([{"id": "mend-add"}])}
            return host.request("POST", "/api/v1/workflows", body)
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_without_an_engine_nothing_starts_and_the_api_says_why() -> None:
    home = Path(f"/tmp/ha-eng-{uuid.uuid4().hex[:6]}")
    try:
        with Host(home, DOCKER_HOST=NO_ENGINE) as made:
            url = f"sqlite:///{home / 'hyperagent.db'}"
            with db.transaction(url) as session:
                values = {"name": "p", "source": "/x", "default_branch": "main", "state": ProjectState.READY}
                session.add(Project(id=new_id(), created_at=db.now(session), **values))
            status, said = made.request("POST", "/api/v1/workflows", {"project": "p", "plan": plan_of([{"id": "a"}])})
            assert status == 503, said
            assert {"sandbox", "forge"} <= {entry["field"] for entry in said["errors"]}
            assert made.get("/api/v1/workflows") == []
            db.engine(url).dispose()
    finally:
        subprocess.run(["rm", "-rf", str(home)], check=False, timeout=60)


@pytest.mark.parametrize(
    ("make", "word"),
    [("nothing", "nothing at"), ("directory", "not a git repository"), ("empty", "no commits")],
)
def test_a_repository_that_cannot_be_used_is_refused_and_nothing_stored(host: Host, tmp_path: Path, make: str, word: str) -> None:
    path = tmp_path / "repo"
    if make != "nothing":
        path.mkdir()
    if make == "empty":
        subprocess.run(["git", "init", "-q", str(path)], check=True, timeout=30)
    status, said = host.request("POST", "/api/v1/projects", {"name": "bad", "path": str(path)})
    assert status == 422, said
    assert any(word in entry["message"] for entry in said["errors"])
    assert host.request("GET", "/api/v1/projects/bad")[0] == 404


def test_registering_twice_is_the_same_project(host: Host) -> None:
    path = str(host.home / "example")
    status, again = host.request("POST", "/api/v1/projects", {"name": "example", "path": path})
    assert status == 200
    assert again["rid"].startswith("rad:z")
    assert host.request("POST", "/api/v1/projects", {"name": "example", "path": "/elsewhere"})[0] == 409
