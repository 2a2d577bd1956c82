"""Real CLIs of different dialects within one HyperAgent: one goes on for another, one judges another, each may plan."""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import parts
from tests.bench import fallback
from tests.harness import Host, plan_of
from tests.liar_cases import YES, coder, says, speaks, write

DRAFT = plan_of([{"id": "mend-add"}, {"id": "add-sub", "depends_on": ["mend-add"]}], checks=["python3 check.py"])
STALE = '{"nonce": "0123456789abcdef01234567", "decision": "approved", "summary": "Of another run."}'


@pytest.fixture
def home() -> Iterator[Path]:
    """A short path: Unix sockets live in it."""
    parts.require_docker()
    parts.require_runner_image()
    path = Path(f"/tmp/ha-agents-{uuid.uuid4().hex[:6]}")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _host(home: Path, scripts: dict[str, Any], **settings: object) -> Iterator[Host]:
    (home / "scenarios").mkdir(parents=True)
    (home / "scenarios" / "roles.json").write_text(json.dumps({"scenario": "roles", "scripts": scripts}))
    settings |= {"HYPERAGENT_SCENARIO_DIRS": home / "scenarios", "HYPERAGENT_FORGE": "stand-in", "HYPERAGENT_LEASE_SECONDS": 60}
    settings |= {"WORKFLOW_AGENT_MODEL": "replay/roles", "WORKFLOW_AGENT_MAX_ROUNDS": 1, "HYPERAGENT_MAX_ATTEMPTS": 1}
    with Host(home, agent="claude", **settings) as host:
        host.register_example()
        yield host


def test_another_real_cli_goes_on_with_the_work_so_far(home: Path) -> None:
    rows = fallback.table(home, 2)
    assert all(row["whole"] for row in rows), rows


def test_each_role_has_a_cli_of_its_own_and_its_run_says_which(home: Path) -> None:
    scripts = {
        "good": {"coder": coder(write()), "verifier": YES},
        "stale": {"coder": coder(write()), "verifier": speaks(STALE)},
        "no": {"coder": coder(write()), "verifier": says("rejected", "Not what was asked.")},
    }
    with _host(home, scripts, HYPERAGENT_VERIFIER_PROVIDER="codex") as host:
        ids = {name: host.submit(plan_of([{"id": name}], checks=["python3 check.py"])) for name in ("good", "stale", "no")}
        ended = {name: host.wait(found, timeout=600) for name, found in ids.items()}
        assert {name: workflow["state"] for name, workflow in ended.items()} == {
            "good": "done",
            "stale": "failed",
            "no": "failed",
        }
        assert "nonce" in ended["stale"]["reason"]
        runs = ended["good"]["steps"][0]["attempts"][0]["agent_runs"]
        assert [(run["role"], run["provider"], run["end_reason"]) for run in runs] == [
            ("coder", "claude", "done"),
            ("verifier", "codex", "done"),
        ]
        for run in runs:
            assert run["session_id"]
            assert run["cli_version"][0].isdigit()
            assert run["exit_code"] == 0
            assert run["input_tokens"] == run["claimed"]["usage"]["input"] > 0
            assert Path(run["log"]).stat().st_size


@pytest.mark.parametrize("planner", ["claude", "codex"])
def test_a_planner_of_another_cli_drafts_a_plan_and_its_runs_are_on_record(home: Path, planner: str) -> None:
    scripts = {"plan": {"planner": speaks("I would mend it."), "planner.2": speaks(json.dumps(DRAFT))}}
    with _host(home, scripts, HYPERAGENT_PLANNER_PROVIDER=planner) as host:
        made = host.json("plan", "example", "Mend the calculator and teach it to subtract.")
    assert [task["id"] for task in made["plan"]["tasks"]] == ["mend-add", "add-sub"]
    assert [(run["provider"], run["end_reason"]) for run in made["agent_runs"]] == [(planner, "done")] * 2
    for run in made["agent_runs"]:
        assert run["session_id"]
        assert run["input_tokens"] == run["claimed"]["usage"]["input"] > 0
        assert Path(run["log"]).stat().st_size
