"""Health: is this process up, can it work, how do the workflows stand. Constant time, however long the history is."""

from __future__ import annotations

from typing import Any

import flask
from flask_smorest import Blueprint
from sqlalchemy import func, select

from hyperagent_api import problems, readiness
from hyperagent_api.app import orm
from hyperagent_common import db
from hyperagent_common import events as runner_events
from hyperagent_common.errors import HyperagentError
from hyperagent_common.models import DeadLetter, RunnerEvent, WorkflowStep
from hyperagent_common.settings import Settings
from hyperagent_common.states import StepState

blueprint = Blueprint("health", __name__, description="How this HyperAgent is")
RECENT = 50


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
    """Queue depth, oldest queued age in seconds, workers with heartbeat and faults, dead letters, recent events."""
    settings: Settings = flask.current_app.extensions["settings"]
    moving = WorkflowStep.state.in_([StepState.QUEUED, StepState.RUNNING])
    counts = orm.session.execute(select(WorkflowStep.state, func.count()).where(moving).group_by(WorkflowStep.state))
    depth = {StepState.QUEUED.value: 0, StepState.RUNNING.value: 0} | {str(s): n for s, n in counts}
    oldest = orm.session.scalar(select(func.min(WorkflowStep.queued_at)).where(WorkflowStep.state == StepState.QUEUED))
    with db.transaction(settings.db_url, reading=True) as session:
        now = db.now(session)
        workers = readiness.live(session, settings)
    recent = orm.session.scalars(select(RunnerEvent).order_by(RunnerEvent.id.desc()).limit(RECENT))
    letters = orm.session.scalar(select(func.count()).select_from(DeadLetter).where(DeadLetter.resolved_at.is_(None)))
    return flask.jsonify(
        {
            "queue": depth,
            "oldest_queued_seconds": (now - oldest).total_seconds() if oldest else None,
            "dead_letters": letters,
            "workers": [
                {
                    "id": w.id,
                    "host": w.host,
                    "last_seen_seconds": (now - w.last_seen).total_seconds(),
                    "parts": w.parts,
                    "faults": w.faults,
                }
                for w in workers
            ],
            "events": [runner_events.view(entry) for entry in recent],
        }
    )
