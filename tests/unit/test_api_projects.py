"""Projects and the forge's health through the API in one process: versions, refusals, ages, reports that contradict."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import flask
import pytest
from click.testing import CliRunner
from werkzeug.serving import make_server

from hyperagent_api.cli.main import main
from hyperagent_common import db
from hyperagent_common.forge_models import ForgeHost, ProjectChange
from hyperagent_common.ids import new_id
from hyperagent_common.models import Patch, PatchEvent, Project, Worker, Workflow
from hyperagent_common.states import ProjectState
from tests.unit.test_api import PLAN, app, submit

__all__ = ["app"]
RID = "rad:z3gqcJUoA1n9HaHKufZs5FCSGazv5"


@pytest.fixture
def client(app: flask.Flask) -> Iterator[Any]:
    """A client of it; a host `h` publishes the project `p`."""
    with db.transaction(app.extensions["settings"].db_url) as session:
        row = session.query(Project).one()
        row.publisher, row.rid, row.forge = "h", RID, "radicle"
    return app.test_client()


@contextmanager
def serving(app: flask.Flask) -> Iterator[str]:
    """The application at an address."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join(10)
    server.server_close()


def report(app: flask.Flask, *, age: float = 0, problems: list[dict[str, Any]] | None = None, **more: Any) -> None:
    """What the host `h` said `age` seconds ago."""
    with db.transaction(app.extensions["settings"].db_url) as session:
        project = session.query(Project).one()
        row = session.get(ForgeHost, "h") or ForgeHost(id="h", host="host-h")
        row.reported_at = db.now(session) - timedelta(seconds=age)
        said = {"rid": RID, "registered": True, "reachable": True, "head": "a" * 40, "synced": 1, "seeds": [], "problems": []}
        row.report = {
            "forge": "radicle",
            "node": {"running": True, "nid": "z6Mk", "since": None, "version": "1"},
            "identities": [],
            "peers": [],
            "problems": problems or [],
            "projects": {project.id: {**said, **more}},
        }
        session.add(row)


def worker(app: flask.Flask) -> None:
    """A worker that is ready."""
    with db.transaction(app.extensions["settings"].db_url) as session:
        moment = db.now(session)
        session.add(Worker(id="w", host="h", started_at=moment, last_seen=moment))


def problem(message: str, *, blocking: bool = True) -> dict[str, Any]:
    """A problem of a report."""
    return {"message": message, "mend": "Mend it.", "blocking": blocking}


def test_settings_are_merged_key_by_key_under_a_version(client: Any) -> None:
    first = client.patch("/api/v1/projects/p", json={"settings": {"checks": ["a"], "verify": "off"}})
    assert (first.status_code, first.json["version"], first.headers["ETag"]) == (200, 2, '"2"')
    second = client.patch("/api/v1/projects/p", json={"settings": {"checks": None}, "version": 2})
    assert second.json["settings"] == {"verify": "off"}
    for stale in ({"json": {"description": "x", "version": 2}}, {"json": {"description": "x"}, "headers": {"If-Match": '"1"'}}):
        assert client.patch("/api/v1/projects/p", **stale).status_code == 409
    assert client.get("/api/v1/projects/p").json["description"] == ""


@pytest.mark.parametrize(
    "body",
    [{}, {"name": "q"}, {"version": 1}, {"remote": ""}, {"remote": "https://x"}, {"remote": 1}, {"default_branch": "a b"},
     {"default_branch": "x.lock"}, {"settings": {"triggers": [{}]}}, {"settings": {"nope": None}}, {"settings": 1},
     {"description": "d" * 256}, {"description": "ü" * 128}, {"remote": RID + "x"}],
)  # fmt: skip
def test_a_wrong_change_is_refused_and_changes_nothing(client: Any, body: dict[str, Any]) -> None:
    before = client.get("/api/v1/projects/p").json
    assert client.patch("/api/v1/projects/p", json=body).status_code == 422
    assert client.get("/api/v1/projects/p").json == before


