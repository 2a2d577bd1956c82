"""Claims: a step is taken by one conditional UPDATE, held by a lease on the database's clock, written under a fence.

Whoever lost the lease can write nothing: every write goes through `fenced`, which locks the step's row and refuses
where the fencing number is no longer ours.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from celery import Celery
from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session

from hyperagent_common import db, events, workflows
from hyperagent_common.errors import (
    BudgetSpent,
    DependencyDown,
    HyperagentError,
    LeaseLost,
    Permanent,
    ProviderDown,
    PushFailed,
    Transient,
)
from hyperagent_common.events import EventKind
from hyperagent_common.ids import new_id
from hyperagent_common.models import DeadLetter, StepAttempt, Workflow, WorkflowStep
from hyperagent_common.settings import Settings
from hyperagent_common.states import AttemptState, StepState, WorkflowState
from hyperagent_tasks import leases, publishers, trouble

log = logging.getLogger(__name__)
OUTAGES = (ProviderDown, PushFailed)
"""What fails at somebody else's: it costs attempts, but the last one is not spent before `outage` seconds have passed."""


@dataclass(frozen=True)
class Claim:
    """A step that is ours until `fence` is overtaken; `number` counts its attempts from 1."""

    step_id: str
    workflow_id: str
    attempt_id: str
    key: str
    fence: int
    number: int
    max_attempts: int
    claimed_at: datetime
    blocked_since: datetime | None = None

    @property
    def last(self) -> bool:
        """True where the retry budget has no attempt after this one; attempts that cost nothing are in `max_attempts`."""
        return self.number >= self.max_attempts

    @property
    def waited(self) -> float:
        """Seconds this step had been waiting for a dependency when it was claimed; what its attempts took is not in it."""
        return (self.claimed_at - (self.blocked_since or self.claimed_at)).total_seconds()

    def blocked(self, moment: datetime) -> datetime:
        """The `blocked_since` of a step whose attempt ends now for what it waits for: its clock stood while the attempt ran."""
        return moment - timedelta(seconds=self.waited)

    def age(self, moment: datetime) -> float:
        """Seconds since the claim."""
        return (moment - self.claimed_at).total_seconds()


class StepTaken(Exception):
    """The step is not ours to do; `done` where its work is done and the chain may go on."""

    def __init__(self, done: bool) -> None:
        self.done = done
        super().__init__("done" if done else "taken")


def take(url: str, app: Celery, step_id: str, generation: int, worker: str, lease: float) -> Claim:
    """Claim a step, or raise `StepTaken`; `OtherVersion` where the schema is not this code's.

    A step whose budget is spent becomes a dead letter instead.
    """
    with db.transaction(url) as session:
        db.require_schema(session)
        claim = _take(session, step_id, generation, worker, lease)
    if claim is not None and claim.number > claim.max_attempts:
        with fenced(url, claim, whole=True) as (session, _step):
            dead_letter(session, app, claim, LeaseLost.type, "Every attempt ended without a word from its worker.")
        claim = None
    if claim is None:
        raise StepTaken(_is_done(url, step_id))
    return claim


def _take(session: Session, step_id: str, generation: int, worker: str, lease: float) -> Claim | None:
    """The claim, under a shared lock of its workflow: whoever pauses it waits for this, or this sees that it is paused."""
    moment = db.now(session)
    running = select(Workflow.id).where(Workflow.id == WorkflowStep.workflow_id, Workflow.state == WorkflowState.RUNNING)
    if session.scalar(running.where(WorkflowStep.id == step_id).with_for_update(read=True, of=Workflow)) is None:
        return None
    free = or_(
        WorkflowStep.state == StepState.QUEUED,
        and_(WorkflowStep.state == StepState.RUNNING, WorkflowStep.lease_until < moment),
    )
    step = session.scalar(
        update(WorkflowStep)
        .where(WorkflowStep.id == step_id, WorkflowStep.generation == generation, free)
        .values(
            state=StepState.RUNNING,
            fence=WorkflowStep.fence + 1,
            attempt_count=WorkflowStep.attempt_count + 1,
            lease_owner=worker,
            lease_until=moment + timedelta(seconds=lease),
            reason=None,
        )
        .returning(WorkflowStep),
        execution_options={"synchronize_session": False, "populate_existing": True},
    )
    return None if step is None else _open_attempt(session, step, worker, moment)


