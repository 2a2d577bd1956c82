"""What the API answers, as marshmallow schemas: the same that OpenAPI documents."""

from __future__ import annotations

from typing import Any

import flask
from marshmallow import Schema, fields

from hyperagent_api.patch_schemas import PatchSchema, PatchSkipSchema
from hyperagent_common import models


class CheckResultSchema(Schema):
    """One check of an attempt."""

    round = fields.Integer()
    position = fields.Integer()
    command = fields.String()
    exit_code = fields.Integer(allow_none=True)
    passed = fields.Boolean()
    seconds = fields.Float(allow_none=True)
    output_tail = fields.String()


class AgentRunSchema(Schema):
    """One conversation: tokens and requests as the gateway observed them, `claimed` as the CLI said."""

    id = fields.String()
    role = fields.String()
    round = fields.Integer()
    provider = fields.String()
    model = fields.String()
    cli_version = fields.String(allow_none=True)
    session_id = fields.String(allow_none=True)
    end_reason = fields.String(allow_none=True)
    sentence = fields.String(allow_none=True)
    exit_code = fields.Integer(allow_none=True)
    container_id = fields.String(allow_none=True)
    image_id = fields.String(allow_none=True)
    input_tokens = fields.Integer(allow_none=True)
    output_tokens = fields.Integer(allow_none=True)
    cached_tokens = fields.Integer(allow_none=True)
    requests = fields.Integer(allow_none=True)
    cost_usd = fields.Float(allow_none=True)
    claimed = fields.Dict()
    log = fields.Function(lambda run: flask.current_app.extensions["storage"].location(run.log_key) if run.log_key else None)
    started_at = fields.AwareDateTime()
    finished_at = fields.AwareDateTime(allow_none=True)


class FindingSchema(Schema):
    """One thing a verifier found."""

    path = fields.String(allow_none=True)
    line = fields.Integer(allow_none=True)
    severity = fields.String()
    message = fields.String()


class VerdictSchema(Schema):
    """What a verifier said of one round."""

    round = fields.Integer()
    decision = fields.String()
    summary = fields.String()
    findings = fields.List(fields.Nested(FindingSchema))
    agent_run_id = fields.String()
    created_at = fields.AwareDateTime()


class StepAttemptSchema(Schema):
    """One try of a step."""

    id = fields.String()
    number = fields.Integer()
    fence = fields.Integer()
    state = fields.String()
    worker = fields.String()
    sandbox = fields.String(allow_none=True)
    forge = fields.String(allow_none=True)
    base_commit = fields.String(allow_none=True)
    started_at = fields.AwareDateTime()
    finished_at = fields.AwareDateTime(allow_none=True)
    error_type = fields.String(allow_none=True)
    reason = fields.String(allow_none=True)
    agent_runs = fields.List(fields.Nested(AgentRunSchema))
    checks = fields.List(fields.Nested(CheckResultSchema))
    verdicts = fields.List(fields.Nested(VerdictSchema))


class PlannerTaskSchema(Schema):
    """What the plan asked for."""

    key = fields.String()
    title = fields.String()
    instructions = fields.String()
    agent_type = fields.String()
    depends_on = fields.List(fields.String())
    checks = fields.List(fields.String())
    metadata = fields.Dict(attribute="details")


class WorkflowStepSchema(Schema):
    """A step with its attempts."""

    id = fields.String()
    key = fields.String()
    state = fields.String()
    reason = fields.String(allow_none=True)
    commit = fields.String(allow_none=True)
    attempt_count = fields.Integer()
    max_attempts = fields.Integer()
    free_attempts = fields.Integer()
    blocked_since = fields.AwareDateTime(allow_none=True)
    queued_at = fields.AwareDateTime(allow_none=True)
    started_at = fields.AwareDateTime(allow_none=True)
    finished_at = fields.AwareDateTime(allow_none=True)
    planner_task = fields.Nested(PlannerTaskSchema)
    attempts = fields.List(fields.Nested(StepAttemptSchema))


class ArtifactSchema(Schema):
    """A stored file: where it is, and where to fetch it."""

    id = fields.String()
    step_id = fields.String(allow_none=True)
    attempt_id = fields.String(allow_none=True)
    name = fields.String()
    media_type = fields.String()
    size = fields.Integer()
    sha256 = fields.String()
    trust = fields.String()
    href = fields.Function(lambda row: flask.url_for("artifacts.download", artifact_id=row.id))
    location = fields.Function(lambda row: flask.current_app.extensions["storage"].location(row.key))