@pytest.mark.parametrize("source", ["rad:", "rad:x", "rad:z0OIl" * 5, "RAD:z3gqcJUoA1n9HaHKufZs5FCSGazv5", "z3gqcJ", "ssh://x/y",
                                    RID + "x", RID[:-2], "rad:z" + "2" * 25, f"{RID}/../x", "/a\nb", "", None, 7])  # fmt: skip
def test_a_source_that_is_none_is_named(client: Any, source: Any) -> None:
    answer = client.post("/api/v1/projects", json={"name": "x", "source": source})
    assert answer.status_code == 422
    assert "source" in {entry["field"] for entry in answer.json["errors"]}


def test_one_repository_under_two_names_is_told(client: Any) -> None:
    for source in (RID, RID.replace("rad:", "rad://"), "/p"):
        answer = client.post("/api/v1/projects", json={"name": "other", "source": source})
        assert answer.status_code == 409
        assert "'p'" in answer.json["title"]


@pytest.mark.parametrize("source", ["/p/", "/./p", "/x/../p", "//p", "///x//..//p/."])
def test_one_path_is_one_source_however_it_is_spelt(client: Any, source: str) -> None:
    assert client.post("/api/v1/projects", json={"name": "other", "source": source}).status_code == 409
    same = client.post("/api/v1/projects", json={"name": "p", "source": source})
    assert (same.status_code, same.json["source"]) == (200, "/p")


def test_registering_again_with_something_else_is_told_and_changes_nothing(client: Any) -> None:
    client.patch("/api/v1/projects/p", json={"settings": {"publish": True}})
    asked = {
        "name": "p",
        "source": "/p",
        "default_branch": "main",
        "description": "",
        "remote": RID,
        "settings": {"publish": True},
    }
    assert client.post("/api/v1/projects", json=asked).status_code == 200
    for more in (
        {"default_branch": "develop"},
        {"settings": {"publish": False}},
        {"settings": {"verify": "off"}},
        {"description": "d"},
    ):
        refused = client.post("/api/v1/projects", json={**asked, **more})
        assert refused.status_code == 409, more
        assert "hyperagent project set p" in refused.json["mend"]
    assert client.get("/api/v1/projects/p").json["settings"] == {"publish": True}


def test_a_name_that_is_being_registered_takes_no_other_source(client: Any) -> None:
    assert client.post("/api/v1/projects", json={"name": "calc", "source": "/x/a"}).status_code == 202
    refused = client.post("/api/v1/projects", json={"name": "calc", "source": "/x/b"})
    assert refused.status_code == 409
    assert "is being registered from /x/a" in refused.json["title"]
    assert client.post("/api/v1/projects", json={"name": "calc", "source": "/x/a"}).status_code == 202
    assert client.get("/api/v1/projects/calc").json["source"] == "/x/a"


def late(app: flask.Flask, name: str) -> None:
    """The worker's last try fails, after the API has stopped waiting."""
    with db.transaction(app.extensions["settings"].db_url) as session:
        row = session.query(Project).filter_by(name=name).one()
        row.state, row.faults = ProjectState.FAILED, [{"field": "repository", "message": "There is nothing there."}]


def test_a_registration_that_failed_late_leaves_its_name_free(client: Any, app: flask.Flask) -> None:
    triggers = [{"on": "push", "plan": PLAN}]
    for after in ("removed", "taken over"):
        body = {"name": "typo", "source": "/wrong/path", "remote": RID[:-1] + "6", "settings": {"triggers": triggers}}
        assert client.post("/api/v1/projects", json=body).status_code == 202
        late(app, "typo")
        assert client.get("/api/v1/projects/typo").json["state"] == "failed"
        if after == "removed":
            assert client.delete("/api/v1/projects/typo").status_code == 204
        right = client.post("/api/v1/projects", json={"name": "typo", "source": "/right/path"})
        assert (right.status_code, right.json["source"], right.json["remote"], right.json["settings"]) == (
            202,
            "/right/path",
            None,
            {},
        )
        assert client.delete("/api/v1/projects/typo").status_code == 204


