"""The API in one process: strict about what it takes, one problem for what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import flask
import pytest
from celery import Celery

from hyperagent_api.app import create_app
from hyperagent_common import db, plan
from hyperagent_common import settings as config
from hyperagent_common.ids import new_id
from hyperagent_common.models import Plan, Project, Worker, Workflow, WorkflowStep
from hyperagent_common.states import ProjectState
from hyperagent_common.storage import open_storage

TASKS = [{"id": "a", "title": "a", "instructions": "a"}, {"id": "b", "title": "b", "instructions": "b", "depends_on": ["a"]}]
PLAN = {"kind": plan.KIND, "title": "t", "tasks": TASKS}


@pytest.fixture(params=["sqlite", "postgres"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[flask.Flask]:
    """An application on a fresh database of each kind; Celery sends into memory."""
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


def count(app: flask.Flask) -> tuple[int, int]:
    """Workflows and plans stored."""
    with db.transaction(app.extensions["settings"].db_url, reading=True) as session:
        return session.query(Workflow).count(), session.query(Plan).count()


def test_a_plan_becomes_a_workflow_with_its_steps(client: Any) -> None:
    answer = submit(client)
    assert answer.status_code == 202
    assert answer.headers["Location"].endswith(answer.json["id"])
    assert [(s["key"], s["state"]) for s in answer.json["steps"]] == [("a", "queued"), ("b", "pending")]
    assert "No worker is alive" in answer.json["warnings"][0]
    again = client.get(f"/api/v1/workflows/{answer.json['id'][:13]}")
    assert again.json["id"] == answer.json["id"]
    kinds = [e["kind"] for e in client.get(f"/api/v1/workflows/{answer.json['id']}/events").json]
    assert kinds == ["workflow.submitted", "step.queued"]


def test_every_fault_is_named_and_nothing_stored(client: Any, app: flask.Flask) -> None:
    loop = [{**TASKS[0], "depends_on": ["b"]}, TASKS[1], TASKS[1], {**TASKS[0], "id": "c", "depends_on": ["z"], "x": 1}]
    answer = submit(client, {"project": "nobody", "plan": {**PLAN, "tasks": loop}, "extra": 1})
    assert answer.status_code == 422
    assert answer.content_type == "application/problem+json"
    fields = {entry["field"] for entry in answer.json["errors"]}
    assert fields >= {"extra", "project", "plan.tasks", "plan.tasks[2].id", "plan.tasks[3].depends_on", "plan.tasks[3].x"}
    assert count(app) == (0, 0)


def test_an_unknown_project_alone_is_not_found(client: Any) -> None:
    assert submit(client, {"project": "nobody", "plan": PLAN}).status_code == 404


@pytest.mark.parametrize(
    ("raw", "status", "word"),
    [
        (b"{", 400, "line 1"),
        (b'{"project": "p", "project": "q"}', 400, "twice"),
        (b'{"a": NaN}', 400, "NaN"),
        (b'{"a": "\\u0000"}', 400, "NUL"),
        (b'{"a": "\\ud800"}', 400, "surrogate"),
        (b"[" * 100_000, 400, "body"),
        (b"[]", 422, "mapping"),
        (b"\xff\xfe", 400, "UTF-8"),
    ],
)
def test_a_doubtful_body_is_refused_in_one_sentence(client: Any, raw: bytes, status: int, word: str) -> None:
    answer = client.post("/api/v1/workflows", data=raw, content_type="application/json")
    assert answer.status_code == status
    assert word in json.dumps(answer.json)


def test_a_body_of_ten_megabytes_is_too_large(client: Any, app: flask.Flask) -> None:
    answer = client.post("/api/v1/workflows", data=b"x" * 10_000_000, content_type="application/json")
    assert answer.status_code == 413
    assert "HYPERAGENT_API_BODY_LIMIT" in answer.json["mend"]
    assert count(app) == (0, 0)


def test_yaml_is_taken_and_its_aliases_are_not(client: Any) -> None:
    import yaml

    body = yaml.safe_dump({"project": "p", "plan": PLAN})
    assert client.post("/api/v1/workflows", data=body, content_type="application/yaml").status_code == 202
    bomb = "a: &a [x]\nproject: p\nplan: *a\n"
    assert client.post("/api/v1/workflows", data=bomb, content_type="application/yaml").status_code == 400
    assert client.post("/api/v1/workflows", data="x", content_type="text/plain").status_code == 415


def test_an_idempotency_key_makes_one_workflow(client: Any, app: flask.Flask) -> None:
    first = submit(client, **{"Idempotency-Key": "k"})
    second = submit(client, **{"Idempotency-Key": "k"})
    assert (first.status_code, second.status_code) == (202, 200)
    assert first.json["id"] == second.json["id"]
    assert count(app) == (1, 1)
    assert submit(client, {"project": "p", "plan": {**PLAN, "title": "u"}}, **{"Idempotency-Key": "k"}).status_code == 409


def test_a_worker_that_is_not_ready_refuses_before_anything_is_stored(client: Any, app: flask.Flask) -> None:
    fault = {"check": "sandbox", "message": "The image is missing.", "mend": "Build it."}
    with db.transaction(app.extensions["settings"].db_url) as session:
        now = db.now(session)
        session.add(Worker(id="w", host="h", started_at=now, last_seen=now, faults=[fault]))
    answer = submit(client)
    assert answer.status_code == 503
    assert answer.json["errors"] == [{"field": "sandbox", "message": "The image is missing. Build it."}]
    assert client.get("/readyz").status_code == 503
    assert count(app) == (0, 0)
    with db.transaction(app.extensions["settings"].db_url) as session:
        session.add(Worker(id="v", host="h", started_at=now, last_seen=db.now(session)))
    assert submit(client).json["warnings"] == []
    assert client.get("/readyz").status_code == 200


def test_a_draft_asks_like_a_workflow_whether_anybody_could_write_it(client: Any, app: flask.Flask) -> None:
    answer = client.post("/api/v1/projects/p/drafts", json={"goal": "g"})
    assert (answer.status_code, answer.json["state"]) == (202, "queued")
    assert "No worker is alive" in answer.json["warnings"][0]
    assert client.get(f"/api/v1/drafts/{answer.json['id']}").json["warnings"] == []


def test_a_worker_of_long_ago_counts_for_nothing(client: Any, app: flask.Flask) -> None:
    with db.transaction(app.extensions["settings"].db_url) as session:
        past = db.now(session) - timedelta(hours=1)
        session.add(Worker(id="w", host="h", started_at=past, last_seen=past))
    assert "No worker is alive" in submit(client).json["warnings"][0]


def test_pages_follow_each_other(client: Any) -> None:
    ids = [submit(client).json["id"] for _ in range(5)]
    seen: list[str] = []
    path: str | None = "/api/v1/workflows?limit=2"
    while path:
        answer = client.get(path)
        seen += [row["id"] for row in answer.json]
        link = answer.headers.get("Link", "")
        path = link[1 : link.index(">")] if link else None
    assert seen == ids[::-1]


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=999", "state=odd"])
def test_a_wrong_query_is_named(client: Any, query: str) -> None:
    assert client.get(f"/api/v1/workflows?{query}").status_code == 422


@pytest.mark.parametrize(
    "body",
    [{}, {"name": "No", "path": "/x"}, {"name": "x", "path": "relative"}, {"name": "x", "path": "/x", "y": 1},
     {"name": "x", "path": "/x", "settings": {"checks": "make"}}, {"name": "x", "path": "/x", "settings": []}],
)  # fmt: skip
def test_a_wrong_project_is_named(client: Any, body: dict[str, Any]) -> None:
    answer = client.post("/api/v1/projects", json=body)
    assert answer.status_code == 422
    assert answer.json["errors"]


def test_a_registration_no_worker_answered_is_202_and_may_be_repeated(client: Any) -> None:
    body = {"name": "x", "path": "/x"}
    assert client.post("/api/v1/projects", json=body).status_code == 202
    assert client.post("/api/v1/projects", json=body).status_code == 202
    assert submit(client, {"project": "x", "plan": PLAN}).status_code == 422


def test_every_refusal_is_a_problem(client: Any) -> None:
    for method, path, status in [
        ("get", "/nope", 404),
        ("delete", "/api/v1/workflows", 405),
        ("get", "/api/v1/workflows/zzzzzzzz", 404),
        ("get", "/api/v1/artifacts/none", 404),
        ("get", "/api/v1/projects/none", 404),
    ]:
        answer = getattr(client, method)(path)
        assert (answer.status_code, answer.content_type) == (status, "application/problem+json")
        assert "Traceback" not in answer.text


def test_a_foreign_host_header_is_refused(client: Any) -> None:
    assert client.get("/api/v1/projects", headers={"Host": "evil.example"}).status_code == 403
    assert client.get("/api/v1/projects", headers={"Host": "localhost:8440"}).status_code == 200


def test_with_a_token_every_call_needs_it(tmp_path: Path) -> None:
    env = {"HYPERAGENT_HOME": str(tmp_path), "HYPERAGENT_API_TOKEN": "hak-0123456789"}
    loaded = config.load(env)
    db.upgrade(loaded.db_url)
    client = create_app(loaded, storage=open_storage("memory://")).test_client()
    assert client.get("/api/v1/projects").status_code == 401
    assert client.get("/api/v1/projects", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/api/v1/projects", headers={"Authorization": "Bearer hak-0123456789"}).status_code == 200
    assert client.get("/healthz").status_code == 200


def test_a_stored_file_comes_back_as_an_attachment(client: Any, app: flask.Flask) -> None:
    from hyperagent_common.models import Artifact

    workflow_id = submit(client).json["id"]
    stored = app.extensions["storage"].put("k/x.jsonl", b"<script>alert(1)</script>")
    with db.transaction(app.extensions["settings"].db_url) as session:
        step = session.query(WorkflowStep).filter_by(workflow_id=workflow_id).first()
        row = Artifact(workflow_id=workflow_id, step_id=step.id, name="x.jsonl", key=stored.key, media_type="a/b",
                       size=stored.size, sha256=stored.sha256, trust="claimed", created_at=db.now(session))  # fmt: skip
        session.add(row)
    answer = client.get(f"/api/v1/artifacts/{row.id}")
    assert answer.data == b"<script>alert(1)</script>"
    assert answer.headers["Content-Disposition"].startswith("attachment")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_the_specification_is_openapi_3_1_and_names_every_route(client: Any, app: flask.Flask) -> None:
    spec = client.get("/api/v1/openapi.json").json
    assert spec["openapi"] == "3.1.0"
    documented = {path.replace("{", "<").replace("}", ">") for path in spec["paths"]}
    routes = {rule.rule for rule in app.url_map.iter_rules() if rule.endpoint not in ("static", "api-docs.openapi_json")}
    assert routes == documented


def test_health_tells_queue_and_events(client: Any) -> None:
    submit(client)
    told = client.get("/api/health/workflows").json
    assert told["queue"] == {"queued": 1, "running": 0}
    assert told["oldest_queued_seconds"] >= 0
    assert told["events"][0]["kind"] == "step.queued"


def test_a_step_that_waits_in_a_paused_workflow_is_not_stuck(client: Any, app: flask.Flask) -> None:
    made = submit(client).json
    with db.transaction(app.extensions["settings"].db_url) as session:
        session.get_one(WorkflowStep, made["steps"][0]["id"]).blocked_since = db.now(session)
    assert [entry["why"] for entry in client.get("/api/health/workflows").json["stuck"]] == ["waiting"]
    client.post(f"/api/v1/workflows/{made['id']}/pause")
    told = client.get("/api/health/workflows").json
    assert (told["stuck"], told["held"]) == ([], 1)
