"""Budgets at a step: what agent runs used, from their rows; what is left for the next; and the pause that asks a person."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hyperagent_common import db
from hyperagent_common.errors import BudgetSpent
from hyperagent_common.events import EventKind
from hyperagent_common.models import AgentRun, RunnerEvent, StepAttempt, Workflow, WorkflowStep
from hyperagent_tasks import budget
from hyperagent_tasks.budget import Left, Spent
from hyperagent_tasks.parts import Parts
from hyperagent_tasks.spec import StepSpec

MEND = "Resume the workflow to give the same budget once more, or cancel it."


def left(parts: Parts, step: StepSpec) -> Left:
    """What the next agent run may use. Raises `BudgetSpent` where nothing is left."""
    limits = step.choices.budgets
    if not limits:
        return Left()
    with db.transaction(parts.settings.db_url, reading=True) as session:
        rest = budget.left(limits, {scope: spent(session, step, scope) for scope in limits})
    if rest.spent:
        raise BudgetSpent(rest.spent, scope=rest.scope or "step", mend=MEND)
    return rest


def spent(session: Session, step: StepSpec, scope: str) -> Spent:
    """What agent runs of this step, workflow or project used so far, all attempts together."""
    of = _scope(session, step, scope)
    query = select(AgentRun).join(StepAttempt, StepAttempt.id == AgentRun.attempt_id).join(WorkflowStep).join(Workflow)
    runs = session.scalars(query.where(*of)).all()
    asked = select(RunnerEvent.data).where(RunnerEvent.kind == EventKind.BUDGET_GRANTED, *_events(session, step, scope))
    return Spent(
        tokens=sum((run.input_tokens or 0) + (run.output_tokens or 0) for run in runs),
        usd=sum(run.cost_usd or 0.0 for run in runs),
        unpriced=sum(run.cost_usd is None and bool(run.requests) for run in runs),
        seconds=sum((run.finished_at - run.started_at).total_seconds() for run in runs if run.finished_at),
        grants=sum(1 for data in session.scalars(asked) if data.get("scope") == scope),
    )


def _scope(session: Session, step: StepSpec, scope: str) -> list[Any]:
    if scope == "step":
        return [WorkflowStep.id == step.claim.step_id]
    if scope == "workflow":
        return [Workflow.id == step.claim.workflow_id]
    return [Workflow.project_id == session.get_one(Workflow, step.claim.workflow_id).project_id]


def _events(session: Session, step: StepSpec, scope: str) -> list[Any]:
    if scope == "step":
        return [RunnerEvent.step_id == step.claim.step_id]
    if scope == "workflow":
        return [RunnerEvent.workflow_id == step.claim.workflow_id]
    project = session.get_one(Workflow, step.claim.workflow_id).project_id
    return [RunnerEvent.workflow_id.in_(select(Workflow.id).where(Workflow.project_id == project))]
