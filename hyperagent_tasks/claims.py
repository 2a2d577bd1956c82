"""Claims: a step is taken by one conditional UPDATE, held by a lease on the database's clock, written under a fence.

Whoever lost the lease can write nothing: every write goes through `fenced`, which locks the step's row and refuses
where the fencing number is no longer ours.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from celery import Celery
from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session

from hyperagent_common import db, events, workflows
from hyperagent_common.errors import BudgetSpent, DependencyDown, HyperagentError, LeaseLost, Permanent, Transient
from hyperagent_common.events import EventKind
from hyperagent_common.ids import new_id
from hyperagent_common.models import DeadLetter, StepAttempt, Workflow, WorkflowStep
from hyperagent_common.states import AttemptState, StepState, WorkflowState

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0


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


class StepTaken(Exception):
    """The step is not ours to do; `done` where its work is done and the chain may go on."""

    def __init__(self, done: bool) -> None:
        self.done = done
        super().__init__("done" if done else "taken")


def take(url: str, app: Celery, step_id: str, generation: int, worker: str, lease: float) -> Claim:
    """Claim a step, or raise `StepTaken`. A step whose budget is spent becomes a dead letter instead."""
    with db.transaction(url) as session:
        claim = _take(session, step_id, generation, worker, lease)
    if claim is not None and claim.number > claim.max_attempts:
        with fenced(url, claim, whole=True) as (session, _step):
            dead_letter(session, app, claim, LeaseLost.type, "Every attempt ended without a word from its worker.")
        claim = None
    if claim is None:
        raise StepTaken(_is_done(url, step_id))
    return claim


def _take(session: Session, step_id: str, generation: int, worker: str, lease: float) -> Claim | None:
    moment = db.now(session)
    running = select(Workflow.id).where(Workflow.id == WorkflowStep.workflow_id, Workflow.state == WorkflowState.RUNNING)
    free = or_(
        WorkflowStep.state == StepState.QUEUED,
        and_(WorkflowStep.state == StepState.RUNNING, WorkflowStep.lease_until < moment),
    )
    step = session.scalar(
        update(WorkflowStep)
        .where(WorkflowStep.id == step_id, WorkflowStep.generation == generation, free, running.exists())
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
        if whole:
            workflows.locked(session, claim.workflow_id)
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
            ran = (moment - claim.claimed_at).total_seconds()
            events.record(session, EventKind.STEP_HEARTBEAT, step=step, attempt=attempt, latency=ran, at=moment)
    except LeaseLost:
        return False
    return True


def holds(url: str, claim: Claim) -> bool:
    """Whether the claim is still ours: asked every second, so that a cancel ends what runs within seconds."""
    ours = (WorkflowStep.id == claim.step_id, WorkflowStep.fence == claim.fence, WorkflowStep.state == StepState.RUNNING)
    with db.transaction(url, reading=True) as session:
        return session.scalar(select(WorkflowStep.id).where(*ours)) is not None


class Lease(threading.Thread):
    """Keeps a claim alive from a thread. `lost()` turns true once the claim is lost or could not be renewed in time."""

    def __init__(self, url: str, claim: Claim, lease: float, every: float) -> None:
        super().__init__(name=f"lease-{claim.key}", daemon=True)
        self._url, self._claim, self._lease, self._every = url, claim, lease, every
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._until = time.monotonic() + lease

    def __enter__(self) -> Lease:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join(timeout=self._every + 10)

    def lost(self) -> bool:
        """True once somebody else may hold the step: stop at once."""
        return self._lost.is_set() or time.monotonic() > self._until

    def stop(self) -> None:
        """This attempt is over: whatever runs for it must end."""
        self._lost.set()

    def run(self) -> None:
        """Renew until told to stop or the claim is lost."""
        due = time.monotonic() + self._every
        while not self._ended.wait(min(LOOK_SECONDS, self._every)):
            asked = time.monotonic()
            try:
                if not (beat(self._url, self._claim, self._lease) if asked >= due else holds(self._url, self._claim)):
                    self._lost.set()
                    return
                if asked >= due:
                    self._until, due = asked + self._lease, asked + self._every
            except DependencyDown as error:
                log.warning("lease.unrenewed", extra={"step": self._claim.step_id, "error": str(error)})


def finish(url: str, app: Celery, claim: Claim, commit: str | None) -> None:
    """The step is done: write it, queue what follows in its segment, tell the event."""
    with fenced(url, claim, whole=True) as (session, step):
        workflow = session.get_one(Workflow, claim.workflow_id)
        moment = db.now(session)
        step.blocked_since = None
        step.state, step.commit, step.finished_at, step.lease_until = StepState.DONE, commit, moment, None
        attempt = _close_attempt(session, claim, AttemptState.SUCCEEDED, moment)
        took = (moment - claim.claimed_at).total_seconds()
        events.record(session, EventKind.STEP_DONE, step=step, attempt=attempt, latency=took, at=moment, commit=commit)
        session.flush()
        workflows.queue_following(session, workflow, step, moment)


def release(url: str, claim: Claim, error: HyperagentError) -> None:
    """The attempt failed in a way that may pass: queue the step again under the same generation; Celery sends it.

    Where a dependency is down, waiting for it costs nothing of the budget: `fail` bounds it by time instead.
    """
    waiting = isinstance(error, DependencyDown)
    with fenced(url, claim) as (session, step):
        moment = db.now(session)
        step.state, step.queued_at, step.sent_at, step.lease_until = StepState.QUEUED, moment, moment, None
        step.reason = error.sentence
        step.free_attempts += int(waiting)
        step.blocked_since = (claim.blocked_since or claim.claimed_at) if waiting else None
        attempt = _close_attempt(session, claim, AttemptState.FAILED, moment, error)
        events.record(
            session,
            EventKind.STEP_WAITING if waiting else EventKind.STEP_RETRY,
            step=step,
            attempt=attempt,
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
        step.reason = "Its worker was stopped."
        attempt = _close_attempt(session, claim, AttemptState.ABANDONED, moment)
        attempt.error_type, attempt.reason = "drained", step.reason
        events.record(session, EventKind.STEP_HANDED_OVER, step=step, attempt=attempt, at=moment)
        workflows.mark_queued(session, step, moment)
        step.lease_until = None
        session.flush()
        if workflow.state == WorkflowState.RUNNING:
            workflows.send(session, app, workflow, step)


def forward(url: str, app: Celery, claim: Claim, to: str, patience: float) -> None:
    """The step's commit is made; what is left is for the host `to`, at no cost. Raises `DependencyDown` after `patience`."""
    waited = (claim.claimed_at - (claim.blocked_since or claim.claimed_at)).total_seconds()
    if waited > patience:
        raise DependencyDown(f"The host {to}, which publishes this project, does not take the step.", mend="Start its worker.")
    with fenced(url, claim, whole=True) as (session, step):
        workflow = session.get_one(Workflow, claim.workflow_id)
        moment = db.now(session)
        step.free_attempts += 1
        step.blocked_since = claim.blocked_since or moment
        step.reason = f"Waits for the host {to}, which publishes this project."
        attempt = _close_attempt(session, claim, AttemptState.ABANDONED, moment)
        attempt.error_type, attempt.reason = "forwarded", step.reason
        events.record(session, EventKind.STEP_FORWARDED, step=step, attempt=attempt, at=moment, to=to)
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
        step.free_attempts += 1
        attempt = _close_attempt(session, claim, AttemptState.FAILED, moment, error)
        said = {"scope": error.scope, "reason": error.message}
        events.record(session, EventKind.BUDGET_SPENT, step=step, attempt=attempt, at=moment, **said)
        workflows.pause(session, workflow, reason=error.sentence, by="budget")


