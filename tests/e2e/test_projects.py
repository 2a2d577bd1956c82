"""Projects on two real Radicle nodes: registered from the network, changed, removed, their health, and refused at once."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import harness, parts
from tests.harness import Host, plan_of
from tests.radicle_peer import Peer, peer_of

NOBODY_HAS = "rad:z3gqcJUoA1n9HaHKufZs5FCSGazv5"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A host with a real node; agents are not under test."""
    parts.require_radicle_image()
    home = Path(f"/tmp/ha-proj-{uuid.uuid4().hex[:6]}")
    try:
        with Host(home, agent="null", HYPERAGENT_SANDBOX="process") as made:
            made.register_example()
            yield made
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def peer(host: Host) -> Iterator[Peer]:
    """A second node, connected to the host's."""
    with peer_of(host) as made:
        yield made


def until(ask: Any, seconds: float = 90) -> Any:
    """Wait for something true."""
    return harness.until(ask, seconds)


def health(host: Host, name: str) -> dict[str, Any]:
    """A project's health."""
    return next(p for p in host.get("/api/health/radicle")["projects"] if p["name"] == name)


def test_a_radicle_id_becomes_a_project_whose_workflow_opens_a_patch_there(host: Host, peer: Peer) -> None:
    rid = peer.repository("theirs")
    made = host.json("project", "add", "theirs", rid)
    assert (made["state"], made["remote"], made["source"], made["default_branch"]) == ("ready", rid, rid, "main")
    again = host.request("POST", "/api/v1/projects", {"name": "theirs", "source": rid})
    assert (again[0], again[1]["id"]) == (200, made["id"])
    status, said = host.request("POST", "/api/v1/projects", {"name": "other", "source": rid})
    assert status == 409
    assert "'theirs'" in said["title"]
    done = host.run(plan_of([{"id": "a"}]), project="theirs")
    assert done["state"] == "done", done
    peer.read(rid)
    patch = peer.patch(done["patch"]["patch_id"])
    assert patch["author"]["id"] == f"did:key:{peer.host_nid}"
    moved = peer.push("theirs")
    until(lambda: health(host, "theirs")["head"] == moved)
    later = host.run(plan_of([{"id": "a"}]), project="theirs")
    assert later["base_commit"] == moved
    said = health(host, "theirs")
    assert (said["registered"], said["reachable"], said["problems"]) == (True, True, [])
    assert said["last_push"]["patch"] == later["patch"]["patch_id"]
    until(lambda: health(host, "theirs")["synced"] == 1)


@pytest.mark.parametrize(
    ("source", "word"),
    [("rad:nonsense", "must be a Radicle id"), ("https://example.org/x.git", "not fetched"),
     ("rad:z0OIl", "must be a Radicle id"), ("relative", "absolute path"), (NOBODY_HAS, "None of the 1 connected peers gave")],
)  # fmt: skip
def test_what_is_no_repository_of_the_network_registers_nothing(host: Host, peer: Peer, source: str, word: str) -> None:
    before = sorted(p.name for p in (host.home / "radicle" / "storage").iterdir())
    status, said = host.request("POST", "/api/v1/projects", {"name": "none", "source": source})
    assert status == 422, said
    assert word in json.dumps(said)
    assert host.request("GET", "/api/v1/projects/none")[0] == 404
    assert sorted(p.name for p in (host.home / "radicle" / "storage").iterdir()) == before
    assert not list((host.home / "radicle" / "hyperagent" / "fetching").glob("*"))


def test_a_private_repository_that_does_not_allow_us_registers_nothing(host: Host, peer: Peer) -> None:
    rid = peer.repository("secret", private=True)
    done = host.cli("project", "add", "secret", rid, check=False)
    assert done.returncode == 2
    assert "must allow this node's DID" in done.stderr
    assert host.request("GET", "/api/v1/projects/secret")[0] == 404


