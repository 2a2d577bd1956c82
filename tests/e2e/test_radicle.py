"""Two isolated Radicle nodes in containers: what one publishes the other reads, whatever is down meanwhile."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperagent_tasks.parts import instance
from tests import harness, parts
from tests.harness import Host, plan_of
from tests.radicle_peer import Peer, peer_reading

TASKS = [{"id": "one", "title": "Mend – “add”"}, {"id": "two", "depends_on": ["one"]}]
TITLE, WORDS = 'Mend "add" – übung 🎉', "Why:\n\n- it subtracts\n- <!-- kept -->"
SLOW = ["python3 check.py", "sleep 6"]
"""Checks long enough to do something to the node before the push."""


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A HyperAgent on real Radicle with an agent and a verifier that always say yes."""
    parts.require_docker()
    parts.require_runner_image()
    parts.require_radicle_image()
    home = Path(f"/tmp/ha-rad-{uuid.uuid4().hex[:6]}")
    network = parts.require_docker().networks.create(home.name)
    settings = {"HYPERAGENT_VERIFY": "on", "HYPERAGENT_LEASE_SECONDS": 20, "HYPERAGENT_RADICLE_CONTAINER_NETWORK": home.name}
    try:
        with Host(home, agent="null", **settings) as made:
            made.register_example()
            yield made
    finally:
        network.remove()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def rid(host: Host) -> str:
    """The example's Radicle id."""
    return str(host.get("/api/v1/projects/example")["rid"])


@pytest.fixture(scope="module")
def peer(host: Host, rid: str) -> Iterator[Peer]:
    """A node elsewhere that has cloned the example."""
    with peer_reading(host, rid) as made:
        yield made


@pytest.fixture
def node(host: Host) -> Iterator[Any]:
    """The container of the host's own node; it runs again when the test ends."""
    made = parts.require_docker().containers.get(f"ha-radicle-{instance(type('S', (), {'home': host.home})())}")
    yield made
    made.start()
    host.await_node()


def until(ask: Callable[[], Any], seconds: float = 120) -> Any:
    """Wait for what travels between nodes."""
    return harness.until(ask, seconds)


def heads(patch: dict[str, Any]) -> list[str]:
    """Heads of a patch's revisions as `rad cob show` tells it."""
    return [patch["revisions"][r]["oid"] for r in patch["timeline"] if patch["revisions"].get(r)]


def reviews(patch: dict[str, Any]) -> list[tuple[str, str]]:
    """(reviewer, verdict) by revision."""
    made = [patch["revisions"][r] for r in patch["timeline"] if patch["revisions"].get(r)]
    return [(v["author"]["id"], v["verdict"]) for r in made for v in r["reviews"].values()]


def reviewed(patch: dict[str, Any]) -> bool:
    """Whether two reviews have come."""
    return len(reviews(patch)) == 2


def kinds(host: Host, workflow_id: str, error_type: str) -> list[str]:
    """Kinds of the events that tell of an error of this type."""
    return [e["kind"] for e in host.events(workflow_id) if e["data"].get("error_type") == error_type]


def posted(host: Host, workflow_id: str) -> dict[str, Any]:
    """The workflow, once every review of it is posted."""

    def ask() -> dict[str, Any] | None:
        workflow = host.workflow(workflow_id)
        states = [review["state"] for review in workflow["patch"]["reviews"]]
        return workflow if states == ["posted", "posted"] else None

    return dict(until(ask))


def well(host: Host, workflow: dict[str, Any]) -> dict[str, Any]:
    """The patch of a workflow that ended as it must: one patch, two revisions, two reviews."""
    assert workflow["state"] == "done", workflow["reason"]
    workflow = posted(host, workflow["id"])
    made = [e["kind"] for e in workflow["patch"]["events"] if e["kind"] in ("opened", "found", "revised")]
    assert made in (["opened", "revised"], ["found", "revised"])  # found: the one who opened it did not live to say so
    return dict(workflow["patch"])


def test_two_revisions_and_their_reviews_are_read_on_the_other_node(host: Host, peer: Peer) -> None:
    plan = plan_of(TASKS, title=TITLE, checks=["python3 check.py"]) | {"description": WORDS}
    workflow = host.run(plan)
    ours = well(host, workflow)
    patch = peer.patch(ours["patch_id"], until=reviewed)
    assert heads(patch) == [step["commit"] for step in workflow["steps"]]
    assert patch["title"] == TITLE
    reviewers = {who for who, _ in reviews(patch)}
    assert reviewers == {review["reviewer"] for review in ours["reviews"]}
    assert patch["author"]["id"] not in reviewers
    assert [verdict for _, verdict in reviews(patch)] == ["accept", "accept"]
    root = next(patch["revisions"][r] for r in patch["timeline"] if r in patch["revisions"])
    body = root["description"][-1]["body"]
    assert body.startswith(WORDS)
    for step in workflow["steps"]:
        link = f"/api/v1/workflows/{workflow['id']}/steps/{step['key']}/provenance"
        assert f"commit `{step['commit']}`, [provenance]({host.url}{link})" in body
        assert host.get(link)["subject"][0]["digest"]["gitCommit"] == step["commit"]
    assert f"{host.url}/api/v1/workflows/{workflow['id']})" in body
    assert "> The null agent approves whatever it is shown." in body
    delivery = until(lambda: (d := host.workflow(workflow["id"])["patch"]["delivery"])["state"] == "held" and d)
    assert (delivery["error_type"], delivery["next_at"]) == (None, None)
    shown = host.cli("show", workflow["id"]).stdout
    assert "review of" in shown
    assert "held, synced with 1 peer(s)" in shown


