"""Drafts: a goal in words becomes a plan through a planner agent, on a worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flask
from flask_smorest import Blueprint

from hyperagent_api import bodies, readiness
from hyperagent_api.app import orm
from hyperagent_api.schemas import PlanDraftSchema
from hyperagent_common import db, queue, workflows
from hyperagent_common.errors import BadInput, Fault, NotFound
from hyperagent_common.ids import new_id
from hyperagent_common.models import PlanDraft
from hyperagent_common.settings import Settings

blueprint = Blueprint("drafts", __name__, url_prefix="/api/v1", description="Plans a planner agent wrote for a goal")
MAX_GOAL = 20_000


@blueprint.route("/projects/<name>/drafts", methods=["POST"])
@blueprint.response(202, PlanDraftSchema)
@blueprint.alt_response(404, description="No such project")
@blueprint.alt_response(422, description="A fault in the goal; nothing is stored")
@blueprint.alt_response(503, description="No worker could do it now, each reason named; nothing is stored")
def ask(name: str) -> Any:
    """Ask the planner agent for a plan; read the draft until it is `done` or `failed`."""
    goal = _goal(bodies.mapping())
    settings: Settings = flask.current_app.extensions["settings"]
    app = flask.current_app.extensions["queue"]
    with db.transaction(settings.db_url) as session:
        project = workflows.project(session, name)
        warnings = readiness.require(session, settings)
        who = flask.request.headers.get("X-Requested-By", "")[:255]
        made = PlanDraft(id=new_id(), project_id=project.id, goal=goal, requested_by=who, created_at=db.now(session))
        session.add(made)
        draft_id = made.id
        message = queue.at_publisher(app, queue.DRAFT, draft_id, project.publisher)
        db.after_commit(session, lambda: message.apply_async())
    return _read(draft_id, warnings)


@blueprint.route("/drafts/<draft_id>")
@blueprint.response(200, PlanDraftSchema)
@blueprint.alt_response(404, description="No such draft")
def read(draft_id: str) -> Any:
    """Read a draft."""
    return _read(draft_id)


def _goal(body: dict[str, Any]) -> str:
    faults = bodies.unknown(body, ("goal",))
    goal = body.get("goal")
    if not isinstance(goal, str) or not goal.strip() or len(goal) > MAX_GOAL:
        faults.append(Fault("goal", f"must be a text of 1 to {MAX_GOAL} characters that says what is to be reached"))
    if faults:
        raise BadInput("The goal is wrong.", faults=faults)
    return str(goal).strip()


def _read(draft_id: str, warnings: Sequence[str] = ()) -> PlanDraft:
    orm.session.expire_all()
    found = orm.session.get(PlanDraft, draft_id) if "\x00" not in draft_id else None
    if found is None:
        raise NotFound(f"There is no draft {draft_id!r}.")
    found._warnings = list(warnings)  # type: ignore[attr-defined]
    return found
