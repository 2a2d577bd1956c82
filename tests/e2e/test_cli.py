"""The command line as a person uses it, against a HyperAgent on the stand-ins; and kill -9 at two points."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests import crashpoints, parts
from tests.harness import Host, plan_of


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A HyperAgent that needs no real part: mock agent, plain processes, stand-in forge."""
    home = Path(f"/tmp/ha-cli-{uuid.uuid4().hex[:6]}")
    try:
        with Host(home, agent="mock", HYPERAGENT_SANDBOX="process", HYPERAGENT_FORGE="stand-in") as made:
            made.register_example()
            yield made
    finally:
        subprocess.run(["rm", "-rf", str(home)], check=False, timeout=60)


@pytest.fixture(scope="module")
def workflow(host: Host) -> str:
    """A workflow that ended, submitted as a file and watched."""
    path = host.home / "plan.yaml"
    path.write_text(yaml.safe_dump(plan_of([{"id": "mend-add"}, {"id": "add-sub", "depends_on": ["mend-add"]}])))
    done = host.cli("run", str(path), "--project", "example", "--watch", "--json")
    assert "patch opened" in done.stderr
    said = json.loads(done.stdout.strip().splitlines()[-1])
    assert said["state"] == "done"
    return str(said["id"])


def test_show_watch_and_list_tell_the_same(host: Host, workflow: str) -> None:
    assert host.json("show", workflow[:13])["id"] == workflow
    assert host.json("watch", workflow)["state"] == "done"
    assert json.loads(host.cli("list", "--json").stdout.splitlines()[0])["id"] == workflow
    assert "mend-add" in host.cli("show", workflow).stdout


def test_logs_are_the_agents_own_lines(host: Host, workflow: str) -> None:
    lines = [json.loads(line) for line in host.cli("logs", workflow, "mend-add", "--json").stdout.splitlines()]
    assert any(line.get("type") == "tool_use" for line in lines)
    assert "I will mend it" in host.cli("logs", workflow, "mend-add").stdout


def test_an_artifact_comes_down_whole(host: Host, workflow: str, tmp_path: Path) -> None:
    row = next(a for a in host.workflow(workflow)["artifacts"] if a["name"] == "provenance.json")
    host.cli("artifact", row["id"], "-o", str(tmp_path / "p.json"))
    assert (tmp_path / "p.json").stat().st_size == row["size"]


@pytest.mark.parametrize(
    ("argv", "code", "word"),
    [
        (["show", "ffffffff"], 3, "no workflow"),
        (["project", "show", "nobody"], 3, "no project"),
        (["run", "/nonexistent", "--project", "example"], 2, "cannot be read"),
        (["project", "add", "bad", "/nonexistent"], 2, "nothing at"),
        (["project", "add", "example", "/elsewhere"], 4, "registered from"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_a_refusal_has_its_code_and_sentence(host: Host, workflow: str, argv: list[str], code: int, word: str) -> None:
    done = host.cli(*argv, check=False)
    assert done.returncode == code, done.stderr
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_plan_names_every_fault_as_json(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"kind": "x", "tasks": [{"id": "a"}]}))
    done = host.cli("plan", "check", str(path), "--json", check=False)
    assert done.returncode == 2
    fields = {entry["field"] for entry in json.loads(done.stdout)["errors"]}
    assert {"kind", "title", "tasks[0].title", "tasks[0].instructions"} <= fields


def test_an_api_that_does_not_answer_is_five(host: Host) -> None:
    done = host.cli("list", check=False, HYPERAGENT_API_PORT="9")
    assert done.returncode == 5
    assert "hyperagent up" in done.stderr


def test_a_second_up_changes_nothing(host: Host) -> None:
    before = host.json("status")
    assert host.json("up", "--detach") == before
    assert before["up"]
    assert before["parts"]["sandbox"] == "process"


def test_the_answer_says_that_the_parts_are_not_the_real_ones(host: Host, workflow: str) -> None:
    told = host.workflow(workflow)["parts"]
    assert (told["agent"], told["sandbox"], told["forge"]) == ("mock", "process", "stand-in")


def test_kill_nine_between_commit_and_record_leaves_one_patch() -> None:
    parts.require_runner_image()
    parts.require_radicle_image()
    ended = crashpoints.run(["after_commit", "after_push", "push_opened"], real=True, told=False)
    assert all(crashpoints.well(point) for point in ended), ended
