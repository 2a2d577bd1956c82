"""Upkeep (beat): a snapshot, a pure decision, and compare-and-swap writes, so that running it twice does no harm.

The database's part runs as a Celery task on any host; reaping is each host's own and runs with its heartbeat.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial

from sqlalchemy import and_, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from hyperagent_common import db, events, patches, queue, workflows
from hyperagent_common.events import EventKind
from hyperagent_common.models import StepAttempt, Workflow, WorkflowStep
from hyperagent_common.settings import Settings
from hyperagent_common.states import STEP_ENDED, AttemptState, StepState, WorkflowState
from hyperagent_common.upkeep_models import Reconciler
from hyperagent_tasks import claims, deadline, endings, publishers, resending, spec
from hyperagent_tasks.claims import Claim
from hyperagent_tasks.parts import Parts

log = logging.getLogger(__name__)
BATCH = 500
LONGEST_SILENCE = 1800.0
"""Seconds after which a queued step is sent again in any case: twice the time each time would grow for ever."""


class Action(StrEnum):
    """What a stuck step needs."""

    EXPIRE = "expire"
    TIME_OUT = "time_out"
    GIVE_UP = "give_up"
    RESEND = "resend"


REASONS = {
    Action.EXPIRE: "The worker {owner} stopped answering.",
    Action.TIME_OUT: "The worker {owner} held the step longer than its rounds and agents may take.",
    Action.GIVE_UP: "The worker {owner} stopped answering, and no attempt is left.",
}


@dataclass(frozen=True)
class Stuck:
    """What the decision needs to know of a queued or running step; `late` is when its attempt is taken from its worker, whatever
    that does; `committed` where only the host that publishes has something left to do."""

    step_id: str
    workflow_id: str
    state: StepState
    generation: int
    fence: int
    queued_at: datetime | None
    sent_at: datetime | None
    lease_until: datetime | None
    late: datetime | None
    attempts: int
    budget: int
    committed: bool = False


@dataclass(frozen=True)
class Limits:
    """Seconds: until a sent message is sent again, and what a retry may wait beyond that.

    `drained`: the queue of steps is known to be empty, so a message nobody took is lost, not waiting its turn; of the queues of
    single hosts, which committed steps go to, nothing is known.
    """

    requeue_after: float
    backoff_max: float
    drained: bool = True


def decide(steps: Sequence[Stuck], now: datetime, limits: Limits) -> dict[str, Action]:
    """Step id to action. A step that failed before may be waiting for Celery's retry, so it gets that much longer.

    A step that waits in a backlog was sent for nothing: it is sent again at twice the age each time, else the queue would
    grow by every waiting step every `requeue_after` seconds.
    """
    found = {step.step_id: _decide(step, now, limits) for step in steps}
    return {step_id: action for step_id, action in found.items() if action is not None}


def _decide(step: Stuck, now: datetime, limits: Limits) -> Action | None:
    if step.state is StepState.RUNNING:
        silent = step.lease_until is None or step.lease_until < now
        late = step.late is not None and step.late < now
        if not silent and not late:
            return None
        if step.attempts >= step.budget:
            return Action.GIVE_UP
        return Action.EXPIRE if silent else Action.TIME_OUT
    if step.state is StepState.QUEUED and (step.sent_at is None or step.sent_at + _patience(step, limits) < now):
        return Action.RESEND
    return None


def _patience(step: Stuck, limits: Limits) -> timedelta:
    seconds = limits.requeue_after + (limits.backoff_max if step.attempts else 0)
    if (step.committed or not limits.drained) and step.queued_at and step.sent_at:
        seconds = max(seconds, min((step.sent_at - step.queued_at).total_seconds(), LONGEST_SILENCE))
    return timedelta(seconds=seconds)


def limits_of(parts: Parts) -> Limits:
    """The limits these settings give."""
    s = parts.settings
    return Limits(s.requeue_after, s.retry_backoff_max, queue.depth(s.broker) == 0)


def reconcile(parts: Parts) -> dict[str, int]:
    """Do what is due; returns how much of each was done."""
    done = {action.value: 0 for action in Action} | {"advance": 0, "catch_up": _catch_up(parts)}
    with db.transaction(parts.settings.db_url, reading=True) as session:
        stuck, moment, idle = snapshot(session, parts.settings), db.now(session), idle_workflows(session)
    limits = limits_of(parts)
    for step in stuck:
        action = _decide(step, moment, limits)
        if action is not None and _apply(parts, step, action, limits):
            done[action.value] += 1
    for workflow_id in idle:
        with db.transaction(parts.settings.db_url) as session:
            workflows.advance(session, parts.app, workflow_id)
        done["advance"] += 1
    done |= resending.reconcile(parts)
    with db.transaction(parts.settings.db_url) as session:
        done["agent_runs"] = endings.give_up(session, db.now(session))
    _tell(parts, done)
    if any(done.values()):
        log.info("reconciled", extra=done)
    return done


def _catch_up(parts: Parts) -> int:
    """Send the projects whose patches wait for something to the hosts that publish them."""
    with db.transaction(parts.settings.db_url) as session:
        found = patches.due(session, db.now(session), timedelta(seconds=parts.settings.requeue_after))
        for project_id, publisher in found:
            db.after_commit(session, partial(queue.send_catch_up, parts.app, project_id, publisher))
    return len(found)


def _tell(parts: Parts, done: dict[str, int]) -> None:
    """Write that this host's reconciler looked."""
    with contextlib.suppress(IntegrityError), db.transaction(parts.settings.db_url) as session:  # two first looks at once
        session.merge(Reconciler(id=socket.gethostname(), last_seen=db.now(session), did=done))