def give_up(url: str, app: Celery, claim: Claim, error: HyperagentError) -> None:
    """The step cannot succeed: a dead letter with its reason, and the workflow learns of it."""
    with fenced(url, claim, whole=True) as (session, _step):
        dead_letter(session, app, claim, error.type, str(error))


def dead_letter(session: Session, app: Celery, claim: Claim, error_type: str, reason: str) -> None:
    step = session.get_one(WorkflowStep, claim.step_id)
    moment = db.now(session)
    step.state, step.finished_at, step.lease_until, step.reason = StepState.FAILED, moment, None, reason
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
    events.record(session, EventKind.STEP_FAILED, step=step, attempt=attempt, at=moment, error_type=error_type, reason=reason)
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


def fail(url: str, app: Celery, claim: Claim, error: BaseException, *, patience: float = 3600.0) -> BaseException:
    """Write how a failed attempt leaves its step and return the error to go on with.

    A dependency that is down is waited for up to `patience` seconds, without using up attempts.

    Nothing is written where the lease is lost or the database is away: the reconciler finds the step by its lease.
    """
    error = _named(error, claim, patience)
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


def _named(error: BaseException, claim: Claim, patience: float) -> BaseException:
    """The error as one of ours; a Transient without attempts (or patience) left will not pass any more."""
    if isinstance(error, DependencyDown):
        waited = (claim.claimed_at - (claim.blocked_since or claim.claimed_at)).total_seconds()
        if waited <= patience:
            return error
        return Permanent(f"Waited {waited:.0f} s for it in vain: {error.message}", faults=error.faults, mend=error.mend)
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
