"""Health: is this process up, can it work, how do the workflows stand. Constant time, however long the history is."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import flask
from flask_smorest import Blueprint
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hyperagent_api import problems, readiness, stream
from hyperagent_api.app import orm
from hyperagent_common import db
from hyperagent_common import events as runner_events
from hyperagent_common.errors import HyperagentError
from hyperagent_common.models import DeadLetter, RunnerEvent, Worker, WorkflowStep
from hyperagent_common.settings import Settings
from hyperagent_common.states import StepState

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
    """Queue depth, oldest queued age in seconds, stuck steps, workers with heartbeat and faults, dead letters, events."""
    settings: Settings = flask.current_app.extensions["settings"]
    orm.session.remove()
    with db.transaction(settings.db_url, reading=True) as session:
        return flask.jsonify(_standing(session, settings))


@blueprint.route("/api/health/workflows/stream")
@blueprint.response(200, {"type": "string"}, content_type="text/event-stream")
def follow() -> flask.Response:
    """The same as server-sent events: `health` every two seconds, and every RunnerEvent as it comes."""
    settings: Settings = flask.current_app.extensions["settings"]
    orm.session.remove()

    def standing() -> dict[str, Any]:
        with db.transaction(settings.db_url, reading=True) as session:
            return _standing(session, settings, recent=0)

    return stream.response(stream.health_events(settings.db_url, standing))


def _standing(session: Session, settings: Settings, recent: int = RECENT) -> dict[str, Any]:
    """How everything stands. Every query walks an index over what is open now, so a long history costs nothing."""
    now = db.now(session)
    counts = {
        str(state): session.scalar(_capped(select(WorkflowStep.id).where(WorkflowStep.state == state))) or 0
        for state in (StepState.QUEUED, StepState.RUNNING)
    }
    queued = WorkflowStep.state == StepState.QUEUED
    oldest = session.scalar(select(WorkflowStep.queued_at).where(queued).order_by(WorkflowStep.queued_at).limit(1))
    open_letters = session.scalar(_capped(select(DeadLetter.id).where(DeadLetter.resolved_at.is_(None)))) or 0
    found: dict[str, Any] = {
        "queue": counts,
        "oldest_queued_seconds": (now - oldest).total_seconds() if oldest else None,
        "stuck": _stuck(session, now),
        "dead_letters": open_letters,
        "workers": [_worker(worker, now) for worker in readiness.known(session)],
    }
    if recent:
        entries = session.scalars(select(RunnerEvent).order_by(RunnerEvent.id.desc()).limit(recent))
        found["events"] = [runner_events.view(entry) for entry in entries]
    return found


def _capped(query: Any) -> Any:
    """How many rows, counted up to `MOST`: more is told as that many."""
    return select(func.count()).select_from(query.limit(MOST).subquery())


def _stuck(session: Session, now: datetime) -> list[dict[str, Any]]:
    """Running steps whose worker has not renewed its lease in time, and those waiting for a dependency."""
    silent = select(WorkflowStep).where(WorkflowStep.state == StepState.RUNNING, WorkflowStep.lease_until < now)
    waiting = select(WorkflowStep).where(WorkflowStep.state == StepState.QUEUED, WorkflowStep.blocked_since.is_not(None))
    return [
        {
            "workflow_id": step.workflow_id,
            "step": step.key,
            "why": why,
            "worker": step.lease_owner,
            "seconds": (now - since).total_seconds() if since else None,
            "reason": step.reason,
        }
        for why, query in (("silent", silent), ("waiting", waiting))
        for step in session.scalars(query.order_by(WorkflowStep.queued_at).limit(RECENT))
        for since in [step.lease_until if why == "silent" else step.blocked_since]
    ]


def _worker(worker: Worker, now: datetime) -> dict[str, Any]:
    return {
        "id": worker.id,
        "host": worker.host,
        "stopped": worker.stopped_at is not None,
        "last_seen_seconds": (now - worker.last_seen).total_seconds(),
        "parts": worker.parts,
        "faults": worker.faults,
    }