def snapshot(session: Session, settings: Settings) -> list[Stuck]:
    """The steps that have waited longest for their message, and those whose lease ends first, of workflows not paused."""
    attempt = and_(StepAttempt.step_id == WorkflowStep.id, StepAttempt.fence == WorkflowStep.fence)
    found = []
    for state, oldest in ((StepState.RUNNING, WorkflowStep.lease_until), (StepState.QUEUED, WorkflowStep.sent_at)):
        query = select(WorkflowStep, StepAttempt).outerjoin(StepAttempt, attempt).where(WorkflowStep.state == state)
        if state is StepState.QUEUED:
            query = query.join(WorkflowStep.workflow).where(Workflow.state == WorkflowState.RUNNING)
        found += [_stuck(row, trying, settings) for row, trying in session.execute(query.order_by(oldest).limit(BATCH))]
    return found


def _stuck(r: WorkflowStep, trying: StepAttempt | None, settings: Settings) -> Stuck:
    budget = r.max_attempts + r.free_attempts
    state = StepState(r.state)
    late = _late(r, trying, settings) if trying is not None and state is StepState.RUNNING else None
    times = r.queued_at, r.sent_at, r.lease_until, late
    return Stuck(r.id, r.workflow_id, state, r.generation, r.fence, *times, r.attempt_count, budget, r.commit is not None)


def _late(step: WorkflowStep, trying: StepAttempt, settings: Settings) -> datetime:
    """By the deadline that its worker said. Before that is known, by the choices as they are now, which may have been others."""
    grace = timedelta(seconds=deadline.LATE_SECONDS)
    if trying.deadline is not None:
        return trying.deadline + grace
    return trying.started_at + timedelta(seconds=settings.attempt_seconds(spec.chosen(step, settings))) + grace


def idle_workflows(session: Session) -> list[str]:
    """Workflows in which no step moves: something should be queued, or they have ended; of the paused those that have."""
    steps = select(WorkflowStep.id).where(WorkflowStep.workflow_id == Workflow.id)
    moving = steps.where(WorkflowStep.state.in_([StepState.QUEUED, StepState.RUNNING])).exists()
    left = steps.where(WorkflowStep.state.not_in(STEP_ENDED)).exists()
    idle = or_(
        and_(Workflow.state == WorkflowState.RUNNING, ~moving),
        and_(Workflow.state == WorkflowState.PAUSED, ~left),
    )
    query = select(Workflow.id).where(idle)
    return list(session.scalars(query.order_by(Workflow.id).limit(BATCH)))


def _apply(parts: Parts, seen: Stuck, action: Action, limits: Limits) -> bool:
    """Act on a step that still is as it was seen; False where it moved on."""
    with db.transaction(parts.settings.db_url) as session:
        workflow = workflows.locked(session, seen.workflow_id)
        step = next(step for step in workflow.steps if step.id == seen.step_id)
        moment = db.now(session)
        trying = select(StepAttempt).where(StepAttempt.step_id == step.id, StepAttempt.fence == step.fence)
        now = _stuck(step, session.scalar(trying), parts.settings)
        same = (now.state, now.generation, now.fence) == (seen.state, seen.generation, seen.fence)
        if not same or _decide(now, moment, limits) is not action:
            return False
        if action is Action.GIVE_UP:
            _give_up(session, parts, step, moment)
            return True
        if action is Action.RESEND:
            step.sent_at = moment
            events.record(session, EventKind.STEP_RESENT, step=step, at=moment)
        else:
            _expire(session, step, action, moment)
        session.flush()
        if workflow.state == WorkflowState.RUNNING:
            workflows.send(session, parts.app, workflow, step, publishers.only(session, parts.settings, workflow, step))
    return True


def _expire(session: Session, step: WorkflowStep, action: Action, moment: datetime) -> None:
    """The worker that held this step is gone or late: queue it again; its fence keeps the old one from writing."""
    step.lease_until, step.blocked_since, step.reason = None, None, REASONS[action].format(owner=step.lease_owner)
    running = (StepAttempt.step_id == step.id, StepAttempt.state == AttemptState.RUNNING)
    for attempt in session.scalars(select(StepAttempt).where(*running)):
        attempt.state, attempt.finished_at, attempt.reason = AttemptState.ABANDONED, moment, step.reason
        attempt.error_type = "lease-lost"
    step.fence += 1
    kind = EventKind.STEP_EXPIRED if action is Action.EXPIRE else EventKind.STEP_TIMED_OUT
    events.record(session, kind, step=step, at=moment, worker=step.lease_owner)
    workflows.mark_queued(session, step, moment)


def _give_up(session: Session, parts: Parts, step: WorkflowStep, moment: datetime) -> None:
    """No attempt is left: a dead letter, and whoever still held the step can write nothing more."""
    step.fence += 1
    query = select(StepAttempt).where(StepAttempt.step_id == step.id).order_by(StepAttempt.number.desc()).limit(1)
    attempt = session.scalars(query).one()
    claim = Claim(
        step.id, step.workflow_id, attempt.id, step.key, step.fence, attempt.number, step.max_attempts, attempt.started_at
    )
    reason = REASONS[Action.GIVE_UP].format(owner=step.lease_owner)
    claims.dead_letter(session, parts.app, claim, "lease-lost", reason)