def _open_attempt(session: Session, step: WorkflowStep, worker: str, moment: datetime) -> Claim:
    session.execute(
        update(StepAttempt)
        .where(StepAttempt.step_id == step.id, StepAttempt.state == AttemptState.RUNNING)
        .values(state=AttemptState.ABANDONED, finished_at=moment, error_type="lease-lost", reason="The lease ran out.")
    )
    step.started_at = step.started_at or moment
    attempt = StepAttempt(
        id=new_id(), step_id=step.id, number=step.attempt_count, fence=step.fence, worker=worker, started_at=moment
    )
    session.add(attempt)
    session.flush()
    waited = (moment - step.queued_at).total_seconds() if step.queued_at else None
    events.record(session, EventKind.STEP_CLAIMED, step=step, attempt=attempt, latency=waited, at=moment)
    budget = step.max_attempts + step.free_attempts
    return Claim(step.id, step.workflow_id, attempt.id, step.key, step.fence, attempt.number, budget, moment, step.blocked_since)


def _is_done(url: str, step_id: str) -> bool:
    with db.transaction(url, reading=True) as session:
        return session.scalar(select(WorkflowStep.state).where(WorkflowStep.id == step_id)) == StepState.DONE


@contextlib.contextmanager
def fenced(url: str, claim: Claim, *, whole: bool = False) -> Iterator[tuple[Session, WorkflowStep]]:
    """A transaction in which the step is still ours. Raises `LeaseLost`, and then nothing of it is written.

    `whole=True` locks the workflow too (first, as everybody does), for what is decided about all of its steps.
    """
    with db.transaction(url) as session:
        _whole = workflows.locked(session, claim.workflow_id) if whole else None  # kept: the session holds rows weakly
        ours = (WorkflowStep.id == claim.step_id, WorkflowStep.fence == claim.fence, WorkflowStep.state == StepState.RUNNING)
        locking = select(WorkflowStep).where(*ours).with_for_update(key_share=True)
        step = session.scalar(locking.execution_options(populate_existing=True))
        if step is None:
            raise LeaseLost()
        yield session, step


def beat(url: str, claim: Claim, lease: float) -> bool:
    """Extend the lease and tell the event; False where it is lost."""
    try:
        with fenced(url, claim) as (session, step):
            moment = db.now(session)
            step.lease_until = moment + timedelta(seconds=lease)
            attempt = session.get_one(StepAttempt, claim.attempt_id)
            events.record(session, EventKind.STEP_HEARTBEAT, step=step, attempt=attempt, latency=claim.age(moment), at=moment)
    except LeaseLost:
        return False
    return True


def holds(url: str, claim: Claim) -> bool:
    """Whether the claim is still ours: asked every second, so that a cancel ends what runs within seconds."""
    ours = (WorkflowStep.id == claim.step_id, WorkflowStep.fence == claim.fence, WorkflowStep.state == StepState.RUNNING)
    with db.transaction(url, reading=True) as session:
        return session.scalar(select(WorkflowStep.id).where(*ours)) is not None


class Lease(leases.Keeper):
    """Keeps a claim alive from a thread."""

    def __init__(self, url: str, claim: Claim, lease: float, every: float) -> None:
        super().__init__(claim.key, lambda: beat(url, claim, lease), lambda: holds(url, claim), lease, every)

    def __enter__(self) -> Lease:
        super().__enter__()
        return self


def finish(url: str, app: Celery, claim: Claim, commit: str | None) -> None:
    """The step is done: write it, queue what that made ready, tell the event."""
    with fenced(url, claim, whole=True) as (session, step):
        workflow = session.get_one(Workflow, claim.workflow_id)
        moment = db.now(session)
        step.blocked_since = None
        step.state, step.commit, step.finished_at, step.lease_until = StepState.DONE, commit, moment, None
        attempt = _close_attempt(session, claim, AttemptState.SUCCEEDED, moment)
        took = claim.age(moment)
        events.record(session, EventKind.STEP_DONE, step=step, attempt=attempt, latency=took, at=moment, commit=commit)
        session.flush()
        workflows.queue_following(session, app, workflow, step, moment)


