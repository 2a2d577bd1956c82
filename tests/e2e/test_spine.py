"""The spine on real parts: real opencode in hardened containers, real Radicle, real Redis, SQLite and PostgreSQL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import parts
from tests.harness import Host, plan_of

CANARY = "canary-key-7d1f5c0e9b"
PLAN = plan_of(
    [
        {"id": "mend-add", "title": "Mend add", "instructions": "add subtracts; make it add."},
        {"id": "add-sub", "title": "Add sub", "instructions": "Write sub.py with sub.", "depends_on": ["mend-add"]},
    ],
    title='Mend "add" – and add sub',
    checks=["python3 check.py"],
)


@pytest.fixture(scope="module")
def real() -> None:
    """Every real part, or a skip (a failure in CI)."""
    parts.require_docker()
    parts.require_runner_image()
    parts.require_radicle_image()


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A short path: Unix sockets live in it."""
    path = Path(f"/tmp/ha-e2e-{uuid.uuid4().hex[:6]}")
    yield path
    subprocess.run(["rm", "-rf", str(path)], check=False, timeout=60)


@pytest.fixture(scope="module")
def host(real: None, home: Path) -> Iterator[Host]:
    """A HyperAgent with real parts on SQLite and its own Redis, the example registered."""
    providers = json.dumps({"paid": {"kind": "openai", "base_url": "http://127.0.0.1:9", "api_key": CANARY}})
    with Host(home, HYPERAGENT_PROVIDERS=providers) as host:
        host.register_example()
        yield host


@pytest.fixture(scope="module")
def finished(host: Host) -> dict[str, Any]:
    """The two-step workflow, ended."""
    return host.run(PLAN)


def test_two_steps_end_as_two_commits_on_one_patch(finished: dict[str, Any]) -> None:
    assert finished["state"] == "done", finished["reason"]
    commits = [step["commit"] for step in finished["steps"]]
    assert len(set(commits)) == 2
    assert finished["patch"]["head"] == commits[-1]
    assert [event["kind"] for event in finished["patch"]["events"]] == ["opened", "reviewed", "revised", "reviewed"]
    assert [review["state"] for review in finished["patch"]["reviews"]] == ["posted", "posted"]


def test_every_part_was_the_real_one(finished: dict[str, Any]) -> None:
    assert finished["parts"] == {
        "agent": "opencode",
        "sandbox": "docker",
        "forge": "radicle",
        "database": "sqlite",
        "broker": "redis",
    }


def test_the_agent_run_tells_provider_model_session_and_tokens(finished: dict[str, Any]) -> None:
    run = finished["steps"][0]["attempts"][0]["agent_runs"][0]
    assert run["provider"] == "opencode"
    assert run["model"] == "replay/demo"
    assert run["session_id"]
    assert run["end_reason"] == "done"
    assert run["requests"] >= 2
    assert run["input_tokens"] > 0


def test_the_checks_passed_on_the_sealed_commit(finished: dict[str, Any]) -> None:
    for step in finished["steps"]:
        assert [check["passed"] for check in step["attempts"][0]["checks"]] == [True]


def test_logs_and_provenance_are_where_the_answer_says(finished: dict[str, Any]) -> None:
    for step in finished["steps"]:
        artifacts = {a["name"]: a for a in finished["artifacts"] if a["step_id"] == step["id"]}
        assert {"agent-stream.jsonl", "gateway.jsonl", "provenance.json", "sealed.bundle"} <= set(artifacts)
        assert any(name.startswith("workflow-logs/") for name in artifacts)
        statement = json.loads(Path(artifacts["provenance.json"]["location"]).read_text())
        assert statement["subject"][0]["digest"]["gitCommit"] == step["commit"]
        trusts = {b["name"]: b["annotations"]["trust"] for b in statement["predicate"]["runDetails"]["byproducts"]}
        assert trusts["gateway.jsonl"] == "observed"
        assert trusts["agent-stream.jsonl"] == "claimed"


def test_nothing_is_left_behind(host: Host, finished: dict[str, Any]) -> None:
    client = parts.require_docker()
    deadline = time.monotonic() + 15
    while True:
        left = client.containers.list(all=True, filters={"label": f"hyperagent.workflow={finished['id']}"})
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert left == []
    assert list((host.home / "work").iterdir()) == []


def test_a_second_radicle_node_reads_the_patch_with_both_commits(host: Host, finished: dict[str, Any]) -> None:
    from tests.radicle_peer import peer_reading

    with peer_reading(host, finished["patch"]["rid"]) as peer:
        patch = peer.patch(finished["patch"]["patch_id"])
        assert patch["title"] == PLAN["title"]
        heads = [patch["revisions"][r]["oid"] for r in patch["timeline"] if r in patch["revisions"]]
        assert heads == [step["commit"] for step in finished["steps"]]
        assert peer.commit_exists(heads[0])
        assert peer.commit_exists(heads[1])