def test_remote_and_default_branch_are_settings_that_must_hold(host: Host, peer: Peer) -> None:
    source = host.home / "moving"
    host.register_example("moving")
    git = ["git", "-C", str(source), "-c", "user.name=t", "-c", "user.email=t@localhost"]
    for argv in (["checkout", "-q", "-b", "develop"], ["commit", "-q", "--allow-empty", "-m", "second"]):
        subprocess.run([*git, *argv], check=True, timeout=30)
    made = host.json("project", "show", "moving")
    changed = host.json("project", "set", "moving", "default_branch=develop", 'checks=["true"]')
    assert (changed["default_branch"], changed["settings"]["checks"], changed["version"]) == ("develop", ["true"], 2)
    stale = host.request("PATCH", "/api/v1/projects/moving", {"description": "x", "version": 1})
    assert stale[0] == 409
    assert "version 2" in stale[1]["title"]
    for body, word in (
        ({"default_branch": "nowhere"}, "no branch nowhere"),
        ({"default_branch": "a..b"}, "cannot name a branch"),
        ({"remote": peer.repository("unrelated")}, "has another history"),
        ({"remote": "rad:zzz"}, "must be a Radicle id"),
        ({"settings": {"poet": 1}}, "unknown field"),
        ({}, "changes nothing"),
    ):
        status, said = host.request("PATCH", "/api/v1/projects/moving", body)
        assert status == 422, said
        assert word in json.dumps(said), said
    after = host.json("project", "show", "moving")
    assert {**after, "faults": []} == {**changed, "faults": []}
    assert made["remote"] == after["remote"]
    assert "checks" not in host.json("project", "set", "moving", "checks=")["settings"]


def test_a_clone_publishes_to_the_repository_it_came_from(host: Host, peer: Peer) -> None:
    rid = peer.repository("shared")
    made = host.json("project", "add", "shared-rid", rid)
    source = host.home / "shared-clone"
    storage = host.home / "radicle" / "storage" / rid.removeprefix("rad:")
    subprocess.run(["git", "clone", "-q", "-b", "main", str(storage), str(source)], check=True, timeout=60)
    host.cli("project", "remove", made["name"])
    copy = host.json("project", "add", "shared-clone", str(source), "--remote", rid.replace("rad:", "rad://"))
    assert (copy["remote"], copy["state"]) == (rid, "ready")
    git = ["git", "-C", str(source), "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-q", "--allow-empty"]
    subprocess.run([*git, "-m", "ours"], check=True, timeout=30)
    theirs = peer.push("shared")
    until(lambda: health(host, "shared-clone")["head"] == theirs)
    said = host.cli("health", "radicle", check=False)
    assert said.returncode == 5
    assert "have diverged" in said.stdout
    status, refused = host.request("POST", "/api/v1/workflows", {"project": "shared-clone", "plan": plan_of([{"id": "a"}])})
    assert status == 503, refused
    assert "have diverged" in json.dumps(refused)
    host.cli("project", "remove", "shared-clone")
    assert host.cli("health", "radicle", check=False).returncode == 0


def test_removing_is_refused_while_a_workflow_runs_and_can_be_taken_back(host: Host) -> None:
    host.register_example("leaving")
    line = [{"id": "a"}, {"id": "b", "depends_on": ["a"]}, {"id": "c", "depends_on": ["b"]}, {"id": "d", "depends_on": ["c"]}]
    workflow = host.submit(plan_of(line), "leaving")
    host.post(f"/api/v1/workflows/{workflow}/pause", {})
    busy = host.cli("project", "remove", "leaving", check=False)
    assert busy.returncode == 4
    assert workflow in busy.stderr
    host.post(f"/api/v1/workflows/{workflow}/cancel", {})
    until(lambda: host.workflow(workflow)["state"] == "cancelled")
    host.cli("project", "remove", "leaving")
    assert host.request("GET", "/api/v1/projects/leaving")[0] == 404
    assert host.cli("project", "remove", "leaving", check=False).returncode == 3
    assert host.request("POST", "/api/v1/workflows", {"project": "leaving", "plan": plan_of([{"id": "a"}])})[0] == 404
    other = host.request("POST", "/api/v1/projects", {"name": "leaving", "source": "/elsewhere"})
    assert other[0] == 409
    back = host.request("POST", "/api/v1/projects", {"name": "leaving", "source": str(host.home / "leaving")})
    assert (back[0], back[1]["state"]) == (201, "ready")


