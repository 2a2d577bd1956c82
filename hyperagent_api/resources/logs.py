"""What a step leaves: the log of its attempts, and the statement of what produced its commit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import flask
import redis
from flask_smorest import Blueprint
from sqlalchemy import select

from hyperagent_api.app import orm
from hyperagent_api.resources import artifacts
from hyperagent_api.resources.workflows import find, number
from hyperagent_api.stream import LOG_PAGE
from hyperagent_common import queue
from hyperagent_common.errors import BadInput, Fault, NotFound
from hyperagent_common.models import Artifact, StepAttempt, WorkflowStep
from hyperagent_common.settings import Settings
from hyperagent_common.states import AttemptState

MOST_ATTEMPTS = 2**31 - 1
"""The greatest number the database keeps for an attempt: none has it, and a greater one is not asked for."""
blueprint = Blueprint("logs", __name__, url_prefix="/api/v1/workflows", description="What steps leave")


@blueprint.route("/<workflow_id>/steps/<key>/provenance")
@blueprint.response(302, description="The newest provenance statement of the step, as an artifact")
@blueprint.alt_response(404, description="No such workflow or step, or it has none yet")
def provenance(workflow_id: str, key: str) -> Any:
    """Where the statement of what produced the step's commit is: what a patch's description links to."""
    named = (WorkflowStep.workflow_id == find(workflow_id), WorkflowStep.key == key, Artifact.name == "provenance.json")
    query = select(Artifact.id).join(WorkflowStep, Artifact.step_id == WorkflowStep.id).where(*named)
    found = orm.session.scalars(query.order_by(Artifact.id.desc()).limit(1)).first()
    if found is None:
        raise NotFound(f"The workflow has no provenance of a step {key!r}.")
    return flask.redirect(flask.url_for("artifacts.download", artifact_id=found))


@blueprint.route("/<workflow_id>/steps/<key>/log")
@blueprint.response(200, {"type": "string"}, content_type="application/jsonl")
@blueprint.alt_response(404, description="No such workflow, step or attempt")
def log(workflow_id: str, key: str) -> flask.Response:
    """The log of an attempt as JSON lines: live events while it runs, the kept stream afterwards.

    With `after`, the id of the last live event that was read, live events still, for a day after the attempt's end: what was
    read is not told again in other words.
    """
    attempt = _attempt(find(workflow_id), key, flask.request.args.get("attempt"))
    settings: Settings = flask.current_app.extensions["settings"]
    wanted = (Artifact.attempt_id == attempt.id, Artifact.name == "agent-stream.jsonl")
    row = orm.session.scalar(select(Artifact).where(*wanted))
    ended, after = attempt.state != AttemptState.RUNNING, flask.request.args.get("after", "0")
    headers = {"X-Attempt": str(attempt.number), "X-Attempt-State": attempt.state}
    if row is not None and ended and after == "0":
        return flask.Response(artifacts.begun(row), mimetype="application/jsonl", headers=headers)
    orm.session.remove()
    lines = _live(settings, attempt.id, after)
    return flask.Response(lines, mimetype="application/jsonl", headers={**headers, "X-Log": "live"})


def _live(settings: Settings, attempt_id: str, after: str) -> Iterator[str]:
    if not all(part.isdigit() for part in after.split("-", 1)):
        raise BadInput("The query is wrong.", faults=[Fault("after", "must be an entry's id")])
    client = queue.client(settings.broker, seconds=3, decode=True)
    try:
        entries: Any = client.xrange(f"hyperagent:log:{attempt_id}", min=f"({after}" if after != "0" else "-", count=LOG_PAGE)
    except redis.RedisError:
        entries = []  # the live view is gone with Redis; the kept stream comes at the end
    finally:
        client.close()
    lines = [json.dumps({"id": i, "kind": f["kind"], "data": json.loads(f["data"])}) + "\n" for i, f in entries]
    return iter(lines)


def _attempt(workflow_id: str, key: str, asked: str | None) -> StepAttempt:
    query = select(StepAttempt).join(WorkflowStep).where(WorkflowStep.workflow_id == workflow_id, WorkflowStep.key == key)
    if asked is not None:
        query = query.where(StepAttempt.number == min(number(asked, "attempt") or 0, MOST_ATTEMPTS))
    found = orm.session.scalars(query.order_by(StepAttempt.number.desc()).limit(1)).first()
    if found is None:
        raise NotFound(f"The workflow has no attempt {asked or ''} of a step {key!r}.".replace("  ", " "))
    return found
