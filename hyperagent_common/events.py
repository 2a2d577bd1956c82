"""RunnerEvents: written in the transaction of the state they tell, and one JSON line on stdout once it is committed."""

from __future__ import annotations

import logging
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Boolean, ColumnElement, literal_column, select, true
from sqlalchemy.orm import Session

from hyperagent_common import db
from hyperagent_common.models import RunnerEvent, StepAttempt, WorkflowStep

log = logging.getLogger("hyperagent.events")


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


_SETTLED = "age(runner_event.xmin) > age(pg_snapshot_xmin(pg_current_snapshot())::xid)"


def read_on(session: Session, after: int, most: int, *where: ColumnElement[bool]) -> tuple[list[RunnerEvent], bool]:
    """Events after the id `after`, in order, and whether more are there that must wait.

    PostgreSQL gives ids when rows are written, not when they are committed: a reader that went past an id whose row comes
    later would never see it. So an event waits until every transaction older than its own has ended.
    """
    settled: ColumnElement[bool] = literal_column(_SETTLED, Boolean) if _is_postgres(session) else true()
    wanted = select(RunnerEvent, settled).where(RunnerEvent.id > after, *where).order_by(RunnerEvent.id).limit(most)
    found: list[RunnerEvent] = []
    for entry, safe in session.execute(wanted):
        if not safe:
            return found, True
        found.append(entry)
    return found, False


def last_id(session: Session) -> int:
    """The id to read on from, for who wants to know only what comes."""
    newest = select(RunnerEvent.id).order_by(RunnerEvent.id.desc()).limit(1)
    if _is_postgres(session):
        newest = newest.where(literal_column(_SETTLED, Boolean))
    return session.scalar(newest) or 0


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