def test_a_project_with_a_past_keeps_its_source_whatever_fails(client: Any, app: flask.Flask) -> None:
    made = submit(client).json["id"]
    client.post(f"/api/v1/workflows/{made}/cancel")
    assert client.delete("/api/v1/projects/p").status_code == 204
    assert client.post("/api/v1/projects", json={"name": "p", "source": "/p"}).status_code == 202
    late(app, "p")
    assert client.post("/api/v1/projects", json={"name": "p", "source": "/q"}).status_code == 409
    assert client.delete("/api/v1/projects/p").status_code == 204
    assert client.post("/api/v1/projects", json={"name": "p", "source": "/q"}).status_code == 409
    assert client.get(f"/api/v1/workflows/{made}").json["project"] == "p"


def test_a_project_that_is_not_ready_yet_is_no_success_of_the_command(app: flask.Flask) -> None:
    with serving(app) as address:
        env = {"HYPERAGENT_API_URL": address, "HYPERAGENT_HOME": str(app.extensions["settings"].home)}
        done = CliRunner(env=env).invoke(main, ["project", "add", "calc", "/x/calc"])
    assert done.exit_code == 5
    assert "registering" in done.stdout
    assert "hyperagent project show calc" in done.stderr


def test_what_the_host_must_verify_waits_for_it_and_holds_only_then(client: Any, app: flask.Flask) -> None:
    answer = client.patch("/api/v1/projects/p", json={"default_branch": "develop"})
    assert (answer.status_code, answer.json["default_branch"], answer.json["version"]) == (202, "main", 1)
    with db.transaction(app.extensions["settings"].db_url) as session:
        asked = session.query(ProjectChange).one()
        assert (asked.values, asked.state) == ({"default_branch": "develop"}, "asked")
    same = client.patch("/api/v1/projects/p", json={"default_branch": "main", "remote": RID})
    assert (same.status_code, same.json["version"]) == (200, 2)


def test_a_project_with_a_running_workflow_keeps_its_remote_and_is_not_removed(client: Any, app: flask.Flask) -> None:
    made = submit(client).json["id"]
    assert client.patch("/api/v1/projects/p", json={"remote": RID[:-1] + "6"}).status_code == 409
    refused = client.delete("/api/v1/projects/p")
    assert refused.status_code == 409
    assert made in refused.json["title"]
    client.post(f"/api/v1/workflows/{made}/cancel")
    assert client.delete("/api/v1/projects/p", headers={"If-Match": '"9"'}).status_code == 409
    assert client.delete("/api/v1/projects/p").status_code == 204
    assert client.delete("/api/v1/projects/p").status_code == 404
    assert client.get("/api/v1/projects").json == []
    assert submit(client).status_code == 404
    assert client.get(f"/api/v1/workflows/{made}").json["state"] == "cancelled"


