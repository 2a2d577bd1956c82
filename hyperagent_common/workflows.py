"""Workflows in the database: submit a plan, advance what became ready; decided once, under a row lock."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime

from celery import Celery
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload
from sqlalchemy.orm.attributes import set_committed_value

from hyperagent_common import db, events, models, patches, queue, states
from hyperagent_common.errors import BadInput, Conflict, Fault, NotFound
from hyperagent_common.events import EventKind
from hyperagent_common.ids import new_id
from hyperagent_common.models import Workflow, WorkflowStep
from hyperagent_common.plan import Plan
from hyperagent_common.states import ProjectState, StepState, StepView, WorkflowState

BY_BUDGET = "budget"
"""Who paused a workflow whose budget is spent."""


def project(session: Session, name: str) -> models.Project:
    """The project called `name`, ready for workflows. Raises `NotFound`, `BadInput`."""
    query = select(models.Project).where(models.Project.name == name, models.Project.removed_at.is_(None))
    found = session.scalar(query.with_for_update(read=True, key_share=True))  # whoever removes it waits for us, or we for them
    if found is None:
        mend = "Register it first: `hyperagent project add NAME PATH`."
        raise NotFound(f"There is no project {name!r}.", faults=[Fault("project", "is not registered")], mend=mend)
    if found.state != ProjectState.READY:
        raise BadInput(f"The project {name!r} is {found.state}.", faults=[Fault("project", f"is {found.state}")])
    return found


def request_digest(project_name: str, plan: Plan) -> str:
    """sha256 (hex) of what was asked, to tell a repeated request from another under the same idempotency key."""
    return hashlib.sha256(json.dumps([project_name, plan.digest()]).encode()).hexdigest()


def repeated(session: Session, key: str | None, digest: str) -> Workflow | None:
    """The workflow an earlier request with this idempotency key made. Raises `Conflict` where that asked otherwise."""
    found = key and session.scalar(select(Workflow).where(Workflow.idempotency_key == key))
    if found and found.request_digest != digest:
        raise Conflict("This Idempotency-Key was used for another plan.", mend="Use a new key for a new plan.")
    return found or None


def submit(
    session: Session,
    app: Celery,
    target: models.Project,
    plan: Plan,
    *,
    max_attempts: int,
    requested_by: str = "",
    idempotency_key: str | None = None,
) -> Workflow:
    """Write a plan as a workflow with its steps, queue what is ready, and send it once this is committed."""
    moment = db.now(session)
    row = models.Plan(
        id=new_id(),
        kind=plan.kind,
        title=plan.title,
        description=plan.description,
        document=plan.document(),
        digest=plan.digest(),
        created_at=moment,
    )
    workflow_id = new_id()
    workflow = Workflow(
        id=workflow_id,
        project=target,
        plan=row,
        title=plan.title,
        state=WorkflowState.RUNNING,
        branch=f"hyperagent/{workflow_id}",
        requested_by=requested_by,
        idempotency_key=idempotency_key,
        request_digest=request_digest(target.name, plan),
        created_at=moment,
    )
    session.add_all([row, workflow])
    session.flush()
    _add_steps(session, workflow, plan, max_attempts)
    events.record(session, EventKind.WORKFLOW_SUBMITTED, workflow_id=workflow.id, at=moment, steps=len(plan.tasks))
    advance(session, app, workflow.id)
    return workflow


def _add_steps(session: Session, workflow: Workflow, plan: Plan, max_attempts: int) -> None:
    for position, planned in enumerate(plan.tasks):
        task = models.PlannerTask(
            id=new_id(),
            plan_id=workflow.plan_id,
            position=position,
            key=planned.id,
            title=planned.title,
            instructions=planned.instructions,
            agent_type=planned.agent_type,
            depends_on=list(planned.depends_on),
            checks=list(planned.checks),
            details=dict(planned.metadata),
        )
        step = WorkflowStep(workflow=workflow, planner_task=task, position=position, key=planned.id, max_attempts=max_attempts)
        session.add_all([task, step])
    session.flush()


def views(workflow: Workflow) -> list[StepView]:
    """The steps of a workflow as the pure decisions see them."""
    return [StepView(s.key, tuple(s.planner_task.depends_on), StepState(s.state)) for s in workflow.steps]


def locked(session: Session, workflow_id: str) -> Workflow:
    """The workflow and its steps, their rows locked until the transaction ends. Raises `NotFound`.

    The steps too: a claim takes a step without asking the workflow, and what is decided about a step must be about the step
    as it is. Whoever also locks one of its steps locks the workflow first: one order for all, so that nobody waits in a circle.
    """
    query = select(Workflow).where(Workflow.id == workflow_id).with_for_update(key_share=True)
    found = session.scalar(query.execution_options(populate_existing=True))
    if found is None:
        raise NotFound(f"There is no workflow {workflow_id!r}.")
    steps = select(WorkflowStep).where(WorkflowStep.workflow_id == workflow_id).order_by(WorkflowStep.position)
    locking = steps.with_for_update(key_share=True).options(selectinload(WorkflowStep.planner_task))
    rows = session.scalars(locking.execution_options(populate_existing=True)).all()
    set_committed_value(found, "steps", list(rows))
    return found


def advance(session: Session, app: Celery, workflow_id: str) -> None:
    """Queue every step that became ready, send its segment after the commit, and end the workflow where it ended."""
    workflow = locked(session, workflow_id)
    if workflow.state in states.WORKFLOW_ENDED:
        return
    moment = db.now(session)
    _enqueue_ready(session, app, workflow, moment)
    _settle(session, workflow, moment)


def _enqueue_ready(session: Session, app: Celery, workflow: Workflow, moment: datetime) -> None:
    for key in states.ready(views(workflow)) if workflow.state == WorkflowState.RUNNING else ():
        enqueue(session, app, workflow, key, moment)


def enqueue(session: Session, app: Celery, workflow: Workflow, key: str, moment: datetime) -> None:
    """Queue one step under a new generation and send the segment that starts with it."""
    step = next(s for s in workflow.steps if s.key == key)
    mark_queued(session, step, moment)
    send(session, app, workflow, step)


def mark_queued(session: Session, step: WorkflowStep, moment: datetime) -> None:
    """Queue a step under a new generation; its message is somebody else's to send."""
    step.state, step.generation, step.queued_at, step.sent_at = StepState.QUEUED, step.generation + 1, moment, moment
    events.record(session, EventKind.STEP_QUEUED, step=step, at=moment, generation=step.generation)


