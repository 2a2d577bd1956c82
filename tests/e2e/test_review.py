"""Rounds, verdicts and fallback on real parts: agents in containers, the gateway's replay as their model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import parts
from tests.harness import ROOT, Host, plan_of
from tests.liar_cases import AGAIN, GOOD, YES, coder, says, shell, speaks, write

QUOTA = {"status": 402, "message": "insufficient_quota", "turn": 1}
HALF = {**coder(write("def sub(a, b):\n    return a - b\n", "sub.py")), "faults": [QUOTA]}
REST = coder(shell("test -f sub.py"), write(GOOD))
FALLBACK = {"coder": HALF, "coder.2": REST, "verifier": YES}
CHECK = ["python3 check.py", "test -f sub.py"]
TIMES = 2
DRAFT = plan_of([{"id": "mend-add"}, {"id": "add-sub", "depends_on": ["mend-add"]}], checks=["python3 check.py"])


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A HyperAgent with the scripts above."""
    parts.require_docker()
    parts.require_runner_image()
    home = Path(f"/tmp/ha-review-{uuid.uuid4().hex[:6]}")
    scenarios = home / "scenarios"
    scenarios.mkdir(parents=True)
    scripts = {
        "plan": {"planner": speaks("I would mend it."), "planner.2": speaks(json.dumps(DRAFT))},
        **{f"fall-{n}": FALLBACK for n in range(TIMES)},
        "rounds": {"coder": coder(write(GOOD, "other.py")), "coder.2": coder(write()), "verifier": AGAIN, "verifier.2": YES},
        "noted": {"coder": coder(write()), "verifier": says("approved", "Right.", findings=[{"message": "Terse.", "line": 1}])},
    }
    (scenarios / "review.json").write_text(json.dumps({"scenario": "review", "scripts": scripts}))
    settings = {
        "HYPERAGENT_SCENARIO_DIRS": scenarios,
        "HYPERAGENT_FORGE": "stand-in",
        "HYPERAGENT_LEASE_SECONDS": 30,
        "HYPERAGENT_HEARTBEAT_SECONDS": 3,
        "HYPERAGENT_REQUEUE_AFTER": 300,
        "WORKFLOW_AGENT_MODEL": "replay/review",
    }
    try:
        with Host(home, agent="opencode", **settings) as host:
            host.register_example()
            yield host
    finally:
        shutil.rmtree(home, ignore_errors=True)


def test_the_next_agent_goes_on_with_the_work_so_far(host: Host) -> None:
    pairs = [("opencode", "mock"), ("mock", "opencode")]
    plans = []
    for n in range(TIMES):
        first, second = pairs[n % 2]
        chosen = {"agent_provider": first, "agent_fallback": [f"{second}:replay/review"], "verifier_provider": "mock"}
        plans.append(plan_of([{"id": f"fall-{n}", "metadata": chosen}], checks=CHECK))
    ids = [host.submit(document) for document in plans]
    ended = [host.wait(found, timeout=400) for found in ids]
    assert [workflow["state"] for workflow in ended] == ["done"] * TIMES, [w["reason"] for w in ended]
    for workflow in ended:
        runs = [run for run in workflow["steps"][0]["attempts"][0]["agent_runs"] if run["role"] == "coder"]
        assert {run["provider"] for run in runs} == {"mock", "opencode"}
        assert [run["end_reason"] for run in runs] == ["quota", "done"]
        assert [e["kind"] for e in host.events(workflow["id"])].count("agent.fallback") == 1


def test_changes_requested_becomes_the_next_round_with_the_work_so_far(host: Host) -> None:
    workflow = host.run(plan_of([{"id": "rounds"}], checks=["test -f other.py"]))
    attempt = workflow["steps"][0]["attempts"][0]
    assert workflow["state"] == "done", workflow["reason"]
    assert [v["decision"] for v in attempt["verdicts"]] == ["changes_requested", "approved"]
    assert [(r["role"], r["round"]) for r in attempt["agent_runs"]] == [
        ("coder", 1), ("verifier", 1), ("coder", 2), ("verifier", 2)
    ]  # fmt: skip
    assert [c["round"] for c in attempt["checks"]] == [1, 2]


def test_who_said_what_is_shown_and_in_the_provenance(host: Host) -> None:
    workflow = host.run(plan_of([{"id": "noted"}], checks=["python3 check.py"]))
    shown = host.cli("show", workflow["id"]).stdout
    assert "round 1 verifier: opencode replay/review, done" in shown
    assert "approved: Right." in shown
    assert "Terse." in shown
    place = next(a["location"] for a in workflow["artifacts"] if a["name"] == "provenance.json")
    extension: dict[str, Any] = json.loads(Path(place).read_text())["predicate"]["https://hyperagent.dev/ext/agent-step/v1"]
    assert extension["seen"]["verdict"]["decision"] == "approved"
    assert extension["seen"]["verdict"]["verifier"]["model"] == "replay/review"


def test_the_truth_table_of_a_lying_agent_is_right(host: Host) -> None:
    done = subprocess.run([sys.executable, "-m", "tests.liars", "--json"], capture_output=True, text=True, cwd=ROOT, timeout=280)
    told = json.loads(done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(told["cases"]) >= 22
    assert (told["false_pass"], told["false_fail"]) == (0, 0)


def test_a_goal_becomes_a_plan_to_edit_and_submit(host: Host, tmp_path: Path) -> None:
    out = tmp_path / "plan.yaml"
    nowhere = host.cli("plan", "example", "Mend the calculator and teach it to subtract.", "-o", "/nowhere/p.yaml", check=False)
    assert "cannot be written" in nowhere.stderr
    host.cli("plan", "show", nowhere.stderr.rsplit("plan show ", 1)[1].split()[0], "-o", str(out))
    assert out.read_text().startswith("kind: ")
    assert host.cli("plan", "check", str(out)).stdout.startswith("ok: 2 planner tasks")


@pytest.mark.parametrize(
    ("argv", "told"),
    [(["nowhere", "goal"], "no project 'nowhere'"), (["example", " "], "goal"), (["nonsense", "goal"], "no project 'nonsense'")],
)
def test_a_draft_that_cannot_be_is_refused_in_a_sentence(host: Host, argv: list[str], told: str) -> None:
    done = host.cli("plan", *argv, check=False)
    assert done.returncode != 0
    assert told in done.stderr