def test_a_removal_and_a_submission_at_one_time_are_one_after_the_other(client: Any, app: flask.Flask) -> None:
    codes: list[int] = []
    calls = [lambda: submit(app.test_client()), lambda: app.test_client().delete("/api/v1/projects/p")] * 3
    threads = [threading.Thread(target=lambda call=call: codes.append(call().status_code)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with db.transaction(app.extensions["settings"].db_url, reading=True) as session:
        removed = session.query(Project).one().removed_at is not None
        assert session.query(Workflow).count() == codes.count(202)
    assert removed == (204 in codes)
    assert not (removed and 202 in codes)


def test_a_workflow_is_refused_where_the_host_says_so_and_nothing_is_stored(client: Any, app: flask.Flask) -> None:
    worker(app)
    report(app, problems=[problem("The node is away.")])
    refused = submit(client)
    assert (refused.status_code, refused.json["errors"][0]["message"]) == (503, "The node is away. Mend it.")
    report(app, problems=[], registered=False)
    with db.transaction(app.extensions["settings"].db_url) as session:
        assert session.query(Workflow).count() == 0
    report(app, problems=[problem("No peer.", blocking=False)])
    assert submit(client).json["warnings"] == []
    report(app, age=3600, problems=[problem("Long ago.")])
    assert "has not reported" in submit(client).json["warnings"][0]


def test_the_forge_is_looked_at_though_no_worker_is_alive(client: Any, app: flask.Flask) -> None:
    report(app, problems=[problem("The node is away.")])
    assert submit(client).status_code == 503
    report(app)
    assert "No worker is alive" in submit(client).json["warnings"][0]


@contextmanager
def watch(app: flask.Flask, *, problems: list[dict[str, Any]]) -> Iterator[None]:
    """A watch on the host `h`, which reports when it is asked."""
    ended, url = threading.Event(), app.extensions["settings"].db_url

    def look() -> None:
        while not ended.wait(0.05):
            with db.transaction(url, reading=True) as session:
                row = session.get_one(ForgeHost, "h")
            if row.asked_at and row.reported_at and row.asked_at > row.reported_at:
                report(app, problems=problems)

    thread = threading.Thread(target=look)
    thread.start()
    yield
    ended.set()
    thread.join(10)


def test_a_word_that_is_no_news_is_asked_for_anew_and_answers_stay_quick(client: Any, app: flask.Flask) -> None:
    worker(app)
    report(app, age=10)
    with watch(app, problems=[problem("The node is away.")]):
        assert submit(client).status_code == 503
    report(app, age=10, problems=[problem("The node is away.")])
    with watch(app, problems=[]):
        began = time.monotonic()
        assert submit(client).status_code == 202
        assert submit(client).status_code == 202  # this word is young enough
        assert time.monotonic() - began < 3
    report(app, age=10)
    began = time.monotonic()
    assert submit(client).status_code == 202  # the watch is away: the last word counts while it is not too old
    assert 1.5 < time.monotonic() - began < 8


def test_health_tells_how_old_each_word_is_and_is_not_ok_where_a_host_is_silent(client: Any, app: flask.Flask) -> None:
    empty = client.get("/api/health/radicle").json
    assert not empty["ok"]
    assert "No host has ever reported" in empty["problems"][0]["message"]
    report(app)
    fresh = client.get("/api/health/radicle?refresh=false").json
    assert fresh["ok"], fresh
    assert fresh["projects"][0]["synced"] == 1
    assert fresh["projects"][0]["last_push"] is None
    assert 0 <= fresh["projects"][0]["seconds"] < 60
    report(app, age=3600)
    silent = client.get("/api/health/radicle?refresh=false").json
    assert not silent["ok"]
    assert "has said nothing" in silent["problems"][0]["message"]
    assert client.get("/api/health/radicle?refresh=maybe").status_code == 422


def test_the_last_push_is_a_push_and_no_review(client: Any, app: flask.Flask) -> None:
    workflow_id = submit(client).json["id"]
    with db.transaction(app.extensions["settings"].db_url) as session:
        moment = db.now(session)
        patch = Patch(id=new_id(), workflow_id=workflow_id, forge="radicle", rid=RID, published_at=moment, bodies=[])
        session.add(patch)
        session.flush()
        for kind, revision in (("opened", "1" * 40), ("revised", "2" * 40), ("reviewed", "2" * 40), ("held", None)):
            event = PatchEvent(id=new_id(), patch_id=patch.id, kind=kind, revision_id=revision, commit="c" * 40, at=moment)
            session.add(event)
            session.flush()
    said = client.get("/api/health/radicle?refresh=false").json["projects"][0]
    assert said["last_push"]["kind"] == "revised"


def test_the_trigger_events_of_nobody_are_not_found(client: Any) -> None:
    assert client.get("/api/v1/projects/p/triggers").json == []
    assert client.get("/api/v1/projects/q/triggers").status_code == 404
    assert client.get("/api/v1/projects/p/triggers?outcome=x").status_code == 422


def test_a_plan_in_a_trigger_is_checked_when_it_is_set(client: Any) -> None:
    rule = {"on": "push", "plan": {**PLAN, "tasks": []}}
    answer = client.patch("/api/v1/projects/p", json={"settings": {"triggers": [rule]}})
    assert "settings.triggers[0].plan.tasks" in {entry["field"] for entry in answer.json["errors"]}
