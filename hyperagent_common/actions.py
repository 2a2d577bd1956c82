"""What people ask of workflows: pause, resume, cancel, retry; replay or discard a dead letter.

Each is one transaction under the workflow's lock, true when it returns. An action that the state does not allow, or
that was meant for an older version, raises `Conflict` naming the state, and nothing changes.
"""

from __future__ import annotations

from datetime import datetime

from celery import Celery
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from hyperagent_common import db, events, patches, workflows
from hyperagent_common.errors import Conflict, NotFound
from hyperagent_common.events import EventKind
from hyperagent_common.models import DeadLetter, Project, RunnerEvent, StepAttempt, Workflow, WorkflowStep
from hyperagent_common.states import ALLOWED, STEP_ENDED, STEP_RETRY, Action, AttemptState, StepState, WorkflowState

CANCELLED = "cancelled"


def take(
    session: Session,
    app: Celery,
    workflow_id: str,
    action: Action,
    *,
    budget: int,
    by: str = "",
    reason: str = "",
    version: int | None = None,
) -> Workflow:
    """Do `action` on a workflow; `budget` is what a retried step gets. Raises `NotFound`, `Conflict`."""
    workflow = workflows.locked(session, workflow_id)
    _expected(workflow, version)
    if workflow.state not in ALLOWED[action]:
        raise Conflict(f"The workflow is {workflow.state}; {action} is not possible.", mend=_instead(action))
    if action is Action.PAUSE:
        workflows.pause(session, workflow, reason=reason, by=by)
    elif action is Action.RESUME:
        _resume(session, app, workflow, by, reason)
    elif action is Action.CANCEL:
        _cancel(session, workflow, by, reason)
    else:
        _retry(session, app, workflow, [s for s in workflow.steps if s.state == StepState.FAILED], budget, by, reason)
    return workflow


def retry_step(
    session: Session, app: Celery, workflow_id: str, key: str, *, budget: int, by: str = "", version: int | None = None
) -> Workflow:
    """Give a failed step `budget` attempts more and let it run again. Raises `NotFound`, `Conflict`."""
    workflow = workflows.locked(session, workflow_id)
    _expected(workflow, version)
    step = next((s for s in workflow.steps if s.key == key), None)
    if step is None:
        raise NotFound(f"The workflow has no step {key!r}.")
    if step.state != StepState.FAILED:
        raise Conflict(f"The step {key} is {step.state}; only a failed step can be retried.")
    if workflow.state not in STEP_RETRY:
        raise Conflict(f"The workflow is {workflow.state}; its steps cannot be retried.", mend="Submit the plan again.")
    _retry(session, app, workflow, [step], budget, by)
    return workflow


def replay(session: Session, app: Celery, letter_id: str, *, budget: int, by: str = "", version: int | None = None) -> DeadLetter:
    """Retry the step of an open dead letter. Raises `NotFound`, `Conflict`."""
    letter = _letter(session, letter_id, version)
    step = session.get_one(WorkflowStep, letter.step_id)
    retry_step(session, app, step.workflow_id, step.key, budget=budget, by=by)
    return letter


def discard(session: Session, letter_id: str, *, by: str = "", version: int | None = None) -> DeadLetter:
    """Close a dead letter without trying again; its step stays failed. Raises `NotFound`, `Conflict`."""
    letter = _letter(session, letter_id, version)
    _resolve(session, letter.step_id, "discarded", by)
    session.get_one(Workflow, session.get_one(WorkflowStep, letter.step_id).workflow_id).version += 1
    return letter


def _letter(session: Session, letter_id: str, version: int | None) -> DeadLetter:
    found = session.get(DeadLetter, letter_id)
    if found is None:
        raise NotFound(f"There is no dead letter {letter_id!r}.")
    workflow = workflows.locked(session, session.get_one(WorkflowStep, found.step_id).workflow_id)
    session.refresh(found)
    if found.resolved_at is not None:
        raise Conflict(f"The dead letter was {found.resolution} already.")
    _expected(workflow, version)
    return found


def _expected(workflow: Workflow, version: int | None) -> None:
    if version is not None and version != workflow.version:
        told = f"The workflow is {workflow.state} at version {workflow.version}, not at version {version}."
        raise Conflict(told, mend="Look at it again, then repeat what still applies.")


def _instead(action: Action) -> str:
    allowed = " or ".join(sorted(ALLOWED[action]))
    return f"It is taken where the workflow is {allowed}."


def _resume(session: Session, app: Celery, workflow: Workflow, by: str, reason: str) -> None:
    moment = db.now(session)
    workflows.move(workflow, WorkflowState.RUNNING, None)
    _grant(session, workflow, moment)
    events.record(session, EventKind.WORKFLOW_RESUMED, workflow_id=workflow.id, at=moment, by=by, reason=reason)
    for step in workflow.steps:  # their messages may have come and gone while nothing could be claimed
        if step.state == StepState.QUEUED:
            step.blocked_since = None
            workflows.enqueue(session, app, workflow, step.key, moment)
    session.flush()
    workflows.advance(session, app, workflow.id)


