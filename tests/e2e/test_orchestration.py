"""A whole HyperAgent being steered: pause, resume, cancel to nothing, drain, dependencies that are down, two hosts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import harness, parts
from tests.harness import Host, plan_of
from tests.liar_cases import speaks

DIAMOND = [
    {"id": "a"},
    {"id": "b", "depends_on": ["a"]},
    {"id": "c", "depends_on": ["a"]},
    {"id": "d", "depends_on": ["b", "c"]},
]


@pytest.fixture
def home() -> Iterator[Path]:
    """A short path: Unix sockets allow 107 characters."""
    made = Path(f"/tmp/ha-orch-{uuid.uuid4().hex[:6]}")
    yield made
    shutil.rmtree(made, ignore_errors=True)


def light(home: Path, **settings: object) -> Host:
    """A host without Docker and Radicle: what is under test is above both."""
    return Host(home, agent="null", HYPERAGENT_SANDBOX="process", HYPERAGENT_FORGE="stand-in", **settings)


def until(ask: Any, seconds: float = 30) -> Any:
    """Wait for something true."""
    return harness.until(ask, seconds)


def step(host: Host, workflow_id: str, key: str) -> dict[str, Any]:
    """One step as the API tells it."""
    return next(s for s in host.workflow(workflow_id)["steps"] if s["key"] == key)


def test_a_workflow_is_paused_resumed_cancelled_and_every_wrong_order_is_refused(home: Path) -> None:
    with light(home) as host:
        host.register_example()
        first = host.submit(plan_of(DIAMOND, checks=["sleep 1"]))
        assert host.json("pause", first, "--reason", "look")["state"] == "paused"
        status, told = host.request("POST", f"/api/v1/workflows/{first}/pause")
        assert (status, told["title"]) == (409, "The workflow is paused; pause is not possible.")
        status, told = host.request("POST", f"/api/v1/workflows/{first}/resume", {"version": 1})
        assert status == 409
        assert "version 2" in told["title"]
        time.sleep(3)
        assert {s["state"] for s in host.workflow(first)["steps"]} <= {"done", "pending", "queued"}
        assert host.json("resume", first)["state"] == "running"
        assert host.wait(first)["state"] == "done"
        for action in ("pause", "resume", "cancel", "retry"):
            done = host.cli(action, first, check=False)
            assert (done.returncode, "is done" in done.stderr) == (4, True), done.stderr
        status, told = host.request("POST", f"/api/v1/workflows/{first}/pause", {"verzion": 1})
        assert status == 422
        assert told["errors"][0]["field"] == "verzion"
        assert host.request("POST", "/api/v1/workflows/nothing/pause")[0] == 404


def test_a_failed_workflow_is_retried_from_its_dead_letter(home: Path) -> None:
    with light(home) as host:
        host.register_example()
        flag = home / "good"
        workflow_id = host.submit(plan_of([{"id": "a"}, {"id": "b", "depends_on": ["a"]}], checks=[f"test -e {flag}"]))
        failed = host.wait(workflow_id)
        assert failed["state"] == "failed"
        letter = json.loads(host.cli("dead-letters", "list", "--json").stdout)
        assert (letter["workflow_id"], letter["step"], letter["error_type"]) == (workflow_id, "a", "checks-failed")
        flag.touch()
        assert host.json("dead-letters", "replay", letter["id"])["resolution"] == "replayed"
        assert host.wait(workflow_id)["state"] == "done"
        assert host.cli("dead-letters", "discard", letter["id"], check=False).returncode == 4
        assert "No dead letters" in host.cli("dead-letters", "list").stderr


def test_cancel_leaves_no_container_process_lease_or_token(home: Path) -> None:
    client = parts.require_docker()
    parts.require_runner_image()
    with Host(home, agent="null", HYPERAGENT_FORGE="stand-in") as host:
        host.register_example()
        workflow_id = host.submit(plan_of([{"id": "a"}, {"id": "b"}], checks=["sleep 60"]))
        mine = {"label": f"hyperagent.instance={(home / 'instance').read_text().strip()}"}
        until(lambda: len(client.containers.list(filters=mine, ignore_removed=True)) >= 2)
        host.json("cancel", workflow_id)
        assert host.workflow(workflow_id)["state"] == "cancelled"
        until(lambda: not client.containers.list(all=True, filters=mine, ignore_removed=True), 10)
        until(lambda: not list((home / "work").iterdir()), 10)
        health = host.get("/api/health/workflows")
        assert health["queue"] == {"queued": 0, "running": 0}
        assert "workflow.cancelled" in [event["kind"] for event in health["events"]]


def test_a_stopped_worker_hands_its_step_over_within_the_stated_time(home: Path) -> None:
    with light(home, HYPERAGENT_DRAIN_SECONDS=2) as host:
        host.register_example()
        workflow_id = host.submit(plan_of([{"id": "a"}], checks=["sleep 8"]))
        until(lambda: step(host, workflow_id, "a")["state"] == "running")
        time.sleep(1.5)
        host.down()
        host.up()
        ended = host.wait(workflow_id)
        assert ended["state"] == "done"
        kinds = [event["kind"] for event in host.events(workflow_id)]
        assert "step.handed_over" in kinds
        assert "step.expired" not in kinds
        assert ended["steps"][0]["free_attempts"] == 1


def test_a_gateway_that_is_down_costs_no_attempts(home: Path) -> None:
    with light(home, HYPERAGENT_MAX_ATTEMPTS=2) as host:
        host.register_example()
        gateway = next(p for p in psutil.process_iter(["cmdline"]) if _is(p, "hyperagent_tasks.gateway", home))
        gateway.suspend()
        try:
            workflow_id = host.submit(plan_of([{"id": "a"}]))
            waits = until(lambda: (s := step(host, workflow_id, "a"))["free_attempts"] >= 2 and s["reason"] and s, 90)
            assert "gateway" in waits["reason"]  # between two attempts: while one is under way there is none
            assert waits["blocked_since"]
            waiting = host.get("/api/health/workflows")["stuck"]
            assert [entry["why"] for entry in waiting if entry["workflow_id"] == workflow_id] in (["waiting"], [])
        finally:
            gateway.resume()
        assert host.wait(workflow_id)["state"] == "done"


def test_a_draft_whose_worker_is_killed_is_written_by_another(home: Path) -> None:
    scenarios = home / "scenarios"
    scenarios.mkdir(parents=True)
    script = {"scenario": "draft", "scripts": {"plan": {"planner": speaks(json.dumps(plan_of(DIAMOND)))}}}
    (scenarios / "draft.json").write_text(json.dumps(script))
    replay = {"HYPERAGENT_SCENARIO_DIRS": scenarios, "WORKFLOW_AGENT_MODEL": "replay/draft"}
    with Host(home, agent="mock", HYPERAGENT_SANDBOX="process", HYPERAGENT_FORGE="stand-in", **replay) as host:
        host.register_example()
        gateway = next(p for p in psutil.process_iter(["cmdline"]) if _is(p, "hyperagent_tasks.gateway", home))
        gateway.suspend()
        try:
            draft = host.post("/api/v1/projects/example/drafts", {"goal": "A diamond."})["id"]
            until(lambda: host.get(f"/api/v1/drafts/{draft}")["state"] == "running", 60)
            until(lambda: list((home / "work").glob(f"{draft}.1")), 60)
            main = next(p for p in psutil.process_iter(["cmdline"]) if _is(p, "steps", home) and p.children())
            for child in main.children():
                if "celery" in " ".join(child.cmdline()):
                    child.kill()
        finally:
            gateway.resume()
        ended = until(lambda: (d := host.get(f"/api/v1/drafts/{draft}"))["state"] not in ("queued", "running") and d, 120)
        assert (ended["state"], len(ended["plan"]["tasks"])) == ("done", 4), ended
        until(lambda: not list((home / "work").iterdir()), 60)


def _is(process: psutil.Process, module: str, home: Path) -> bool:
    try:
        return module in (process.info["cmdline"] or []) and process.environ().get("HYPERAGENT_HOME") == str(home)
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        return False


def test_health_streams_events_and_standing(home: Path) -> None:
    with light(home) as host:
        host.register_example()
        with urllib.request.urlopen(f"{host.url}/api/health/workflows/stream", timeout=30) as answer:
            workflow_id = host.submit(plan_of([{"id": "a"}]))
            seen: list[str] = []
            while "event: workflow.ended" not in seen:
                seen.append(answer.readline().decode().strip())
                assert len(seen) < 2000
        assert {"event: health", "event: step.claimed", "event: step.done"} <= set(seen)
        assert any(workflow_id in line for line in seen)


@pytest.mark.parametrize("real", [False, True], ids=["light", "docker-and-radicle"])
def test_two_hosts_without_a_shared_folder_finish_one_workflow(home: Path, postgres_url: str, redis_url: str, real: bool) -> None:
    if real:
        parts.require_docker()
        parts.require_runner_image()
        parts.require_radicle_image()
    shared = {
        "HYPERAGENT_DATABASE_URL": postgres_url,
        "HYPERAGENT_BROKER_URL": redis_url,
        "HYPERAGENT_STORAGE_URL": home / "storage",
        "HYPERAGENT_WORKER_CONCURRENCY": 1,
    }
    make = (lambda place: Host(place, agent="null", **shared)) if real else (lambda place: light(place, **shared))
    first, second = make(home / "one"), make(home / "two")
    lines = [{"id": f"l{line}{n}", "depends_on": [f"l{line}{n - 1}"] if n else []} for line in range(4) for n in range(3)]
    with first:
        first.register_example()
        with second:
            workflow_id = first.submit(plan_of([*lines, {"id": "end", "depends_on": [f"l{n}2" for n in range(4)]}]))
            ended = first.wait(workflow_id)
            assert ended["state"] == "done", ended["reason"]
            kept = {str(p.relative_to(second.home)) for p in (second.home / "repos").iterdir()}
    workers = {attempt["worker"].rsplit(":", 1)[1] for s in ended["steps"] for attempt in s["attempts"]}
    assert len(workers) >= 2
    assert any(name.endswith("example.git") for name in kept)
    commits = [s["commit"] for s in ended["steps"]]
    assert len(set(commits)) == len(lines) + 1
    attempts = [attempt for s in ended["steps"] for attempt in s["attempts"]]
    assert "forwarded" in {attempt["error_type"] for attempt in attempts}  # the second host worked, the first published
    assert ended["patch"]["head"] == ended["head"]
    assert [event["kind"] for event in ended["patch"]["events"]].count("opened") == 1


def test_redis_flushed_and_a_worker_killed_in_the_middle_lose_nothing(home: Path, redis_url: str) -> None:
    import redis

    with light(home, HYPERAGENT_BROKER_URL=redis_url, HYPERAGENT_REQUEUE_AFTER=2) as host:
        host.register_example()
        workflow_id = host.submit(plan_of(DIAMOND, checks=["sleep 1"]))
        until(lambda: step(host, workflow_id, "a")["state"] == "running")
        with redis.Redis.from_url(redis_url) as client:
            client.flushdb()
        pid = int(step(host, workflow_id, "a")["attempts"][-1]["worker"].rsplit(":", 1)[1])
        os.kill(pid, signal.SIGKILL)
        assert host.wait(workflow_id)["state"] == "done"