def test_the_provider_key_is_nowhere_in_a_running_agent_container(host: Host) -> None:
    client = parts.require_docker()
    workflow_id = host.submit(plan_of([{"id": "mend-add"}]))
    container = _running_agent(client, workflow_id)
    seen = json.dumps(container.attrs)
    tree = "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null; env; grep -rs . /in /home/agent /run/ha /tmp"
    code, output = container.exec_run(["sh", "-c", tree], user="10001:10001")
    assert CANARY not in seen
    assert CANARY.encode() not in output
    assert b"OPENCODE_CONFIG_CONTENT" in output, code
    assert host.wait(workflow_id)["state"] == "done"


def _running_agent(client: Any, workflow_id: str) -> Any:
    deadline = time.monotonic() + 60
    wanted = {"label": [f"hyperagent.workflow={workflow_id}", "hyperagent.role=agent"]}
    while time.monotonic() < deadline:
        for container in client.containers.list(filters=wanted):
            return container
        time.sleep(0.05)
    raise AssertionError("no agent container was seen")


def test_killing_the_worker_in_the_middle_of_step_two_leaves_one_patch_and_two_commits(host: Host) -> None:
    client = parts.require_docker()
    workflow_id = host.submit(PLAN)
    deadline = time.monotonic() + 180
    while host.workflow(workflow_id)["steps"][0]["state"] != "done":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    _running_agent(client, workflow_id)
    for pid in _worker_pids(host):
        os.kill(pid, signal.SIGKILL)
    workflow = host.wait(workflow_id, timeout=120)
    assert workflow["state"] == "done", workflow["reason"]
    commits = [step["commit"] for step in workflow["steps"]]
    assert [len(step["attempts"]) for step in workflow["steps"]] == [1, 2]
    assert len(set(commits)) == 2
    assert [event["kind"] for event in workflow["patch"]["events"]] == ["opened", "reviewed", "revised", "reviewed"]
    log = _branch_log(host, workflow)
    assert log == commits


def _worker_pids(host: Host) -> list[int]:
    """Every process of the step worker of this host."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            argv = (path / "cmdline").read_bytes()
            environ = (path / "environ").read_bytes()
        except OSError:
            continue
        if b"hyperagent_tasks.worker" in argv and b"-Qsteps" in argv.replace(b"\0", b"") and str(host.home).encode() in environ:
            found.append(int(path.name))
    assert found
    return found


def _branch_log(host: Host, workflow: dict[str, Any]) -> list[str]:
    repo = host.home / "repos" / "example.git"
    done = subprocess.run(
        ["git", "-C", str(repo), "rev-list", "--reverse", f"{workflow['base_commit']}..{workflow['branch']}"],
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    return done.stdout.split()


def test_an_agent_that_does_nothing_fails_the_step_with_the_reason(host: Host) -> None:
    workflow = host.run(plan_of([{"id": "idle", "metadata": {"agent_model": "replay/idle"}}]))
    assert workflow["state"] == "failed"
    assert "changed nothing" in workflow["steps"][0]["reason"] or "nothing" in workflow["steps"][0]["reason"]
    assert workflow["patch"] is None


def test_checks_that_fail_stop_the_step_before_any_commit(host: Host) -> None:
    workflow = host.run(plan_of([{"id": "mend-add", "metadata": {"agent_max_rounds": 1}}], checks=["python3 check.py", "false"]))
    assert workflow["state"] == "failed"
    assert "false" in workflow["steps"][0]["reason"]
    assert workflow["steps"][0]["commit"] is None
    assert [c["passed"] for c in workflow["steps"][0]["attempts"][0]["checks"]] == [True, False]


def test_the_same_flow_runs_on_postgresql_and_debians_redis(real: None, postgres_url: str, redis_url: str) -> None:
    home = Path(f"/tmp/ha-pg-{uuid.uuid4().hex[:6]}")
    try:
        with Host(home, HYPERAGENT_DATABASE_URL=postgres_url, HYPERAGENT_BROKER_URL=redis_url) as host:
            host.register_example()
            workflow = host.run(PLAN)
            assert workflow["state"] == "done", workflow["reason"]
            assert workflow["parts"]["database"] == "postgresql"
            assert len({step["commit"] for step in workflow["steps"]}) == 2
    finally:
        subprocess.run(["rm", "-rf", str(home)], check=False, timeout=60)


def test_two_independent_steps_are_merged_onto_one_branch(host: Host) -> None:
    workflow = host.run(plan_of([{"id": "mend-add"}, {"id": "add-sub"}]))
    assert workflow["state"] == "done", workflow["reason"]
    commits = {step["commit"] for step in workflow["steps"]}
    assert len(commits) == 2
    assert set(_branch_log(host, workflow)) == commits
    assert workflow["patch"]["head"] == _branch_log(host, workflow)[-1]


def test_the_demo_run_twice_makes_one_workflow(host: Host) -> None:
    first = host.json("demo")
    second = host.json("demo")
    assert (first["state"], first["reused"], second["reused"]) == ("done", False, True)
    assert {k: v for k, v in first.items() if k != "reused"} == {k: v for k, v in second.items() if k != "reused"}
    assert [first[k] for k in ("agent", "sandbox", "forge", "broker")] == ["opencode", "docker", "radicle", "redis"]
    assert all(Path(path).exists() for path in first["logs"] + first["provenance"])
