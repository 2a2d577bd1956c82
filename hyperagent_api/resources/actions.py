"""What people ask of workflows: pause, resume, cancel, retry; dead letters: list, replay, discard."""

from __future__ import annotations

import unicodedata
from typing import Any

import flask
from flask.views import MethodView
from flask_smorest import Blueprint
from sqlalchemy import select
from sqlalchemy.orm import selectinload

from hyperagent_api import bodies
from hyperagent_api.app import orm
from hyperagent_api.resources.workflows import find, page_limit
from hyperagent_api.schemas import DeadLetterSchema, WorkflowListedSchema, answer
from hyperagent_common import actions, db
from hyperagent_common.errors import BadInput, Fault
from hyperagent_common.models import DeadLetter, Workflow, WorkflowStep
from hyperagent_common.settings import Settings
from hyperagent_common.states import Action

blueprint = Blueprint("actions", __name__, url_prefix="/api/v1", description="What people ask of workflows")
MAX_REASON = 2000
BODY = {
    "required": False,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "reason": {"type": "string", "maxLength": MAX_REASON},
                    "version": {"type": "integer", "description": "Refuse where the workflow is at another version"},
                },
            }
        }
    },
}
REFUSED = "The state (named) does not allow it, or the version is stale; nothing changed"


def _route(action: Action) -> None:
    """POST /workflows/<id>/<action>."""

    def post(workflow_id: str) -> Any:
        asked = _asked()
        settings: Settings = flask.current_app.extensions["settings"]
        app = flask.current_app.extensions["queue"]
        known = _found(workflow_id)
        with db.transaction(settings.db_url) as session:
            return _listed(actions.take(session, app, known, action, budget=settings.max_attempts, **asked))

    post.__name__, post.__doc__ = action.value, f"{action.value.capitalize()} a workflow; true when it answers."
    described = blueprint.doc(requestBody=BODY)(
        blueprint.response(200, WorkflowListedSchema)(
            blueprint.alt_response(409, description=REFUSED)(blueprint.alt_response(404, description="No such workflow")(post))
        )
    )
    blueprint.route(f"/workflows/<workflow_id>/{action.value}", methods=["POST"])(described)


for each in Action:
    _route(each)


@blueprint.route("/workflows/<workflow_id>/steps/<key>/retry", methods=["POST"])
@blueprint.doc(requestBody=BODY)
@blueprint.response(200, WorkflowListedSchema)
@blueprint.alt_response(404, description="No such workflow or step")
@blueprint.alt_response(409, description=REFUSED)
def retry_step(workflow_id: str, key: str) -> Any:
    """Retry one failed step with a new budget."""
    asked, known = _without_reason(), _found(workflow_id)
    settings: Settings = flask.current_app.extensions["settings"]
    with db.transaction(settings.db_url) as session:
        app = flask.current_app.extensions["queue"]
        return _listed(actions.retry_step(session, app, known, key, budget=settings.max_attempts, **asked))


@blueprint.route("/dead-letters")
class DeadLetters(MethodView):
    """Steps that were given up."""

    @blueprint.response(200, DeadLetterSchema(many=True))
    def get(self) -> Any:
        """List dead letters, the newest first; open ones only, unless `resolved=true`; `after` (an id) and `limit` page."""
        asked = flask.request.args
        if asked.get("resolved", "false") not in ("true", "false"):
            raise BadInput("The query is wrong.", faults=[Fault("resolved", "must be true or false")])
        step = selectinload(DeadLetter.step).selectinload(WorkflowStep.workflow)
        query = select(DeadLetter).options(step).order_by(DeadLetter.id.desc())
        if asked.get("resolved") == "true":
            query = query.where(DeadLetter.resolved_at.is_not(None))
        else:
            query = query.where(DeadLetter.resolved_at.is_(None))
        if "after" in asked:
            query = query.where(DeadLetter.id < asked["after"])
        return orm.session.scalars(query.limit(page_limit())).all()


@blueprint.route("/dead-letters/<letter_id>/replay", methods=["POST"])
@blueprint.doc(requestBody=BODY)
@blueprint.response(200, DeadLetterSchema)
@blueprint.alt_response(404, description="No such dead letter")
@blueprint.alt_response(409, description="It is resolved already, or its workflow does not allow it or is at another version")
def replay(letter_id: str) -> Any:
    """Retry the step of a dead letter with a new budget."""
    asked, known = _without_reason(), _found(letter_id, DeadLetter.id, "dead letter", "dead-letters list")
    settings: Settings = flask.current_app.extensions["settings"]
    with db.transaction(settings.db_url) as session:
        app = flask.current_app.extensions["queue"]
        return answer(DeadLetterSchema, actions.replay(session, app, known, budget=settings.max_attempts, **asked))


@blueprint.route("/dead-letters/<letter_id>/discard", methods=["POST"])
@blueprint.doc(requestBody=BODY)
@blueprint.response(200, DeadLetterSchema)
@blueprint.alt_response(404, description="No such dead letter")
@blueprint.alt_response(409, description="It is resolved already, or its workflow is at another version")
def discard(letter_id: str) -> Any:
    """Close a dead letter; its step stays failed."""
    asked, known = _without_reason(), _found(letter_id, DeadLetter.id, "dead letter", "dead-letters list")
    settings: Settings = flask.current_app.extensions["settings"]
    with db.transaction(settings.db_url) as session:
        return answer(DeadLetterSchema, actions.discard(session, known, **asked))


def _found(prefix: str, *what: Any) -> str:
    """The whole id, looked up in a transaction that has ended."""
    known = find(prefix, *what)
    orm.session.remove()
    return known


def _by() -> str:
    return flask.request.headers.get("X-Requested-By", "")[:255]


def _asked() -> dict[str, Any]:
    """Reason and version of the body, or of If-Match. Raises `BadInput` naming every fault."""
    body = bodies.mapping() if flask.request.get_data(cache=True) else {}
    faults = bodies.unknown(body, ("reason", "version"))
    reason, (version, odd) = body.get("reason", ""), bodies.version(body)
    if not isinstance(reason, str) or len(reason) > MAX_REASON:
        faults.append(Fault("reason", f"must be text of at most {MAX_REASON} characters"))
    elif char := next((c for c in reason if not _taken(c)), ""):
        faults.append(Fault("reason", f"holds the character U+{ord(char):04X}, which is not taken; leave it out"))
    faults += odd
    if faults:
        raise BadInput("The request is wrong.", faults=faults, mend="Mend each.")
    return {"reason": reason, "version": version, "by": _by()}


def _taken(char: str) -> bool:
    """Whether a character may be in a reason: what shows, line feed, tab, spaces of all kinds, and what joins emoji."""
    return char.isprintable() or char in "\n\t\u200c\u200d" or unicodedata.category(char) == "Zs"


def _without_reason() -> dict[str, Any]:
    """As `_asked`, for what keeps no reason."""
    return {name: value for name, value in _asked().items() if name != "reason"}


def _listed(found: Workflow) -> flask.Response:
    return answer(WorkflowListedSchema, found, ETag=f'"{found.version}"')