def test_one_path_is_one_project(host: Host) -> None:
    status, said = host.request("POST", "/api/v1/projects", {"name": "twice", "source": str(host.home / "example")})
    assert status == 409
    assert "'example'" in said["title"]
    assert host.request("GET", "/api/v1/projects/twice")[0] == 404


def test_a_repository_that_vanished_refuses_workflows_within_seconds(host: Host, peer: Peer) -> None:
    host.register_example("vanishing")
    rid = host.json("project", "show", "vanishing")["remote"]
    storage = host.home / "radicle" / "storage" / rid.removeprefix("rad:")
    aside = host.home / "aside"
    peer.stop()  # it would give the repository back
    try:
        storage.rename(aside)
        body = {"project": "vanishing", "plan": plan_of([{"id": "a"}])}
        until(lambda: health(host, "vanishing")["registered"] is False)  # a busy host answers with what it said before
        assert health(host, "vanishing")["reachable"] is False
        status, refused = host.request("POST", "/api/v1/workflows", body)
        assert status == 503, refused
        assert "not in this host's storage" in refused["errors"][0]["message"]
        aside.rename(storage)
    finally:
        peer.start()
    until(lambda: health(host, "vanishing")["reachable"])
    host.cli("project", "remove", "vanishing")


def test_health_tells_node_identity_and_peers(host: Host, peer: Peer) -> None:
    done = host.cli("health", "radicle", "--json", check=False)
    said = json.loads(done.stdout)
    assert (done.returncode, said["ok"]) == (0, True), said["problems"]
    machine = said["hosts"][0]
    assert machine["node"]["running"]
    assert machine["node"]["since"]
    assert "0.23.0" in machine["node"]["version"]
    assert machine["identities"][0] == {"role": "publisher", "did": f"did:key:{peer.host_nid}", "alias": "hyperagent"}
    nid = peer.did.removeprefix("did:key:")
    until(lambda: nid in [p["nid"] for p in host.get("/api/health/radicle")["hosts"][0]["peers"] if p["connected"]])
    assert 0 <= machine["seconds"] < 60
    text = host.cli("health", "radicle").stdout
    assert "in order" in text
    assert nid in text
    assert "hyperagent health radicle" in host.cli("health", "radicle", "--help").stdout


def test_a_node_that_stopped_is_told_with_its_identity_and_refuses_workflows_and_projects(host: Host, peer: Peer) -> None:
    node = parts.require_docker().containers.get(f"ha-radicle-{(host.home / 'instance').read_text().strip()}")
    node.stop(timeout=5)
    try:
        done = host.cli("health", "radicle", check=False)
        assert done.returncode == 5
        assert "does not answer" in done.stdout
        assert f"did:key:{peer.host_nid}" in done.stdout
        began = time.monotonic()
        status, said = host.request("POST", "/api/v1/workflows", {"project": "example", "plan": plan_of([{"id": "a"}])})
        assert (status, time.monotonic() - began < 10) == (503, True), said
        status, said = host.request("POST", "/api/v1/projects", {"name": "none", "source": NOBODY_HAS})
        assert status == 503, said
        assert "does not answer" in said["errors"][0]["message"]
        assert host.request("GET", "/api/v1/projects/none")[0] == 404
    finally:
        node.start()
    until(lambda: host.cli("health", "radicle", check=False).returncode == 0)
