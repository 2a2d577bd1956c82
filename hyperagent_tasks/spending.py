"""Budgets at a step: what agent runs used, from their rows; what is left for the next; and the pause that asks a person."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from hyperagent_common import db
from hyperagent_common.choices import Amount
from hyperagent_common.errors import BudgetSpent
from hyperagent_common.events import EventKind
from hyperagent_common.models import AgentRun, PlanDraft, RunnerEvent, StepAttempt, Workflow, WorkflowStep
from hyperagent_tasks import budget
from hyperagent_tasks.budget import Left, Spent
from hyperagent_tasks.parts import Parts
from hyperagent_tasks.spec import StepSpec

MEND = "Resume the workflow to give the same budget once more, or cancel it."
OF_A_DRAFT = "Raise budgets.project in the project's settings, or write the plan by hand."


def left(parts: Parts, step: StepSpec) -> Left:
    """What the next agent run of a step may use. Raises `BudgetSpent` where nothing is left."""
    whose = {"workflow": step.claim.workflow_id, "project": step.project_id}
    return _left(parts, step.choices.budgets, lambda session, scope: spent(session, step, scope), whose, MEND)


def left_to_draft(parts: Parts, project_id: str, limits: Mapping[str, Amount]) -> Left:
    """What a planner's next run may use: only the project's budget concerns it. Raises `BudgetSpent`."""
    limits = {k: v for k, v in limits.items() if k == "project"}
    return _left(parts, limits, partial(_of_project, project_id), {"project": project_id}, OF_A_DRAFT)


def _left(
    parts: Parts, limits: Mapping[str, Amount], used: Callable[[Session, str], Spent], whose: Mapping[str, str], mend: str
) -> Left:
    found: dict[str, Spent] = {}
    if limits:
        with db.transaction(parts.settings.db_url, reading=True) as session:
            found = {scope: used(session, scope) for scope in limits}
    rest = budget.left(limits, found)
    if rest.spent:
        raise BudgetSpent(rest.spent, scope=rest.scope or "step", mend=mend)
    shares = [budget.share(scope, of, limits.get(scope, Amount()), found.get(scope, Spent())) for scope, of in whose.items()]
    return replace(rest, shares=tuple(shares), open=tuple({run for each in found.values() for run in each.open}))


def spent(session: Session, step: StepSpec, scope: str) -> Spent:
    """What agent runs of this step, workflow or project used so far, all attempts together; a project's planners too."""
    claim = step.claim
    if scope == "project":
        return _of_project(session.get_one(Workflow, claim.workflow_id).project_id, session)
    mine = (WorkflowStep.id, claim.step_id) if scope == "step" else (WorkflowStep.workflow_id, claim.workflow_id)
    told = (RunnerEvent.step_id, claim.step_id) if scope == "step" else (RunnerEvent.workflow_id, claim.workflow_id)
    runs = session.scalars(select(AgentRun).join(StepAttempt).join(WorkflowStep).where(mine[0] == mine[1])).all()
    return _sum(session, scope, runs, told[0] == told[1])


def _of_project(project_id: str, session: Session, scope: str = "project") -> Spent:
    ours = select(AgentRun).join(StepAttempt).join(WorkflowStep).join(Workflow).where(Workflow.project_id == project_id)
    drafts = select(AgentRun).join(PlanDraft, PlanDraft.id == AgentRun.draft_id).where(PlanDraft.project_id == project_id)
    runs = [*session.scalars(ours), *session.scalars(drafts)]
    return _sum(session, scope, runs, RunnerEvent.workflow_id.in_(select(Workflow.id).where(Workflow.project_id == project_id)))


def _sum(session: Session, scope: str, runs: Sequence[AgentRun], of: ColumnElement[bool]) -> Spent:
    given = session.scalars(select(RunnerEvent.data).where(RunnerEvent.kind == EventKind.BUDGET_GRANTED, of))
    return Spent(
        tokens=sum((run.input_tokens or 0) + (run.output_tokens or 0) for run in runs),
        usd=sum(run.cost_usd or 0.0 for run in runs),
        unpriced=sum(run.cost_usd is None and bool(run.requests) for run in runs),
        seconds=sum((run.finished_at - run.started_at).total_seconds() for run in runs if run.finished_at),
        open=tuple(run.id for run in runs if run.finished_at is None),
        grants=sum(1 for data in given if data.get("scope") == scope),
    )
