"""What the API answers to odd, hostile and unlucky callers, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fakeredis
import flask
import pytest
import redis
from celery import Celery
from celery.canvas import Signature

from hyperagent_api.app import create_app
from hyperagent_common import db, plan
from hyperagent_common import settings as config
from hyperagent_common.ids import new_id
from hyperagent_common.models import Artifact, Project, StepAttempt, Workflow
from hyperagent_common.states import AttemptState, ProjectState
from hyperagent_common.storage import open_storage

PLAN = {"kind": plan.KIND, "title": "t", "tasks": [{"id": "a", "title": "a", "instructions": "a"}]}
JSON, YAML = "application/json", "application/yaml"


@pytest.fixture(params=["sqlite", "postgres"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[flask.Flask]:
    """An application on a fresh database of each kind, a project `p` in it; Celery sends into memory."""
    env = {"HYPERAGENT_HOME": str(tmp_path), "HYPERAGENT_BROKER_URL": "redis://127.0.0.1:9/0"}
    if request.param == "postgres":
        env["HYPERAGENT_DATABASE_URL"] = request.getfixturevalue("postgres_url")
    loaded = config.load(env)
    db.upgrade(loaded.db_url)
    celery = Celery("t", broker="memory://", set_as_current=False)
    celery.conf.task_routes = {}
    made = create_app(loaded, celery=celery, storage=open_storage("memory://"))
    made.config["REGISTER_WAIT_SECONDS"] = 0.2
    with db.transaction(loaded.db_url) as session:
        values = {"name": "p", "source": "/p", "default_branch": "main", "state": ProjectState.READY}
        session.add(Project(id=new_id(), created_at=db.now(session), **values))
    yield made
    from hyperagent_api.app import orm

    with made.app_context():
        orm.engine.dispose()
    db.engine(loaded.db_url).dispose()


@pytest.fixture
def client(app: flask.Flask) -> Any:
    """A client of it."""
    return app.test_client()


def submit(client: Any, body: Any = None, **headers: str) -> Any:
    """Submit a plan."""
    return client.post("/api/v1/workflows", json=body or {"project": "p", "plan": PLAN}, headers=headers)


def running_attempt(app: flask.Flask, client: Any) -> tuple[str, str]:
    """A workflow whose step `a` has a running attempt: both ids."""
    made = submit(client).json
    with db.transaction(app.extensions["settings"].db_url) as session:
        values = {"number": 1, "fence": 1, "state": AttemptState.RUNNING, "worker": "w"}
        attempt = StepAttempt(id=new_id(), step_id=made["steps"][0]["id"], started_at=db.now(session), **values)
        session.add(attempt)
    return made["id"], attempt.id


def together(calls: list[Callable[[], Any]]) -> list[int]:
    """The status of each call, all made at one time."""
    gate, codes = threading.Barrier(len(calls)), [0] * len(calls)

    def run(number: int) -> None:
        gate.wait(10)
        codes[number] = calls[number]().status_code

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return codes


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/projects/%00",
        "/api/v1/workflows/%00%00%00%00%00",
        "/api/v1/artifacts/%00",
        "/api/v1/workflows?after=%00",
        "/api/v1/workflows?project=%00",
        "/api/v1/workflows?state=%00",
    ],
)
def test_a_nul_in_the_address_is_the_callers_fault(client: Any, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code in (200, 400, 404, 422), answer.text


@pytest.mark.parametrize("query", ["endpoint=x", "_external=1", "_method=FOO", "_scheme=gopher&_external=1", "_anchor=x"])
def test_an_unknown_query_field_does_not_reach_the_link(client: Any, query: str) -> None:
    submit(client), submit(client)
    answer = client.get(f"/api/v1/workflows?limit=1&{query}")
    assert answer.status_code in (200, 422), answer.text
    assert answer.headers.get("Link", "</").startswith("</")


@pytest.mark.parametrize(
    ("raw", "media"),
    [
        (b'{"name": "x", "path": "/x", "settings": {"checks": [1e999]}}', JSON),
        (b'{"name": "x", "path": "/x", "settings": {"checks": [{"a": 1}, 5]}}', JSON),
        (b"name: x\npath: /x\nsettings: {checks: [!!binary aGk=]}\n", YAML),
        (b"name: x\npath: /x\nsettings: {checks: [.inf]}\n", YAML),
        (b"name: x\npath: /x\nsettings: {checks: [!!set {a}]}\n", YAML),
        (b'{"name": "x", "path": "/x", "settings": {"agent_model": ""}}', JSON),
        (b'{"name": "x", "path": "/x", "settings": {"agent_provider": "poet"}}', JSON),
        (b'{"name": "x", "path": "/x", "default_branch": "--upload-pack=touch x"}', JSON),
        (b'{"name": "x", "path": "/x\\ny"}', JSON),
    ],
)
def test_what_no_worker_can_use_is_refused_at_the_door(client: Any, raw: bytes, media: str) -> None:
    answer = client.post("/api/v1/projects", data=raw, content_type=media)
    assert answer.status_code in (400, 422), answer.text


@pytest.mark.parametrize("raw", [b"{[a]: 1}", b"? {a: 1}\n: 2", b"{a: 1", b"a: !!python/name:os.system x", b"\x00", b"1: 2"])
def test_odd_yaml_is_malformed(client: Any, raw: bytes) -> None:
    answer = client.post("/api/v1/workflows", data=raw, content_type=YAML)
    assert (answer.status_code, answer.content_type) == (400, "application/problem+json")


def test_deep_yaml_is_malformed(client: Any) -> None:
    assert client.post("/api/v1/workflows", data=b"[" * 20_000, content_type=YAML).status_code == 400


def test_one_key_used_at_one_time_makes_one_workflow(app: flask.Flask) -> None:
    body = {"project": "p", "plan": PLAN}
    calls = [lambda: app.test_client().post("/api/v1/workflows", json=body, headers={"Idempotency-Key": "k"})] * 6
    codes = together(calls)
    assert sorted(codes) == [200, 200, 200, 200, 200, 202]
    with db.transaction(app.extensions["settings"].db_url, reading=True) as session:
        assert session.query(Workflow).count() == 1


def test_one_project_registered_at_one_time_is_one_project(app: flask.Flask) -> None:
    calls = [lambda: app.test_client().post("/api/v1/projects", json={"name": "new", "path": "/new"})] * 6
    assert set(together(calls)) <= {201, 202, 200, 409}


def test_a_registration_that_fails_under_two_waiting_callers_is_told_to_both(app: flask.Flask) -> None:
    app.config["REGISTER_WAIT_SECONDS"] = 5.0
    url, ended = app.extensions["settings"].db_url, threading.Event()

    def worker() -> None:
        while not ended.wait(0.05):
            with db.transaction(url) as session:
                for row in session.query(Project).filter_by(state=ProjectState.REGISTERING):
                    row.state, row.faults = ProjectState.FAILED, [{"field": "path", "message": "is no repository"}]

    fake = threading.Thread(target=worker)
    call = lambda: app.test_client().post("/api/v1/projects", json={"name": "new", "path": "/new"})  # noqa: E731
    call_later = threading.Timer(0.5, fake.start)
    call_later.start()
    codes = together([call, call])
    ended.set()
    fake.join(10)
    assert codes == [422, 422]


def live_redis(monkeypatch: pytest.MonkeyPatch) -> fakeredis.FakeRedis:
    """A Redis in memory under every Redis URL."""
    server = fakeredis.FakeServer()
    make = lambda url, **_: fakeredis.FakeRedis(server=server, decode_responses=True)  # noqa: E731
    monkeypatch.setattr(redis.Redis, "from_url", make)
    return fakeredis.FakeRedis(server=server)


def test_the_live_log_pages_by_the_id_of_its_last_entry(app: flask.Flask, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    live = live_redis(monkeypatch)
    workflow_id, attempt_id = running_attempt(app, client)
    for word in ("one", "two"):
        live.xadd(f"hyperagent:log:{attempt_id}", {"kind": "text", "data": json.dumps({"text": word})})
    path = f"/api/v1/workflows/{workflow_id}/steps/a/log"
    first = client.get(path)
    assert first.headers["X-Log"] == "live"
    lines = [json.loads(line) for line in first.text.splitlines()]
    assert [line["data"]["text"] for line in lines] == ["one", "two"]
    assert client.get(f"{path}?after={lines[0]['id']}").text.count("\n") == 1
    assert client.get(f"{path}?after={lines[1]['id']}").text == ""
    assert client.get(f"{path}?after=x").status_code == 422
    with db.transaction(app.extensions["settings"].db_url) as session:
        session.get_one(StepAttempt, attempt_id).state = AttemptState.SUCCEEDED
        stored = app.extensions["storage"].put(f"k/{new_id()}", b"kept\n")
        session.add(Artifact(workflow_id=workflow_id, attempt_id=attempt_id, name="agent-stream.jsonl", key=stored.key,
                             media_type="a/b", size=5, sha256=stored.sha256, trust="claimed",
                             created_at=db.now(session)))  # fmt: skip
    assert client.get(path).text == "kept\n"
    rest = client.get(f"{path}?after={lines[0]['id']}")  # who has begun with live events is not told them again
    assert (rest.headers["X-Log"], rest.text.count("\n")) == ("live", 1)
    assert client.get(f"{path}?attempt=99999999999").status_code == 404


def test_what_the_worker_writes_to_the_live_log_can_always_be_read(
    app: flask.Flask, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperagent_tasks.agents.base import AgentEvent
    from hyperagent_tasks.live import LiveLog

    live_redis(monkeypatch)
    workflow_id, attempt_id = running_attempt(app, client)
    LiveLog("redis://127.0.0.1:9/0", attempt_id).write(AgentEvent("text", {"text": "語" * 9000}))
    answer = client.get(f"/api/v1/workflows/{workflow_id}/steps/a/log")
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(("publisher", "to"), [("h1", "steps.h1"), (None, "steps")])
def test_a_draft_is_sent_to_the_host_that_has_the_projects_source(
    app: flask.Flask, client: Any, monkeypatch: pytest.MonkeyPatch, publisher: str | None, to: str
) -> None:
    sent: list[str] = []
    monkeypatch.setattr(Signature, "apply_async", lambda message: sent.append(message.options["queue"]))
    with db.transaction(app.extensions["settings"].db_url) as session:
        session.query(Project).update({"publisher": publisher})
    assert client.post("/api/v1/projects/p/drafts", json={"goal": "g"}).status_code == 202
    assert sent == [to]


def test_a_live_log_without_redis_is_empty(app: flask.Flask, client: Any) -> None:
    workflow_id, _ = running_attempt(app, client)
    answer = client.get(f"/api/v1/workflows/{workflow_id}/steps/a/log")
    assert (answer.status_code, answer.text) == (200, "")


@pytest.mark.parametrize("name", ["plain.txt", 'quo"te', "line\nfeed", "back\\slash", "ümlaut", "a/../../b"])
def test_an_artifact_of_any_name_comes_down(app: flask.Flask, client: Any, name: str) -> None:
    made = submit(client).json
    stored = app.extensions["storage"].put(f"k/{new_id()}", b"data")
    with db.transaction(app.extensions["settings"].db_url) as session:
        row = Artifact(workflow_id=made["id"], step_id=made["steps"][0]["id"], name=name, key=stored.key,
                       media_type="text/plain", size=4, sha256=stored.sha256, trust="claimed",
                       created_at=db.now(session))  # fmt: skip
        session.add(row)
    answer = client.get(f"/api/v1/artifacts/{row.id}")
    assert (answer.status_code, answer.data) == (200, b"data")
    assert "/" not in answer.headers["Content-Disposition"]


def test_an_artifact_the_storage_lost_is_not_found(app: flask.Flask, client: Any) -> None:
    made = submit(client).json
    with db.transaction(app.extensions["settings"].db_url) as session:
        row = Artifact(workflow_id=made["id"], step_id=made["steps"][0]["id"], name="x", key="gone", media_type="a/b",
                       size=4, sha256="0" * 64, trust="claimed", created_at=db.now(session))  # fmt: skip
        session.add(row)
    assert client.get(f"/api/v1/artifacts/{row.id}").status_code == 404


def test_a_kept_log_the_storage_lost_is_not_found(app: flask.Flask, client: Any) -> None:
    workflow_id, attempt_id = running_attempt(app, client)
    with db.transaction(app.extensions["settings"].db_url) as session:
        session.get_one(StepAttempt, attempt_id).state = AttemptState.SUCCEEDED
        row = Artifact(workflow_id=workflow_id, attempt_id=attempt_id, name="agent-stream.jsonl", key="gone", media_type="a/b",
                       size=4, sha256="0" * 64, trust="claimed", created_at=db.now(session))  # fmt: skip
        session.add(row)
    answer = client.get(f"/api/v1/workflows/{workflow_id}/steps/a/log")
    assert (answer.status_code, answer.content_type) == (404, "application/problem+json")


def test_a_database_that_is_away_is_503_on_reads_too(tmp_path: Path) -> None:
    env = {"HYPERAGENT_HOME": str(tmp_path), "HYPERAGENT_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none"}
    client = create_app(config.load(env), storage=open_storage("memory://")).test_client()
    for path in ("/api/v1/projects", "/api/v1/workflows", "/api/health/workflows", "/readyz"):
        answer = client.get(path)
        assert (path, answer.status_code) == (path, 503)


def test_a_key_finds_its_workflow_also_where_the_project_is_removed(client: Any) -> None:
    key = {"Idempotency-Key": "k"}
    made = submit(client, **key).json["id"]
    client.post(f"/api/v1/workflows/{made}/cancel")
    assert client.delete("/api/v1/projects/p").status_code == 204
    again = submit(client, **key)
    assert (again.status_code, again.json["id"], again.json["state"]) == (200, made, "cancelled")
    assert submit(client, {"project": "q", "plan": PLAN}, **key).status_code == 409
    assert submit(client).status_code == 404
    assert submit(client, {"project": 7, "plan": PLAN}, **key).status_code == 422


def test_a_refused_token_says_how_to_ask(tmp_path: Path) -> None:
    loaded = config.load({"HYPERAGENT_HOME": str(tmp_path), "HYPERAGENT_API_TOKEN": "hak-0123456789"})
    answer = create_app(loaded, storage=open_storage("memory://")).test_client().get("/api/v1/projects")
    assert answer.status_code == 401
    assert answer.headers.get("WWW-Authenticate", "").startswith("Bearer")
