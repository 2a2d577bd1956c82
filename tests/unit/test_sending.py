"""The API killed between its commit and the sending, a plan of 200 steps, and what each hand-over costs the database."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import event, select, text

from hyperagent_common import db, queue, settings
from hyperagent_common.models import Workflow, WorkflowStep
from hyperagent_common.states import StepState, WorkflowState
from hyperagent_tasks import claims, upkeep
from tests.harness import ROOT
from tests.unit.test_claims import Sent, _Parts, advance, app, state, steps, submitted, take, url

__all__ = ["app", "url"]
KILLED = """
import os, signal
from hyperagent_api.app import create_app
from hyperagent_common import db, ids, models, queue, settings
loaded = settings.load()
with db.transaction(loaded.db_url) as session:
    now = db.now(session)
    session.add(models.Project(id=ids.new_id(), name="p", source="/x", default_branch="m", state="ready", created_at=now))
queue.send_segment = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
tasks = [{"id": "a", "title": "a", "instructions": "a"}]
plan = {"kind": "hyperagent/plan", "title": "t", "tasks": tasks}
create_app(loaded).test_client().post("/api/v1/workflows", json={"project": "p", "plan": plan})
"""
WIDE, FEW = 200, 20
MOST_STATEMENTS = 40


def test_an_api_killed_between_commit_and_sending_loses_nothing(tmp_path: Path, app: Sent) -> None:
    url = f"sqlite:///{tmp_path / 'h.db'}"
    db.upgrade(url)
    env = {"HYPERAGENT_HOME": str(tmp_path), "HYPERAGENT_DATABASE_URL": url, "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", KILLED], env=env, cwd=ROOT, capture_output=True, timeout=120)
    assert done.returncode == -9, done.stderr
    with db.transaction(url) as session:
        step = session.scalars(select(WorkflowStep)).one()
        assert (step.state, session.scalars(select(Workflow.state)).one()) == (StepState.QUEUED, WorkflowState.RUNNING)
        step.sent_at = db.now(session) - timedelta(seconds=61)
    assert upkeep.reconcile(_Parts(url, app))["resend"] == 1  # type: ignore[arg-type]
    assert app.segments == [(step.workflow_id, [(step.id, 1)])]
    claims.finish(url, app, take(url, app, step), "a" * 40)
    assert upkeep.reconcile(_Parts(url, app))["advance"] == 1  # type: ignore[arg-type]
    assert state(url, step.workflow_id) == WorkflowState.DONE


def test_a_plan_of_200_steps_is_carried_out_and_a_step_costs_as_many_statements_as_in_a_small_one(url: str, app: Sent) -> None:
    tasks = [{"id": "first"}, *[{"id": f"s{n}", "depends_on": ["first"]} for n in range(WIDE - 2)]]
    tasks += [{"id": "last", "depends_on": [f"s{n}" for n in range(WIDE - 2)]}]
    document = {"kind": "hyperagent/plan", "title": "t", "tasks": [{"title": "t", "instructions": "i", **t} for t in tasks]}
    workflow_id = submitted(url, app, document)
    rows = steps(url, workflow_id)
    claims.finish(url, app, take(url, app, rows["first"]), "a" * 40)
    advance(url, app, workflow_id)
    assert len(app.segments) == WIDE - 1
    said: list[str] = []
    event.listen(db.engine(url), "before_cursor_execute", lambda *args: said.append(args[2]))
    claims.finish(url, app, take(url, app, steps(url, workflow_id)["s0"]), "b" * 40)
    advance(url, app, workflow_id)
    assert len(said) < MOST_STATEMENTS, len(said)
    for key, row in steps(url, workflow_id).items():
        if row.state == StepState.QUEUED:
            claims.finish(url, app, take(url, app, row), key[:1] * 40)
    advance(url, app, workflow_id)
    assert [links[0][0] for _, links in app.segments].count(rows["last"].id) == 1
    claims.finish(url, app, take(url, app, steps(url, workflow_id)["last"]), "c" * 40)
    advance(url, app, workflow_id)
    assert state(url, workflow_id) == WorkflowState.DONE


def test_a_broker_that_is_away_holds_a_wide_plan_up_once_and_the_reconciler_sends_it_all(
    url: str, app: Sent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = [{"id": f"s{n}", "title": "t", "instructions": "i"} for n in range(FEW)]
    asked: list[str] = []

    def away(_app: object, workflow_id: str, _links: object) -> None:
        asked.append(workflow_id)
        raise OSError("no broker")

    caplog.set_level("INFO")
    with monkeypatch.context() as broken:
        broken.setattr(queue, "send_segment", away)
        workflow_id = submitted(url, app, {"kind": "hyperagent/plan", "title": "t", "tasks": tasks})
    assert asked == [workflow_id]
    unsent = [record.__dict__ for record in caplog.records if record.message == "message.unsent"]
    assert [(told["error"], told["left"]) for told in unsent] == [("OSError: no broker", FEW)]
    assert [record.message for record in caplog.records].count("step.queued") == FEW
    with db.transaction(url) as session:
        for step in session.scalars(select(WorkflowStep)):
            step.sent_at = db.now(session) - timedelta(seconds=61)
    assert upkeep.reconcile(_Parts(url, app))["resend"] == FEW  # type: ignore[arg-type]
    assert len(app.segments) == FEW


def test_a_worker_of_another_version_does_not_start_and_says_why(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'h.db'}"
    db.upgrade(url)
    with db.transaction(url) as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    argv = [sys.executable, "-m", "celery", "-A", "hyperagent_tasks.worker", "worker", "-Q", "steps", "-c", "1"]
    env = {"HYPERAGENT_HOME": str(tmp_path), "HYPERAGENT_DATABASE_URL": url, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "The database schema is at 9999" in done.stderr
    assert "hyperagent db upgrade" in done.stderr


def test_the_depth_of_the_queue_is_told_where_the_broker_answers(redis_url: str, tmp_path: Path) -> None:
    loaded = settings.load({"HYPERAGENT_HOME": str(tmp_path), "HYPERAGENT_BROKER_URL": redis_url})
    assert queue.depth(redis_url) == 0
    celery = queue.make(loaded)
    for _ in range(3):
        queue.send_segment(celery, "w", [("s", 1)])
    assert queue.depth(redis_url) == 3
    celery.close()
    assert queue.depth("redis://127.0.0.1:1/0") is None
