"""Health: is this process up, can it work, how do the workflows stand. Constant time, however long the history is."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import flask
from flask_smorest import Blueprint
from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session

from hyperagent_api import problems, readiness, stream
from hyperagent_api.app import orm
from hyperagent_common import db
from hyperagent_common import events as runner_events
from hyperagent_common.errors import HyperagentError
from hyperagent_common.models import DeadLetter, RunnerEvent, Worker, Workflow, WorkflowStep
from hyperagent_common.settings import Settings
from hyperagent_common.states import StepState, WorkflowState
from hyperagent_common.upkeep_models import Reconciler

blueprint = Blueprint("health", __name__, description="How this HyperAgent is")
RECENT = 50
MOST = 10_000


@blueprint.route("/healthz")
@blueprint.response(200, {"type": "object"})
def alive() -> Any:
    """This process answers."""
    return flask.jsonify({"ok": True})


@blueprint.route("/readyz")
@blueprint.response(200, {"type": "object"})
@blueprint.alt_response(503, description="What is wrong, with its mend")
def ready() -> Any:
    """The database is ours and at least one worker is ready."""
    settings: Settings = flask.current_app.extensions["settings"]
    try:
        db.check(settings.db_url)
        with db.transaction(settings.db_url, reading=True) as session:
            warnings = readiness.require(session, settings)
    except HyperagentError as error:
        return problems.problem(503, error.type, error.message, faults=error.faults, mend=error.mend)
    if warnings:
        return problems.problem(503, "no-worker", warnings[0])
    return flask.jsonify({"ok": True})


@blueprint.route("/api/health/workflows")
@blueprint.response(200, {"type": "object"})
def workflows() -> Any:
    """Queue depth, oldest queued age in seconds, stuck steps, dead letters, workers and reconcilers, recent events."""
    settings: Settings = flask.current_app.extensions["settings"]
    orm.session.remove()
    with db.transaction(settings.db_url, reading=True) as session:
        return flask.jsonify(_standing(session, settings))


@blueprint.route("/api/health/workflows/stream")
@blueprint.response(200, {"type": "string"}, content_type="text/event-stream")
@blueprint.alt_response(503, description=stream.USED_UP)
def follow() -> flask.Response:
    """The same as server-sent events: `health` every two seconds, and every RunnerEvent as it comes (`Last-Event-ID`)."""
    settings: Settings = flask.current_app.extensions["settings"]
    heard = flask.request.headers.get("Last-Event-ID")
    after = None if heard is None else stream.position(heard)
    orm.session.remove()

    def standing() -> dict[str, Any]:
        with db.transaction(settings.db_url, reading=True) as session:
            return _standing(session, settings, recent=0)

    return stream.response(stream.health_events(settings.db_url, standing, after))


def _standing(session: Session, settings: Settings, recent: int = RECENT) -> dict[str, Any]:
    """How everything stands. Every query walks an index over what is open now, so a long history costs nothing."""
    now = db.now(session)
    queued = _steps(WorkflowStep.state == StepState.QUEUED, Workflow.state == WorkflowState.RUNNING)
    oldest = session.scalar(queued.with_only_columns(WorkflowStep.queued_at).order_by(WorkflowStep.queued_at).limit(1))
    found: dict[str, Any] = {
        "queue": {
            "queued": _count(session, queued),
            "running": _count(session, _steps(WorkflowStep.state == StepState.RUNNING)),
        },
        "held": _count(session, _steps(WorkflowStep.state == StepState.QUEUED, Workflow.state == WorkflowState.PAUSED)),
        "oldest_queued_seconds": (now - oldest).total_seconds() if oldest else None,
        "stuck": _stuck(session, now),
        "dead_letters": _count(session, select(DeadLetter.id).where(DeadLetter.resolved_at.is_(None))),
        "workers": [_worker(worker, now) for worker in readiness.known(session)],
        "reconcilers": [
            _reconciler(row, now)
            for row in session.scalars(select(Reconciler).order_by(Reconciler.last_seen.desc()).limit(RECENT))
        ],
    }
    if recent:
        entries = session.scalars(select(RunnerEvent).order_by(RunnerEvent.id.desc()).limit(recent))
        found["events"] = [runner_events.view(entry) for entry in entries]
    return found


def _steps(*where: ColumnElement[bool]) -> Select[Any]:
    return select(WorkflowStep.id).join(Workflow).where(*where)


def _count(session: Session, query: Select[Any]) -> int:
    """How many rows, counted up to `MOST`: more is told as that many."""
    return session.scalar(select(func.count()).select_from(query.limit(MOST).subquery())) or 0


def _stuck(session: Session, now: datetime) -> list[dict[str, Any]]:
    """Running steps whose worker has not renewed its lease in time, and those waiting for a dependency; a paused workflow's
    queued steps wait for whoever paused it."""
    kinds: dict[str, tuple[Any, tuple[ColumnElement[bool], ...]]] = {
        "silent": (WorkflowStep.lease_until, (WorkflowStep.state == StepState.RUNNING, WorkflowStep.lease_until < now)),
        "waiting": (
            WorkflowStep.blocked_since,
            (
                WorkflowStep.state == StepState.QUEUED,
                WorkflowStep.blocked_since.is_not(None),
                Workflow.state == WorkflowState.RUNNING,
            ),
        ),
    }
    return [
        {
            "workflow_id": step.workflow_id,
            "step": step.key,
            "why": why,
            "worker": step.lease_owner,
            "seconds": (now - since).total_seconds(),
            "reason": step.reason,
        }
        for why, (began, where) in kinds.items()
        for step, since in session.execute(
            select(WorkflowStep, began).join(WorkflowStep.workflow).where(*where).order_by(began).limit(RECENT)
        )
    ]


def _reconciler(row: Reconciler, now: datetime) -> dict[str, Any]:
    return {"id": row.id, "last_seen_seconds": (now - row.last_seen).total_seconds(), "did": row.did}


def _worker(worker: Worker, now: datetime) -> dict[str, Any]:
    return {
        "id": worker.id,
        "host": worker.host,
        "stopped": worker.stopped_at is not None,
        "last_seen_seconds": (now - worker.last_seen).total_seconds(),
        "parts": worker.parts,
        "faults": worker.faults,
    }