def release(url: str, claim: Claim, error: HyperagentError) -> None:
    """The attempt failed in a way that may pass: queue the step again under the same generation; Celery sends it.

    Where a dependency is down, waiting for it costs nothing of the budget: `fail` bounds it by time instead. Nor does an
    outage cost the last attempt, as long as `fail` lets it go on.
    """
    outage = isinstance(error, OUTAGES)
    waiting = isinstance(error, DependencyDown) or (outage and claim.last)
    with fenced(url, claim) as (session, step):
        moment = db.now(session)
        step.state, step.queued_at, step.sent_at, step.lease_until = StepState.QUEUED, moment, moment, None
        step.reason = error.sentence
        step.free_attempts += int(waiting)
        step.blocked_since = claim.blocked(moment) if waiting or outage else None
        attempt = _close_attempt(session, claim, AttemptState.FAILED, moment, error)
        events.record(
            session,
            EventKind.STEP_WAITING if waiting else EventKind.STEP_RETRY,
            step=step,
            attempt=attempt,
            latency=claim.age(moment),
            at=moment,
            error_type=error.type,
            reason=error.sentence,
            attempts_left=claim.max_attempts - claim.number + int(waiting),
        )


def hand_over(url: str, app: Celery, claim: Claim) -> None:
    """This worker must stop: queue the step again at once for another, at no cost of its budget."""
    with fenced(url, claim, whole=True) as (session, step):
        workflow = session.get_one(Workflow, claim.workflow_id)
        moment = db.now(session)
        step.free_attempts += 1
        step.blocked_since = None
        step.reason = "Its worker was stopped."
        attempt = _close_attempt(session, claim, AttemptState.ABANDONED, moment)
        attempt.error_type, attempt.reason = "drained", step.reason
        events.record(session, EventKind.STEP_HANDED_OVER, step=step, attempt=attempt, latency=claim.age(moment), at=moment)
        workflows.mark_queued(session, step, moment)
        step.lease_until = None
        session.flush()
        if workflow.state == WorkflowState.RUNNING:
            workflows.send(session, app, workflow, step)


def forward(settings: Settings, app: Celery, claim: Claim, to: str) -> None:
    """The step's commit is made; what is left is for the host `to`, at no cost. Where that works it takes the step sooner or
    later; raises `DependencyDown` where it was waited for in vain for `dependency_patience` seconds."""
    with fenced(settings.db_url, claim, whole=True) as (session, step):
        works = publishers.works(session, settings, to)
        if not works and claim.waited > settings.dependency_patience:
            raise DependencyDown(
                f"The host {to}, which publishes this project, does not take the step.", mend="Start its worker."
            )
        workflow = session.get_one(Workflow, claim.workflow_id)
        moment = db.now(session)
        step.free_attempts += 1
        step.blocked_since = None if works else claim.blocked(moment)
        step.reason = f"Waits for the host {to}, which publishes this project."
        attempt = _close_attempt(session, claim, AttemptState.ABANDONED, moment)
        attempt.error_type, attempt.reason = "forwarded", step.reason
        took = claim.age(moment)
        events.record(session, EventKind.STEP_FORWARDED, step=step, attempt=attempt, latency=took, at=moment, to=to)
        workflows.mark_queued(session, step, moment)
        step.lease_until = None
        session.flush()
        if workflow.state == WorkflowState.RUNNING:
            workflows.send(session, app, workflow, step, to)


def hold(url: str, claim: Claim, error: BudgetSpent) -> None:
    """A budget is spent: the step is queued again at no cost of its attempts, and the workflow pauses and asks."""
    with fenced(url, claim, whole=True) as (session, step):
        workflow = session.get_one(Workflow, claim.workflow_id)
        moment = db.now(session)
        step.state, step.queued_at, step.lease_until, step.reason = StepState.QUEUED, moment, None, error.sentence
        step.free_attempts, step.blocked_since = step.free_attempts + 1, None
        attempt = _close_attempt(session, claim, AttemptState.FAILED, moment, error)
        said: dict[str, Any] = {"scope": error.scope, "reason": error.message}
        events.record(session, EventKind.BUDGET_SPENT, step=step, attempt=attempt, at=moment, **said)
        workflows.pause(session, workflow, reason=error.sentence, by=workflows.BY_BUDGET)