class WorkflowListedSchema(Schema):
    """A workflow in a list."""

    id = fields.String()
    title = fields.String()
    state = fields.String()
    reason = fields.String(allow_none=True)
    version = fields.Integer()
    project = fields.Function(lambda row: row.project.name)
    created_at = fields.AwareDateTime()
    finished_at = fields.AwareDateTime(allow_none=True)


class WorkflowSchema(WorkflowListedSchema):
    """A workflow with everything under it."""

    branch = fields.String()
    base_commit = fields.String(allow_none=True)
    head = fields.String(allow_none=True)
    requested_by = fields.String()
    plan = fields.Function(lambda row: {"kind": row.plan.kind, "title": row.plan.title, "digest": row.plan.digest})
    steps = fields.List(fields.Nested(WorkflowStepSchema))
    patch = fields.Nested(PatchSchema, allow_none=True)
    patch_skip = fields.Nested(PatchSkipSchema, allow_none=True)
    artifacts = fields.List(fields.Nested(ArtifactSchema))
    parts = fields.Function(lambda row: parts_of(row))
    warnings = fields.List(fields.String(), attribute="_warnings")


class ProjectSchema(Schema):
    """A project."""

    id = fields.String()
    name = fields.String()
    description = fields.String()
    source = fields.String()
    path = fields.Function(lambda row: row.source)
    default_branch = fields.String()
    remote = fields.Function(lambda row: row.rid)
    state = fields.String()
    version = fields.Integer()
    faults = fields.List(fields.Dict())
    rid = fields.String(allow_none=True)
    forge = fields.String(allow_none=True)
    settings = fields.Dict()
    created_at = fields.AwareDateTime()


class TriggerEventSchema(Schema):
    """A comment or push that triggers were asked about."""

    id = fields.String()
    kind = fields.String()
    subject = fields.String()
    author = fields.String()
    rule = fields.String()
    outcome = fields.String()
    reason = fields.String()
    workflow_id = fields.String(allow_none=True)
    at = fields.AwareDateTime()


class DeadLetterSchema(Schema):
    """A step that was given up, with the reason."""

    id = fields.String()
    workflow_id = fields.Function(lambda row: row.step.workflow_id)
    workflow_state = fields.Function(lambda row: row.step.workflow.state)
    workflow_version = fields.Function(lambda row: row.step.workflow.version)
    step = fields.Function(lambda row: row.step.key)
    error_type = fields.String()
    reason = fields.String()
    created_at = fields.AwareDateTime()
    resolved_at = fields.AwareDateTime(allow_none=True)
    resolution = fields.String(allow_none=True)


class PlanDraftSchema(Schema):
    """A plan a planner agent wrote, to look at, edit and submit."""

    id = fields.String()
    project = fields.Function(lambda row: row.project.name)
    goal = fields.String()
    state = fields.String()
    reason = fields.String(allow_none=True)
    plan = fields.Dict(attribute="document", allow_none=True)
    requested_by = fields.String()
    created_at = fields.AwareDateTime()
    finished_at = fields.AwareDateTime(allow_none=True)
    warnings = fields.List(fields.String(), attribute="_warnings")
    agent_runs = fields.List(fields.Nested(AgentRunSchema))


class EventSchema(Schema):
    """A RunnerEvent."""

    id = fields.Integer()
    at = fields.AwareDateTime()
    kind = fields.String()
    workflow_id = fields.String(allow_none=True)
    step_id = fields.String(allow_none=True)
    attempt_id = fields.String(allow_none=True)
    worker = fields.String(allow_none=True)
    latency_ms = fields.Integer(allow_none=True)
    data = fields.Dict()


def answer(schema: type[Schema], row: Any, status: int = 200, **headers: str) -> flask.Response:
    """A row as the answer, all of it read now: made before a commit, it needs no database after it."""
    made: flask.Response = flask.jsonify(schema().dump(row))
    made.status_code = status
    made.headers.update(headers)
    return made


def parts_of(workflow: models.Workflow) -> dict[str, Any]:
    """Which parts really did the work so far, from the rows of the attempts; None where none did yet."""
    attempts = [attempt for step in workflow.steps for attempt in step.attempts]
    runs = [run for attempt in attempts for run in attempt.agent_runs]
    settings = flask.current_app.extensions["settings"]
    return {
        "agent": _one({run.provider for run in runs}),
        "sandbox": _one({attempt.sandbox for attempt in attempts if attempt.sandbox}),
        "forge": _one({attempt.forge for attempt in attempts if attempt.forge}),
        "database": "postgresql" if settings.db_url.startswith("postgres") else "sqlite",
        "broker": "redis",
    }


def _one(names: set[str]) -> str | None:
    return ", ".join(sorted(names)) or None
