"""What becomes of a patch on the stand-in: skipped with its reason, or one whose words are a person's to change."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperagent_tasks.gitgate import GitGate
from hyperagent_tasks.radicle.standin import StandInForge
from tests.harness import Host, plan_of

TASKS = [{"id": "one"}, {"id": "two", "depends_on": ["one"]}]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A HyperAgent on the stand-in, with an agent and a verifier that always say yes."""
    home = Path(f"/tmp/ha-pub-{uuid.uuid4().hex[:6]}")
    settings = {"HYPERAGENT_SANDBOX": "process", "HYPERAGENT_FORGE": "stand-in", "HYPERAGENT_VERIFY": "on"}
    settings |= {"HYPERAGENT_API_URL": "", "HYPERAGENT_LEASE_SECONDS": "20"}
    try:
        with Host(home, agent="null", **settings) as made:
            made.register_example()
            yield made
    finally:
        shutil.rmtree(home, ignore_errors=True)


def forge(host: Host) -> StandInForge:
    """The stand-in's file."""
    gate = GitGate(host.home / "repos")
    return StandInForge(host.home / "stand-in", gate)


def patch_of(host: Host, workflow: dict[str, Any]) -> Any:
    """The workflow's patch as the forge tells it."""
    return forge(host).patch(workflow["patch"]["rid"], workflow["patch"]["patch_id"])


def test_a_plan_that_says_so_is_done_without_a_patch(host: Host) -> None:
    workflow = host.run(plan_of(TASKS) | {"settings": {"publish": False}})
    assert (workflow["state"], workflow["patch"]) == ("done", None)
    assert workflow["patch_skip"]["kind"] == "unwanted"
    assert all(step["commit"] for step in workflow["steps"])
    assert [e["kind"] for e in host.events(workflow["id"])].count("patch.skipped") == 1
    assert "no patch: The project or the plan says" in host.cli("show", workflow["id"]).stdout


def test_work_the_checks_refuse_is_no_patch_and_says_why(host: Host) -> None:
    workflow = host.run(plan_of([{"id": "bad", "checks": ["false"]}]))
    assert (workflow["state"], workflow["patch"]) == ("failed", None)
    assert workflow["patch_skip"]["kind"] == "verdict"
    assert "no patch: Step bad: The checks refuse" in host.cli("show", workflow["id"]).stdout


def test_a_patch_stays_with_what_was_approved_when_a_later_step_is_refused(host: Host) -> None:
    workflow = host.run(plan_of([TASKS[0], {**TASKS[1], "checks": ["false"]}]))
    assert workflow["state"] == "failed"
    assert workflow["patch_skip"] is None
    view = patch_of(host, workflow)
    assert view.state == "open"
    assert [head for _, head in view.revisions] == [workflow["steps"][0]["commit"]]
    assert [review.verdict for review in view.reviews] == ["accept"]


def test_two_steps_at_once_end_with_every_verdict_on_the_patch(host: Host) -> None:
    workflow = host.run(plan_of([{"id": f"s{n}", "checks": []} for n in range(2)]))
    assert workflow["state"] == "done", workflow["reason"]
    assert [review["state"] for review in workflow["patch"]["reviews"]] == ["posted"] * 2
    text = "".join(review.summary for review in patch_of(host, workflow).reviews)
    assert all(step["commit"] in text for step in workflow["steps"])


def test_an_archived_patch_ends_the_next_step_with_its_class_until_it_is_reopened(host: Host) -> None:
    workflow_id = host.submit(plan_of([TASKS[0], {**TASKS[1], "checks": ["sleep 4"]}]))
    deadline = time.monotonic() + 120
    while host.workflow(workflow_id)["steps"][0]["state"] != "done":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    patch = host.workflow(workflow_id)["patch"]
    forge(host).by_hand(patch["rid"], patch["patch_id"], state="archived")
    workflow = host.wait(workflow_id)
    assert workflow["state"] == "failed"
    assert workflow["steps"][1]["attempts"][-1]["error_type"] == "patch-closed"
    forge(host).by_hand(patch["rid"], patch["patch_id"], state="open")
    host.cli("retry", workflow_id)
    workflow = host.wait(workflow_id)
    assert workflow["state"] == "done", workflow["reason"]
    assert len(patch_of(host, workflow).revisions) == 2