def _grant(session: Session, workflow: Workflow, moment: datetime) -> None:
    """Where spent budgets paused the workflow, each of them counts once more, however many of its steps found it spent."""
    happened = (RunnerEvent.workflow_id == workflow.id,)
    newest = select(RunnerEvent).where(*happened).order_by(RunnerEvent.id.desc()).limit(1)
    paused = session.scalar(newest.where(RunnerEvent.kind == EventKind.WORKFLOW_PAUSED))
    resumed = session.scalar(newest.where(RunnerEvent.kind == EventKind.WORKFLOW_RESUMED))
    if paused is None or paused.data["by"] != workflows.BY_BUDGET:
        return
    since = (RunnerEvent.kind == EventKind.BUDGET_SPENT, RunnerEvent.id > (resumed.id if resumed else 0))
    spent = {
        (e.data["scope"], e.step_id if e.data["scope"] == "step" else None)
        for e in session.scalars(select(RunnerEvent).where(*happened, *since))
    }
    steps = {step.id: step for step in workflow.steps}
    for scope, step_id in sorted(spent, key=str):
        step = steps.get(step_id or "")
        events.record(session, EventKind.BUDGET_GRANTED, step=step, workflow_id=workflow.id, at=moment, scope=scope)


def _cancel(session: Session, workflow: Workflow, by: str, reason: str) -> None:
    """Every step that has not ended is cancelled and its claim fenced off: its worker ends what it runs within seconds."""
    moment = db.now(session)
    told = reason or "Cancelled" + (f" by {by}." if by else ".")
    for step in workflow.steps:
        if step.state not in STEP_ENDED:
            _cancel_step(session, step, moment, told)
    workflows.move(workflow, WorkflowState.CANCELLED, told)
    workflow.finished_at = moment
    patches.ended_without(session, workflow, moment)
    events.record(session, EventKind.WORKFLOW_CANCELLED, workflow_id=workflow.id, at=moment, by=by, reason=reason)
    events.record(session, EventKind.WORKFLOW_ENDED, workflow_id=workflow.id, at=moment, state=str(workflow.state))


def _cancel_step(session: Session, step: WorkflowStep, moment: datetime, told: str) -> None:
    step.state, step.finished_at, step.reason = StepState.CANCELLED, moment, told
    step.fence, step.generation, step.lease_until, step.blocked_since = step.fence + 1, step.generation + 1, None, None
    running = (StepAttempt.step_id == step.id, StepAttempt.state == AttemptState.RUNNING)
    closed = {"state": AttemptState.ABANDONED, "finished_at": moment, "error_type": CANCELLED, "reason": told}
    session.execute(update(StepAttempt).where(*running).values(**closed))
    events.record(session, EventKind.STEP_CANCELLED, step=step, at=moment, worker=step.lease_owner)


def _retry(
    session: Session, app: Celery, workflow: Workflow, failed: list[WorkflowStep], budget: int, by: str, reason: str = ""
) -> None:
    """Each failed step gets `budget` attempts more."""
    _require_project(session, workflow)
    moment = db.now(session)
    for step in failed:
        _resolve(session, step.id, "replayed", by)
        step.max_attempts = step.attempt_count - step.free_attempts + budget
        step.state, step.reason, step.finished_at, step.blocked_since = StepState.PENDING, None, None, None
        events.record(session, EventKind.STEP_RETRIED, step=step, at=moment, by=by, reason=reason)
    if workflow.state == WorkflowState.FAILED:
        workflows.move(workflow, WorkflowState.RUNNING, None)
        workflow.finished_at = None
    else:
        workflow.version += 1
    session.flush()
    workflows.advance(session, app, workflow.id)


def _require_project(session: Session, workflow: Workflow) -> None:
    """Raise `Conflict` where the project was removed; whoever removes it now waits for us, or we for them."""
    query = select(Project).where(Project.id == workflow.project_id).with_for_update(read=True, key_share=True)
    project = session.scalars(query.execution_options(populate_existing=True)).one()
    if project.removed_at is not None:
        mend = "Register it again: `hyperagent project add NAME PATH`."
        raise Conflict(f"The project {project.name} is removed; nothing of it runs any more.", mend=mend)


def _resolve(session: Session, step_id: str, resolution: str, by: str) -> None:
    moment = db.now(session)
    opened = select(DeadLetter).where(DeadLetter.step_id == step_id, DeadLetter.resolved_at.is_(None))
    for letter in session.scalars(opened):
        letter.resolved_at, letter.resolution = moment, resolution
        step = session.get_one(WorkflowStep, step_id)
        events.record(session, EventKind.LETTER_RESOLVED, step=step, at=moment, letter=letter.id, resolution=resolution, by=by)
