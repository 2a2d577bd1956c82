"""RunnerEvents: written in the transaction of the state they tell, and one JSON line on stdout once it is committed."""

from __future__ import annotations

import logging
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, select, text
from sqlalchemy.orm import Session

from hyperagent_common import db
from hyperagent_common.models import RunnerEvent, StepAttempt, WorkflowStep

log = logging.getLogger("hyperagent.events")
_ANNOUNCED = "hyperagent.announced"
_CLASS = 0x4841
"""What tells our advisory locks from others: the upper bits of their keys, over the 40 of an event's id."""
_LAST = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM runner_event_id_seq"
_DRAWN = text(_LAST)
_ANNOUNCE = text(f"SELECT pg_advisory_xact_lock_shared({_CLASS << 40} | ({_LAST}))")
_UNDER_WAY = text(
    "SELECT min((classid::bigint & 255) << 32 | objid::bigint) FROM pg_locks"
    f" WHERE locktype = 'advisory' AND objsubid = 1 AND classid::bigint >> 8 = {_CLASS}"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


class EventKind(StrEnum):
    """What can happen on a step's way."""

    WORKFLOW_SUBMITTED = "workflow.submitted"
    WORKFLOW_PAUSED = "workflow.paused"
    WORKFLOW_RESUMED = "workflow.resumed"
    WORKFLOW_CANCELLED = "workflow.cancelled"
    WORKFLOW_ENDED = "workflow.ended"
    STEP_QUEUED = "step.queued"
    STEP_CLAIMED = "step.claimed"
    STEP_REFUSED = "step.refused"
    STEP_RETRY = "step.retry"
    STEP_DONE = "step.done"
    STEP_FAILED = "step.failed"
    STEP_HEARTBEAT = "step.heartbeat"
    STEP_WAITING = "step.waiting"
    STEP_EXPIRED = "step.expired"
    STEP_TIMED_OUT = "step.timed_out"
    STEP_HANDED_OVER = "step.handed_over"
    STEP_FORWARDED = "step.forwarded"
    STEP_CANCELLED = "step.cancelled"
    STEP_RETRIED = "step.retried"
    LETTER_RESOLVED = "dead_letter.resolved"
    STEP_RESENT = "step.resent"
    AGENT_STARTED = "agent.started"
    AGENT_ENDED = "agent.ended"
    SEALED = "step.sealed"
    CHECKED = "step.checked"
    VERDICT = "step.verdict"
    VERDICT_MALFORMED = "verdict.malformed"
    AGENT_FALLBACK = "agent.fallback"
    BUDGET_SPENT = "budget.spent"
    BUDGET_GRANTED = "budget.granted"
    COMMITTED = "step.committed"
    PATCH_OPENED = "patch.opened"
    PATCH_REVISED = "patch.revised"
    PATCH_FOUND = "patch.found"
    PATCH_REVIEWED = "patch.reviewed"
    REVIEW_WAITS = "patch.review_waits"
    REVIEW_REFUSED = "patch.review_refused"
    PATCH_WAITS = "patch.waits"
    PATCH_HELD = "patch.held"
    PATCH_SKIPPED = "patch.skipped"
    TRIGGER_FIRED = "trigger.fired"
    TRIGGER_REFUSED = "trigger.refused"


def record(
    session: Session,
    kind: EventKind,
    *,
    step: WorkflowStep | None = None,
    attempt: StepAttempt | None = None,
    workflow_id: str | None = None,
    latency: float | None = None,
    at: datetime | None = None,
    **data: Any,
) -> RunnerEvent:
    """Add one RunnerEvent to the session; `latency` in seconds, `data` small JSON values."""
    _announce(session)
    entry = RunnerEvent(
        at=at or db.now(session),
        kind=kind,
        workflow_id=step.workflow_id if step else workflow_id,
        step_id=step.id if step else None,
        attempt_id=attempt.id if attempt else None,
        worker=attempt.worker if attempt else None,
        latency_ms=None if latency is None else round(latency * 1000),
        data=data,
    )
    session.add(entry)
    db.after_commit(session, lambda: log.info(kind.value, extra=view(entry)), local=True)
    return entry


def _announce(session: Session) -> None:
    """Once a transaction, before its first event: on PostgreSQL a shared lock, held until the end of the transaction, whose key
    says that every id it will draw is greater than the last one drawn. Nobody takes it alone, so nobody waits for it."""
    if not _is_postgres(session):
        return
    within = session.get_nested_transaction() or session.get_transaction()
    if within is None or session.info.get(_ANNOUNCED) is not within:
        session.execute(_ANNOUNCE)
        session.info[_ANNOUNCED] = session.get_nested_transaction() or session.get_transaction()


def _settled(session: Session) -> int | None:
    """The id up to which no event can appear any more; None: there is no such bound, all that is there is settled (SQLite).

    The order counts, and each statement sees what was committed before it (READ COMMITTED). Whoever drew an id up to the last
    one drawn had announced itself before: it is found by its lock, or has ended, and then its events are seen by the
    next statement, for PostgreSQL shows a commit before it lets go of its locks.
    """
    if not _is_postgres(session):
        return None
    drawn: int = session.execute(_DRAWN).scalar_one()
    under_way: int | None = session.scalar(_UNDER_WAY)
    return drawn if under_way is None else min(drawn, under_way)


def read_on(session: Session, after: int, most: int, *where: ColumnElement[bool]) -> tuple[list[RunnerEvent], bool]:
    """Events after the id `after`, in order, and whether more are there that must wait.

    PostgreSQL gives ids when rows are written, not when they are committed: a reader that went past an id whose row comes
    later would never see it. So an event waits until every transaction that may write a smaller id has ended.
    """
    settled = _settled(session)
    wanted = select(RunnerEvent).where(RunnerEvent.id > after, *where).order_by(RunnerEvent.id).limit(most)
    there = session.scalars(wanted).all()
    found = [entry for entry in there if settled is None or entry.id <= settled]
    return found, len(found) < len(there)


def last_id(session: Session) -> int:
    """The id to read on from, for who wants to know only what comes."""
    settled = _settled(session)
    newest = select(RunnerEvent.id).order_by(RunnerEvent.id.desc()).limit(1)
    return session.scalar(newest if settled is None else newest.where(RunnerEvent.id <= settled)) or 0


def _is_postgres(session: Session) -> bool:
    return session.get_bind().dialect.name == "postgresql"


def view(entry: RunnerEvent) -> dict[str, Any]:
    """An event as JSON values."""
    return {
        "id": entry.id,
        "at": entry.at.isoformat(),
        "kind": str(entry.kind),
        "workflow_id": entry.workflow_id,
        "step_id": entry.step_id,
        "attempt_id": entry.attempt_id,
        "worker": entry.worker,
        "latency_ms": entry.latency_ms,
        "data": entry.data,
    }
