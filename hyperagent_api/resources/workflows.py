"""Workflows: submit a plan, read it with everything under it, follow its events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flask
from flask.views import MethodView
from flask_smorest import Blueprint
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstrumentedAttribute, Session, scoped_session, selectinload

from hyperagent_api import bodies, readiness, stream
from hyperagent_api.app import orm
from hyperagent_api.resources import forge_health
from hyperagent_api.schemas import EventSchema, WorkflowListedSchema, WorkflowSchema, answer
from hyperagent_common import db, plan, workflows
from hyperagent_common.errors import BadInput, Fault, HyperagentError, NotFound
from hyperagent_common.models import Project, RunnerEvent, StepAttempt, Workflow, WorkflowStep
from hyperagent_common.settings import Settings
from hyperagent_common.states import WorkflowState

blueprint = Blueprint("workflows", __name__, url_prefix="/api/v1/workflows", description="Plans being carried out")
PAGE = 50
MAX_PAGE = 200
MAX_KEY = 255
EVENTS_PAGE = 500
BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["project", "plan"],
                "additionalProperties": False,
                "properties": {"project": {"type": "string"}, "plan": {"type": "object"}},
            }
        }
    },
}


@blueprint.route("")
class Workflows(MethodView):
    """All workflows."""

    @blueprint.response(200, WorkflowListedSchema(many=True))
    @blueprint.alt_response(422, description="A fault in the query")
    def get(self) -> Any:
        """List workflows, the newest first; `after` (an id) and `limit` page, `project` and `state` filter."""
        limit, asked = page_limit(), flask.request.args
        query = select(Workflow).options(selectinload(Workflow.project)).order_by(Workflow.id.desc())
        if "after" in asked:
            query = query.where(Workflow.id < asked["after"])
        if "project" in asked:
            query = query.join(Project).where(Project.name == asked["project"])
        if "state" in asked:
            if asked["state"] not in set(WorkflowState):
                raise BadInput("The query is wrong.", faults=[Fault("state", f"must be one of {', '.join(WorkflowState)}")])
            query = query.where(Workflow.state == asked["state"])
        rows = orm.session.scalars(query.limit(limit + 1)).all()
        headers = {}
        if len(rows) > limit:
            following = flask.url_for("workflows.Workflows", **_kept(asked), after=rows[limit - 1].id, limit=limit)
            headers["Link"] = f'<{following}>; rel="next"'
        return list(rows[:limit]), 200, headers

    @blueprint.doc(requestBody=BODY)
    @blueprint.response(202, WorkflowSchema)
    @blueprint.alt_response(200, schema=WorkflowSchema, description="This Idempotency-Key made this workflow before")
    @blueprint.alt_response(422, description="Every fault of the request; nothing is stored")
    @blueprint.alt_response(503, description="No worker could do it now, each reason named; nothing is stored")
    def post(self) -> Any:
        """Submit a plan."""
        body = bodies.mapping()
        settings: Settings = flask.current_app.extensions["settings"]
        key = flask.request.headers.get("Idempotency-Key") or None
        try:
            return _submit(settings, body, key)
        except IntegrityError:  # the same key at the same time: the other request has made it
            return _submit(settings, body, key)


@blueprint.route("/<workflow_id>")
class OneWorkflow(MethodView):
    """One workflow."""

    @blueprint.response(200, WorkflowSchema)
    @blueprint.alt_response(404, description="No such workflow")
    def get(self, workflow_id: str) -> Any:
        """Read a workflow by its id or a unique beginning of it."""
        found = _whole(orm.session, find(workflow_id))
        return found, 200, {"ETag": f'"{found.version}"'}


@blueprint.route("/<workflow_id>/events")
@blueprint.response(200, EventSchema(many=True))
@blueprint.alt_response(404, description="No such workflow")
def events(workflow_id: str) -> Any:
    """The RunnerEvents of a workflow after the event `after`, oldest first, at most 500."""
    workflow_id, after = find(workflow_id), _after()
    wanted = select(RunnerEvent).where(RunnerEvent.workflow_id == workflow_id, RunnerEvent.id > after)
    return orm.session.scalars(wanted.order_by(RunnerEvent.id).limit(EVENTS_PAGE)).all()


@blueprint.route("/<workflow_id>/stream")
@blueprint.response(200, {"type": "string"}, content_type="text/event-stream")
@blueprint.alt_response(404, description="No such workflow")
@blueprint.alt_response(503, description=stream.USED_UP)
def follow(workflow_id: str) -> flask.Response:
    """The same as server-sent events, until the workflow has ended."""
    workflow_id = find(workflow_id)
    settings: Settings = flask.current_app.extensions["settings"]
    after = number(flask.request.headers.get("Last-Event-ID"), "Last-Event-ID") or _after()
    orm.session.remove()  # a stream holds no connection while it waits
    return stream.response(stream.workflow_events(settings.db_url, workflow_id, after))


def _submit(settings: Settings, body: dict[str, Any], key: str | None) -> flask.Response:
    """As `_submitted`; where the host's last word is old or refuses, what broke or was mended since is asked for first."""
    try:
        return _submitted(settings, body, key, asked=False)
    except readiness.Unasked as unasked:
        forge_health.ask(settings, host=unasked.host, seconds=unasked.seconds)
        return _submitted(settings, body, key, asked=True)


