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
from sqlalchemy import CursorResult, and_, or_, select, update
from sqlalchemy.orm import Session

from hyperagent_common import db, events, workflows
from hyperagent_common.errors import BudgetSpent, DependencyDown, HyperagentError, LeaseLost, Permanent, Transient
from hyperagent_common.events import EventKind
from hyperagent_common.ids import new_id
from hyperagent_common.models import DeadLetter, StepAttempt, Workflow, WorkflowStep
from hyperagent_common.states import AttemptState, StepState, WorkflowState

log = logging.getLogger(__name__)


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

    @property
    def last(self) -> bool:
        """True where the retry budget has no attempt after this one."""
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
        spent = claim is not None and claim.number > claim.max_attempts
        if claim is not None and spent:
            _give_up(session, app, claim, "lease-lost", "Every attempt ended without a word from its worker.")
    if claim is None or spent:
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
    return Claim(step.id, step.workflow_id, attempt.id, step.key, step.fence, attempt.number, step.max_attempts, moment)


def _is_done(url: str, step_id: str) -> bool:
    with db.transaction(url, reading=True) as session:
        return session.scalar(select(WorkflowStep.state).where(WorkflowStep.id == step_id)) == StepState.DONE


@contextlib.contextmanager
def fenced(url: str, claim: Claim) -> Iterator[tuple[Session, WorkflowStep]]:
    """A transaction in which the step is still ours. Raises `LeaseLost`, and then nothing of it is written."""
    with db.transaction(url) as session:
        ours = (WorkflowStep.id == claim.step_id, WorkflowStep.fence == claim.fence)
        step = session.scalar(select(WorkflowStep).where(*ours, WorkflowStep.state == StepState.RUNNING).with_for_update())
        if step is None:
            raise LeaseLost()
        yield session, step


def beat(url: str, claim: Claim, lease: float) -> bool:
    """Extend the lease; False where it is lost."""
    with db.transaction(url) as session:
        result = session.execute(
            update(WorkflowStep)
            .where(
                WorkflowStep.id == claim.step_id,
                WorkflowStep.fence == claim.fence,
                WorkflowStep.state == StepState.RUNNING,
            )
            .values(lease_until=db.now(session) + timedelta(seconds=lease))
        )
        return isinstance(result, CursorResult) and result.rowcount == 1


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

    def run(self) -> None:
        """Renew until told to stop or the claim is lost."""
        while not self._ended.wait(self._every):
            asked = time.monotonic()
            try:
                if not beat(self._url, self._claim, self._lease):
                    self._lost.set()
                    return
                self._until = asked + self._lease
            except DependencyDown as error:
                log.warning("lease.unrenewed", extra={"step": self._claim.step_id, "error": str(error)})


def finish(url: str, app: Celery, claim: Claim, commit: str | None) -> None:
    """The step is done: write it, queue what follows in its segment, tell the event."""
    with fenced(url, claim) as (session, step):
        workflow = workflows.locked(session, claim.workflow_id)
        moment = db.now(session)
        step.state, step.commit, step.finished_at, step.lease_until = StepState.DONE, commit, moment, None
        attempt = _close_attempt(session, claim, AttemptState.SUCCEEDED, moment)
        took = (moment - claim.claimed_at).total_seconds()
        events.record(session, EventKind.STEP_DONE, step=step, attempt=attempt, latency=took, at=moment, commit=commit)
        session.flush()
        workflows.queue_following(session, workflow, step, moment)


def release(url: str, claim: Claim, error: HyperagentError) -> None:
    """The attempt failed in a way that may pass: queue the step again under the same generation; Celery sends it."""
    with fenced(url, claim) as (session, step):
        moment = db.now(session)
        step.state, step.queued_at, step.sent_at, step.lease_until = StepState.QUEUED, moment, moment, None
        step.reason = error.sentence
        attempt = _close_attempt(session, claim, AttemptState.FAILED, moment, error)
        events.record(
            session,
            EventKind.STEP_RETRY,
            step=step,
            attempt=attempt,
            at=moment,
            error_type=error.type,
            reason=error.sentence,
            attempts_left=claim.max_attempts - claim.number,
        )


def hold(url: str, claim: Claim, error: BudgetSpent) -> None:
    """A budget is spent: the step is queued again at no cost of its attempts, and the workflow pauses and asks."""
    with fenced(url, claim) as (session, step):
        workflow = workflows.locked(session, claim.workflow_id)
        moment = db.now(session)
        step.state, step.queued_at, step.lease_until, step.reason = StepState.QUEUED, moment, None, error.sentence
        step.max_attempts += 1
        attempt = _close_attempt(session, claim, AttemptState.FAILED, moment, error)
        said = {"scope": error.scope, "reason": error.message}
        events.record(session, EventKind.BUDGET_SPENT, step=step, attempt=attempt, at=moment, **said)
        workflows.pause(session, workflow, reason=error.sentence, by="budget")


def give_up(url: str, app: Celery, claim: Claim, error: HyperagentError) -> None:
    """The step cannot succeed: a dead letter with its reason, and the workflow learns of it."""
    with fenced(url, claim) as (session, _step):
        _give_up(session, app, claim, error.type, str(error))


def _give_up(session: Session, app: Celery, claim: Claim, error_type: str, reason: str) -> None:
    workflow = workflows.locked(session, claim.workflow_id)
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
    workflows.advance(session, app, workflow.id)


def _close_attempt(
    session: Session, claim: Claim, state: AttemptState, moment: datetime, error: HyperagentError | None = None
) -> StepAttempt:
    attempt = session.get_one(StepAttempt, claim.attempt_id)
    attempt.state, attempt.finished_at = state, moment
    if error is not None:
        attempt.error_type, attempt.reason = error.type, str(error)
    return attempt


def fail(url: str, app: Celery, claim: Claim, error: BaseException) -> BaseException:
    """Write how a failed attempt leaves its step and return the error to go on with.

    Nothing is written where the lease is lost or the database is away: the reconciler finds the step by its lease.
    """
    error = _named(error, claim)
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


def _named(error: BaseException, claim: Claim) -> BaseException:
    """The error as one of ours; a Transient without attempts left will not pass any more."""
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