def give_up(url: str, app: Celery, claim: Claim, error: HyperagentError) -> None:
    """The step cannot succeed: a dead letter with its reason, and the workflow learns of it."""
    with fenced(url, claim, whole=True) as (session, _step):
        dead_letter(session, app, claim, error.type, str(error))


def dead_letter(session: Session, app: Celery, claim: Claim, error_type: str, reason: str) -> None:
    """The step failed for good: its letter, and a new version of its workflow, which the caller has locked."""
    session.get_one(Workflow, claim.workflow_id).version += 1
    step = session.get_one(WorkflowStep, claim.step_id)
    moment = db.now(session)
    step.state, step.finished_at, step.lease_until, step.reason = StepState.FAILED, moment, None, reason
    step.blocked_since = None
    attempt = session.get_one(StepAttempt, claim.attempt_id)
    attempt.state, attempt.finished_at, attempt.error_type, attempt.reason = (
        AttemptState.FAILED,
        moment,
        error_type,
        reason,
    )
    session.add(
        DeadLetter(
            id=new_id(),
            step_id=step.id,
            attempt_id=attempt.id,
            error_type=error_type,
            reason=reason,
            created_at=moment,
        )
    )
    said = {"error_type": error_type, "reason": reason}
    events.record(session, EventKind.STEP_FAILED, step=step, attempt=attempt, latency=claim.age(moment), at=moment, **said)
    session.flush()
    workflows.advance(session, app, claim.workflow_id)


def _close_attempt(
    session: Session, claim: Claim, state: AttemptState, moment: datetime, error: HyperagentError | None = None
) -> StepAttempt:
    attempt = session.get_one(StepAttempt, claim.attempt_id)
    attempt.state, attempt.finished_at = state, moment
    if error is not None:
        attempt.error_type, attempt.reason = error.type, str(error)
    return attempt


def fail(
    url: str, app: Celery, claim: Claim, error: BaseException, *, patience: float = 3600.0, outage: float = 0.0
) -> BaseException:
    """Write how a failed attempt leaves its step and return the error to go on with.

    A dependency that is down is waited for up to `patience` seconds, without using up attempts. What fails at the model
    provider or the forge uses them up, but is not given up before it has failed for `outage` seconds.

    Nothing is written where the lease is lost or the database is away: the reconciler finds the step by its lease.
    """
    error = _named(error, claim, patience, outage)
    try:
        if isinstance(error, LeaseLost):
            _abandon(url, claim)
        elif isinstance(error, BudgetSpent):
            hold(url, claim, error)
        elif isinstance(error, Transient):
            release(url, claim, error)
        elif isinstance(error, HyperagentError):
            give_up(url, app, claim, error)
    except (LeaseLost, DependencyDown) as lost:
        log.warning("step.unwritten", extra={"step": claim.step_id, "error": str(error), "because": str(lost)})
    return error


def _named(error: BaseException, claim: Claim, patience: float, outage: float) -> BaseException:
    """The error as one of ours; a Transient without attempts (or patience) left will not pass any more."""
    error = trouble.named(error) or error
    if isinstance(error, DependencyDown):
        if claim.waited <= patience:
            return error
        return Permanent(f"Waited {claim.waited:.0f} s for it in vain: {error.message}", faults=error.faults, mend=error.mend)
    if isinstance(error, OUTAGES) and claim.waited < outage:
        return error
    if isinstance(error, Transient) and claim.last:
        told = f"All {claim.max_attempts} attempts failed; the last: {error.message}"
        return Permanent(told, faults=error.faults, mend=error.mend)
    if isinstance(error, HyperagentError) or not isinstance(error, Exception):
        return error
    return Permanent(f"HyperAgent itself failed: {type(error).__name__}: {error}", mend="Please report this.")


def _abandon(url: str, claim: Claim) -> None:
    with db.transaction(url) as session:
        attempt = session.get_one(StepAttempt, claim.attempt_id)
        if attempt.state == AttemptState.RUNNING:
            attempt.state, attempt.finished_at = AttemptState.ABANDONED, db.now(session)
            attempt.error_type, attempt.reason = LeaseLost.type, str(LeaseLost())
