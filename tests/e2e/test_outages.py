"""A whole HyperAgent while Redis or the database is away, messages come twice, and two people start it at once."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.chaos.rig import Rig
from tests.e2e.test_orchestration import light, step, until
from tests.harness import ROOT, Host, plan_of


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """A Redis and a PostgreSQL that can be ended and started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CI", "true")
        made = Rig(seed=1, kill=0, stop=0)
        try:
            made.start_redis()
            made.start_database()
            yield made
        finally:
            made.end()
            shutil.rmtree(made.root, ignore_errors=True)


@pytest.fixture(scope="module")
def host(rig: Rig) -> Iterator[Host]:
    """A host on them, whose messages are delivered again after two seconds; started twice at once."""
    settings = {
        "HYPERAGENT_DATABASE_URL": rig.url,
        "HYPERAGENT_BROKER_URL": rig.broker,
        "HYPERAGENT_REQUEUE_AFTER": 2,
        "HYPERAGENT_VISIBILITY_TIMEOUT": 2,
    }
    made = light(rig.root / "h", **settings)
    argv = [sys.executable, "-m", "hyperagent_api.cli", "up", "--detach"]
    ups = [subprocess.Popen(argv, env=made.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    said = [up.communicate(timeout=180) for up in ups]
    assert [up.returncode for up in ups] == [0, 0], said
    with made:
        made.register_example()
        yield made


def test_two_that_start_it_at_once_start_one(host: Host) -> None:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            if process.environ().get("HYPERAGENT_HOME") == str(host.home):
                found.append(" ".join(process.info["cmdline"] or []))
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    assert sum("hyperagent_api.supervise" in line for line in found) == 1, found
    assert sum("hyperagent_tasks.gateway" in line for line in found) == 1, found


def test_a_step_longer_than_the_visibility_timeout_is_done_once(host: Host) -> None:
    checks = ["sleep 14"]  # the broker's client looks for what is overdue each 10 s
    ended = host.run(plan_of([{"id": "a"}, {"id": "b", "depends_on": ["a"]}], checks=checks))
    assert ended["state"] == "done", ended["reason"]
    assert [s["attempt_count"] for s in ended["steps"]] == [1, 1]
    assert (host.home / "logs" / "steps.log").read_text().count('"step.refused"') >= 2  # they did come again


def test_every_event_is_a_line_of_json_on_stdout_and_a_row_with_ids_and_latencies(host: Host) -> None:
    workflow = host.run(plan_of([{"id": "a"}]))
    rows = {entry["id"]: entry for entry in host.events(workflow["id"])}
    lines: dict[int, dict[str, Any]] = {}
    for name in ("steps.log", "api.log", "control.log"):
        for line in (host.home / "logs" / name).read_text(errors="replace").splitlines():
            if line.startswith("{") and workflow["id"] in line and '"hyperagent.events"' in line:
                told = json.loads(line)
                lines[told["id"]] = told
    assert lines.keys() == rows.keys()
    kinds = [entry["kind"] for entry in rows.values()]
    assert {"workflow.submitted", "step.queued", "step.claimed", "agent.started", "step.done", "workflow.ended"} <= set(kinds)
    for number, row in rows.items():
        assert {key: lines[number][key] for key in row} == row
        if row["kind"] in ("step.claimed", "step.done"):
            assert row["latency_ms"] is not None
            assert all(row[key] for key in ("step_id", "attempt_id", "worker"))


def test_a_plan_submitted_while_redis_is_away_is_taken_and_done_once_it_is_back(host: Host, rig: Rig) -> None:
    rig.redis.end()
    try:
        began = time.monotonic()
        workflow_id = host.submit(plan_of([{"id": "a"}]))
        assert time.monotonic() - began < 60
        assert host.workflow(workflow_id)["state"] == "running"
        assert host.get("/api/health/workflows")["queue"]["queued"] >= 1
    finally:
        rig.start_redis()
    assert host.wait(workflow_id)["state"] == "done"


def test_actions_while_the_database_is_away_say_so_and_change_nothing(host: Host, rig: Rig) -> None:
    workflow_id = host.submit(plan_of([{"id": "a"}], checks=["sleep 3"]))
    until(lambda: step(host, workflow_id, "a")["state"] == "running", 60)
    rig.database.end(signal.SIGINT, group=False)
    try:
        for path in ("pause", "cancel", "steps/a/retry"):
            status, told = host.request("POST", f"/api/v1/workflows/{workflow_id}/{path}")
            assert (status, told["type"].rsplit("/", 1)[1]) == (503, "dependency-down"), told
        assert host.request("POST", "/api/v1/dead-letters/01a214f0/replay")[0] == 503
        assert host.request("GET", "/api/health/workflows")[0] == 503
        assert host.cli("pause", workflow_id, check=False).returncode == 5
    finally:
        rig.start_database()
    ended = host.wait(workflow_id)
    assert ended["state"] == "done", ended["reason"]
    assert ended["version"] == 2  # it ended; nobody paused or cancelled it


def test_a_worker_that_stands_still_is_shown_and_the_reconciler_says_when_it_looked(host: Host) -> None:
    health = host.get("/api/health/workflows")
    assert len(health["reconcilers"]) == 1
    assert health["reconcilers"][0]["last_seen_seconds"] < 60
    assert health["held"] == 0
    paused = host.submit(plan_of([{"id": "a"}, {"id": "b", "depends_on": ["a"]}], checks=["sleep 2"]))
    until(lambda: step(host, paused, "a")["state"] == "running", 60)
    host.json("pause", paused)
    until(lambda: host.get("/api/health/workflows")["queue"] == {"queued": 0, "running": 0}, 60)
    assert host.get("/api/health/workflows")["oldest_queued_seconds"] is None
    host.json("cancel", paused)
