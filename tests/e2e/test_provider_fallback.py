"""A provider that fails in the middle of an agent run: the gateway moves the run to the next model of the same CLI."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import parts
from tests.harness import Host, plan_of

USAGE = {"input": 1_000_000, "output": 0}
WRITE = {"calls": [{"op": "write", "path": "NOTES.txt", "content": "kept\n"}], "usage": USAGE}
AGAIN = {"calls": [{"op": "shell", "command": "cat NOTES.txt > more.txt"}], "usage": USAGE}
TURNS = [WRITE, AGAIN, {"text": "Done.", "usage": USAGE}]
QUOTA = {"turn": 1, "status": 402, "message": "insufficient_quota"}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A HyperAgent whose first model runs out of quota in the middle of a conversation, and whose second has a price."""
    parts.require_docker()
    parts.require_runner_image()
    home = Path(f"/tmp/ha-fallback-{uuid.uuid4().hex[:6]}")
    scenarios = home / "scenarios"
    scenarios.mkdir(parents=True)
    for name, faults in (("first", [QUOTA]), ("second", [])):
        script = {"turns": TURNS, "faults": faults}
        document = {"scenario": name, "scripts": {"*": {"coder": script}}}
        (scenarios / f"{name}.json").write_text(json.dumps(document))
    prices = {name: {"input": 2, "output": 10} for name in ("first", "second")}
    settings = {
        "HYPERAGENT_SCENARIO_DIRS": scenarios,
        "HYPERAGENT_FORGE": "stand-in",
        "HYPERAGENT_LEASE_SECONDS": 60,
        "HYPERAGENT_HEARTBEAT_SECONDS": 3,
        "HYPERAGENT_REQUEUE_AFTER": 300,
        "HYPERAGENT_VERIFY": "off",
        "WORKFLOW_AGENT_MODEL": "replay/first",
        "HYPERAGENT_PROVIDERS": json.dumps({"replay": {"kind": "replay", "prices": prices}}),
    }
    try:
        with Host(home, agent="mock", **settings) as host:
            host.register_example()
            yield host
    finally:
        shutil.rmtree(home, ignore_errors=True)


def run(host: Host, **chosen: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The workflow of one step, ended or paused, and its agent runs."""
    fallback = ["mock:replay/second", "opencode:replay/second"]
    document = plan_of([{"id": "note", "metadata": {"agent_fallback": fallback, **chosen}}], checks=["test -f more.txt"])
    workflow = host.run(document, timeout=400)
    return workflow, workflow["steps"][0]["attempts"][0]["agent_runs"]


def test_one_agent_run_goes_on_with_the_next_model_and_all_records_say_which(host: Host) -> None:
    workflow, runs = run(host)
    assert workflow["state"] == "done", workflow["reason"]
    assert [(r["provider"], r["model"], r["end_reason"]) for r in runs] == [("mock", "replay/second", "done")]
    assert runs[0]["cost_usd"] == pytest.approx(6.0)
    events = host.events(workflow["id"])
    moved = [e["data"] for e in events if e["kind"] == "agent.fallback"]
    assert [(e["by"], e["from"], e["to"]) for e in moved] == [("gateway", "replay/first", "replay/second")]
    assert "quota" in moved[0]["why"]
    ended = next(e["data"] for e in events if e["kind"] == "agent.ended")
    assert ended["answered"] == {"replay/first": 1, "replay/second": 2}


def test_money_spent_pauses_the_workflow_after_at_most_one_request_too_many(host: Host) -> None:
    workflow, runs = run(host, budgets={"step": {"usd": 3.0}})
    assert workflow["state"] == "paused"
    assert "US dollars" in workflow["reason"]
    assert (runs[0]["end_reason"], runs[0]["requests"], runs[0]["cost_usd"]) == ("budget", 2, pytest.approx(4.0))