def _submitted(settings: Settings, body: dict[str, Any], key: str | None, *, asked: bool) -> flask.Response:
    """202 and the workflow, with warnings; 200 where this key had made it before. The answer is ready before the commit."""
    with db.transaction(settings.db_url) as session:
        project, parsed = _read(session, body, key)
        before = workflows.repeated(session, key, workflows.request_digest(body["project"], parsed))
        if before is not None:
            return _told(session, before.id, 200, [])
        if isinstance(project, HyperagentError):
            raise project
        warnings = readiness.require(session, settings)
        warnings += readiness.require_forge(session, settings, project, asked=asked)
        made = workflows.submit(
            session,
            flask.current_app.extensions["queue"],
            project,
            parsed,
            max_attempts=settings.max_attempts,
            requested_by=flask.request.headers.get("X-Requested-By", "")[:255],
            idempotency_key=key,
        )
        return _told(session, made.id, 202, warnings)


def _told(session: Session, workflow_id: str, status: int, warnings: list[str]) -> flask.Response:
    found = _whole(session, workflow_id)
    found._warnings = warnings  # type: ignore[attr-defined]
    return answer(WorkflowSchema, found, status, Location=flask.url_for("workflows.OneWorkflow", workflow_id=workflow_id))


def _read(session: Session, body: dict[str, Any], key: str | None) -> tuple[Project | HyperagentError, plan.Plan]:
    """The project, or why it takes nothing now, and the plan; or one refusal naming every fault of both."""
    faults = bodies.unknown(body, ("project", "plan"))
    if key is not None and len(key) > MAX_KEY:
        faults.append(Fault("Idempotency-Key", f"has {len(key)} characters; at most {MAX_KEY} are taken"))
    project = _project(session, body.get("project"))
    try:
        parsed = plan.parse(body.get("plan"))
    except BadInput as error:
        faults += [Fault(f.field if f.field == "plan" else f"plan.{f.field}", f.message) for f in error.faults]
    if faults or not isinstance(body.get("project"), str):
        lacking = project.faults if isinstance(project, HyperagentError) else ()
        raise BadInput("The request is wrong.", faults=[*faults, *lacking], mend="Mend each.")
    return project, parsed


def _project(session: Session, name: Any) -> Project | HyperagentError:
    if not isinstance(name, str):
        return BadInput("The request is wrong.", faults=[Fault("project", "must be the name of a project")])
    try:
        return workflows.project(session, name)
    except HyperagentError as error:
        return error


def find(prefix: str, ids: InstrumentedAttribute[str] = Workflow.id, what: str = "workflow", shown: str = "list") -> str:
    """The id that `prefix` begins, of a workflow. Raises `NotFound`, `BadInput` where it begins several."""
    escaped = prefix.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    query = select(ids).where(ids.like(f"{escaped}%", escape="\\")).limit(2)
    found = orm.session.scalars(query).all() if len(prefix) >= 4 and "\x00" not in prefix else []
    if not found:
        raise NotFound(f"There is no {what} {prefix!r}.", mend=f"`hyperagent {shown}` shows them.")
    if len(found) > 1:
        raise BadInput(f"More than one {what} begins with {prefix!r}.", mend="Give more of the id.")
    return found[0]


def _whole(session: Session | scoped_session[Any], workflow_id: str) -> Workflow:
    steps = selectinload(Workflow.steps)
    query = (
        select(Workflow)
        .where(Workflow.id == workflow_id)
        .options(
            selectinload(Workflow.project),
            selectinload(Workflow.plan),
            selectinload(Workflow.patch),
            selectinload(Workflow.artifacts),
            steps.selectinload(WorkflowStep.planner_task),
            steps.selectinload(WorkflowStep.attempts).selectinload(StepAttempt.agent_runs),
            steps.selectinload(WorkflowStep.attempts).selectinload(StepAttempt.checks),
            steps.selectinload(WorkflowStep.attempts).selectinload(StepAttempt.verdicts),
        )
    )
    found = session.scalars(query.execution_options(populate_existing=True)).one()
    found._warnings = []  # type: ignore[attr-defined]
    return found


def _kept(asked: Mapping[str, str]) -> dict[str, Any]:
    """The filters a following page keeps; whatever else was asked goes nowhere."""
    return {name: asked[name] for name in ("project", "state") if name in asked}


def page_limit() -> int:
    """The query's `limit`. Raises `BadInput`."""
    limit = number(flask.request.args.get("limit"), "limit")
    if limit is None:
        return PAGE
    if not 1 <= limit <= MAX_PAGE:
        raise BadInput("The query is wrong.", faults=[Fault("limit", f"must be 1 to {MAX_PAGE}")])
    return limit


def _after() -> int:
    return number(flask.request.args.get("after"), "after") or 0


def number(text: str | None, name: str) -> int | None:
    """A whole number of the query. Raises `BadInput`."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise BadInput("The query is wrong.", faults=[Fault(name, "must be a whole number")])
    return int(text)
