"""Upkeep (beat): a snapshot, a pure decision, and compare-and-swap writes, so that running it twice does no harm."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import select
from sqlalchemy.orm import Session

from hyperagent_common import db, events, workflows
from hyperagent_common.errors import HyperagentError
from hyperagent_common.events import EventKind
from hyperagent_common.models import PlanDraft, StepAttempt, Workflow, WorkflowStep
from hyperagent_common.states import AttemptState, StepState, WorkflowState
from hyperagent_tasks.parts import Parts

log = logging.getLogger(__name__)
BATCH = 500


class Action(StrEnum):
    """What a stuck step needs."""

    EXPIRE = "expire"
    RESEND = "resend"


@dataclass(frozen=True)
class Stuck:
    """What the decision needs to know of a queued or running step."""

    step_id: str
    state: StepState
    generation: int
    fence: int
    sent_at: datetime | None
    lease_until: datetime | None
    attempts: int


def decide(steps: Sequence[Stuck], now: datetime, requeue_after: float, backoff_max: float) -> dict[str, Action]:
    """Step id to action. A step that failed before may be waiting for Celery's retry, so it gets that much longer."""
    actions: dict[str, Action] = {}
    for step in steps:
        if step.state is StepState.RUNNING and (step.lease_until is None or step.lease_until < now):
            actions[step.step_id] = Action.EXPIRE
        elif step.state is StepState.QUEUED:
            patience = requeue_after + (backoff_max if step.attempts else 0)
            if step.sent_at is None or step.sent_at + timedelta(seconds=patience) < now:
                actions[step.step_id] = Action.RESEND
    return actions


def reconcile(parts: Parts) -> dict[str, int]:
    """Do what is due; returns how much of each was done."""
    done = {action.value: 0 for action in Action}
    with db.transaction(parts.settings.db_url, reading=True) as session:
        stuck, moment = snapshot(session), db.now(session)
        running = session.scalars(
            select(Workflow.id).where(Workflow.state == WorkflowState.RUNNING).order_by(Workflow.id).limit(BATCH)
        ).all()
    actions = decide(stuck, moment, parts.settings.requeue_after, parts.settings.retry_backoff_max)
    for step in stuck:
        if step.step_id in actions and _apply(parts, step, actions[step.step_id]):
            done[actions[step.step_id].value] += 1
    for workflow_id in running:
        with db.transaction(parts.settings.db_url) as session:
            workflows.advance(session, parts.app, workflow_id)
    done["reaped"] = _reap(parts)
    return done


def snapshot(session: Session) -> list[Stuck]:
    """Every step that should be moving."""
    moving = WorkflowStep.state.in_([StepState.QUEUED, StepState.RUNNING])
    rows = session.scalars(select(WorkflowStep).where(moving).order_by(WorkflowStep.queued_at).limit(BATCH))
    return [Stuck(r.id, StepState(r.state), r.generation, r.fence, r.sent_at, r.lease_until, r.attempt_count) for r in rows]


def _apply(parts: Parts, seen: Stuck, action: Action) -> bool:
    """Act on a step that still is as it was seen; False where it moved on."""
    with db.transaction(parts.settings.db_url) as session:
        same = (
            WorkflowStep.id == seen.step_id,
            WorkflowStep.state == seen.state,
            WorkflowStep.generation == seen.generation,
            WorkflowStep.fence == seen.fence,
        )
        step = session.scalar(select(WorkflowStep).where(*same).with_for_update())
        moment = db.now(session)
        if step is None or (action is Action.EXPIRE and step.lease_until and step.lease_until >= moment):
            return False
        workflow = workflows.locked(session, step.workflow_id)
        if action is Action.EXPIRE:
            _expire(session, step, moment)
        else:
            step.sent_at = moment
            events.record(session, EventKind.STEP_RESENT, step=step, at=moment)
        session.flush()
        workflows.send(session, parts.app, workflow, step)
    return True


def _expire(session: Session, step: WorkflowStep, moment: datetime) -> None:
    """The worker that held this step is gone or late: queue it again; its fence keeps the old one from writing."""
    step.lease_until, step.reason = None, f"The worker {step.lease_owner} stopped answering."
    running = (StepAttempt.step_id == step.id, StepAttempt.state == AttemptState.RUNNING)
    for attempt in session.scalars(select(StepAttempt).where(*running)):
        attempt.state, attempt.finished_at, attempt.reason = AttemptState.ABANDONED, moment, step.reason
        attempt.error_type = "lease-lost"
    step.fence += 1
    events.record(session, EventKind.STEP_EXPIRED, step=step, at=moment, worker=step.lease_owner)
    workflows.mark_queued(session, step, moment)


def _reap(parts: Parts) -> int:
    """End containers and workspaces on this host that no running attempt owns."""
    with db.transaction(parts.settings.db_url, reading=True) as session:
        live = set(session.scalars(select(StepAttempt.id).where(StepAttempt.state == AttemptState.RUNNING)))
        live |= set(session.scalars(select(PlanDraft.id).where(PlanDraft.state == "running")))

    def keep(labels: Mapping[str, str]) -> bool:
        return labels.get("hyperagent.attempt") in live or labels.get("hyperagent.role") in ("radicle", "probe")

    try:
        ended = parts.runner.reap(keep)
        work = parts.settings.home / "work"
        for path in work.iterdir() if work.is_dir() else []:
            if path.name not in live:
                parts.runner.remove_tree(path)
    except (HyperagentError, OSError) as error:
        log.warning("reap.failed", extra={"error": str(error)})
        return 0
    return len(ended)