def send(session: Session, app: Celery, workflow: Workflow, head: WorkflowStep, to: str = "") -> None:
    """Send, after the commit, the segment that starts with the queued step `head`, to the host `to` where one is named."""
    by_key = {step.key: step for step in workflow.steps}
    keys = states.segment(views(workflow), head.key)
    links = [(head.id, head.generation), *((by_key[k].id, by_key[k].generation + 1) for k in keys[1:])]
    db.after_commit(session, lambda: queue.send_segment(app, workflow.id, links, **({"to": to} if to else {})))


def queue_following(session: Session, app: Celery, workflow: Workflow, done: WorkflowStep, moment: datetime) -> None:
    """Queue every step that `done` made ready: the one that follows it in its segment, whose message the chain under way
    carries, and the heads of other segments, which are sent. Not while paused. The workflow must be locked."""
    if workflow.state != WorkflowState.RUNNING:
        return
    following: Sequence[str] = states.segment(views(workflow), done.key)[1:2]
    for step in workflow.steps:
        if step.key in following and step.state == StepState.PENDING:
            mark_queued(session, step, moment)
    _enqueue_ready(session, app, workflow, moment)


def _settle(session: Session, workflow: Workflow, moment: datetime) -> None:
    state = states.workflow_state(views(workflow))
    if state is WorkflowState.RUNNING:
        return
    workflow.state, workflow.finished_at, workflow.version = state, moment, workflow.version + 1
    failed = next((s for s in workflow.steps if s.state == StepState.FAILED), None)
    workflow.reason = f"Step {failed.key} failed: {failed.reason}" if failed else None
    if state is not WorkflowState.DONE:
        patches.ended_without(session, workflow, moment)
    events.record(session, EventKind.WORKFLOW_ENDED, workflow_id=workflow.id, at=moment, state=str(state))


def pause(session: Session, workflow: Workflow, *, reason: str = "", by: str = "") -> None:
    """Begin nothing new; what runs goes on to its end. The workflow must be locked; one that does not run stays as it is."""
    if workflow.state == WorkflowState.RUNNING:
        moment = db.now(session)
        move(workflow, WorkflowState.PAUSED, reason or "Paused" + (f" by {by}." if by else "."))
        events.record(session, EventKind.WORKFLOW_PAUSED, workflow_id=workflow.id, at=moment, by=by, reason=reason)


def move(workflow: Workflow, state: WorkflowState, reason: str | None) -> None:
    """Bring the workflow into a state, under a new version."""
    workflow.state, workflow.reason, workflow.version = state, reason, workflow.version + 1