def test_a_node_stopped_before_the_push_is_waited_for(host: Host, peer: Peer, node: Any) -> None:
    workflow_id = host.submit(plan_of(TASKS, checks=SLOW))
    until(lambda: any(e["kind"] == "agent.ended" for e in host.events(workflow_id)))
    node.stop(timeout=3)
    until(lambda: "step.waiting" in kinds(host, workflow_id, "node-down"))
    step = host.workflow(workflow_id)["steps"][0]
    assert step["commit"]
    assert step["attempts"][0]["error_type"] == "node-down"
    assert step["free_attempts"] >= 1
    node.start()
    workflow = host.wait(workflow_id)
    assert workflow["steps"][0]["commit"] == step["commit"]
    patch = peer.patch(well(host, workflow)["patch_id"], until=reviewed)
    assert heads(patch) == [s["commit"] for s in workflow["steps"]]


def test_a_node_killed_during_the_push_leaves_one_patch(host: Host, peer: Peer, node: Any, rid: str) -> None:
    storage = host.home / "radicle" / "storage" / rid.removeprefix("rad:")
    before = set(storage.glob("refs/namespaces/*/refs/cobs/xyz.radicle.patch/*"))
    workflow_id = host.submit(plan_of(TASKS, checks=SLOW))
    deadline = time.monotonic() + 120
    while not set(storage.glob("refs/namespaces/*/refs/cobs/xyz.radicle.patch/*")) - before:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    node.kill()
    failed = until(lambda: kinds(host, workflow_id, "push-failed") or kinds(host, workflow_id, "node-down"))
    assert set(failed) <= {"step.retry", "step.waiting", "patch.review_waits"}
    until(lambda: kinds(host, workflow_id, "node-down"))
    node.start()
    workflow = host.wait(workflow_id)
    ours = well(host, workflow)
    patch = peer.patch(ours["patch_id"], until=reviewed)
    assert heads(patch) == [s["commit"] for s in workflow["steps"]]
    made = set(storage.glob("refs/namespaces/*/refs/cobs/xyz.radicle.patch/*")) - before
    assert {path.name for path in made} == {ours["patch_id"]}


def test_a_review_that_cannot_be_posted_stops_nothing_and_is_posted_later(host: Host) -> None:
    reviewer = host.home / "radicle" / "hyperagent" / "reviewer"
    aside = reviewer.with_name("aside")
    reviewer.rename(aside)
    reviewer.write_text("in the way")
    try:
        workflow = host.run(plan_of(TASKS))
        assert workflow["state"] == "done", workflow["reason"]
        assert {review["state"] for review in workflow["patch"]["reviews"]} == {"pending"}
        assert {review["error_type"] for review in workflow["patch"]["reviews"]} == {"push-failed"}
        assert "pending: " in host.cli("show", workflow["id"]).stdout
    finally:
        reviewer.unlink()
        aside.rename(reviewer)
    well(host, workflow)


def test_a_reviewer_with_the_publishers_key_is_refused_and_stops_nothing(host: Host) -> None:
    home = host.home / "radicle"
    reviewer = home / "hyperagent" / "reviewer"
    aside = reviewer.with_name("aside")
    shutil.copytree(reviewer, aside, symlinks=True)
    try:
        shutil.copytree(home / "keys", reviewer / "keys", dirs_exist_ok=True)
        workflow = host.run(plan_of(TASKS[:1]))
        assert workflow["state"] == "done", workflow["reason"]
        (review,) = workflow["patch"]["reviews"]
        assert (review["state"], review["error_type"]) == ("refused", "push-rejected")
        assert "publisher's" in review["reason"]
        assert "patch.review_refused" in [event["kind"] for event in host.events(workflow["id"])]
    finally:
        shutil.rmtree(reviewer)
        aside.rename(reviewer)


@pytest.mark.parametrize(("how", "error_type"), [("stop", "no-peer"), ("pause", "sync-timed-out")])
def test_what_an_unreachable_peer_missed_is_announced_by_itself(
    host: Host, peer: Peer, node: Any, how: str, error_type: str
) -> None:
    getattr(peer, how)()
    if how == "stop":
        node.restart(timeout=3)  # it would else believe in the connection for minutes
        host.await_node()
    try:
        workflow = host.run(plan_of(TASKS, checks=["python3 check.py"]))
        ours = well(host, workflow)
        delivery = until(lambda: (d := host.workflow(workflow["id"])["patch"]["delivery"])["tries"] > 1 and d)
        assert (delivery["state"], delivery["error_type"]) == ("announced", error_type)
        assert delivery["reason"]
        assert delivery["next_at"]
        assert "announced again by itself" in host.cli("show", workflow["id"]).stdout
    finally:
        peer.start() if how == "stop" else peer.unpause()
    patch = peer.patch(ours["patch_id"], until=reviewed)
    assert heads(patch) == [s["commit"] for s in workflow["steps"]]
    held = until(lambda: (d := host.workflow(workflow["id"])["patch"]["delivery"])["state"] == "held" and d)
    assert (held["error_type"], held["reason"], held["synced_with"]) == (None, None, 1)
    assert "patch.held" in [event["kind"] for event in host.events(workflow["id"])]
