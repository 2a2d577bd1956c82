"""How an agent run ended: its row and its events, with what the gateway saw of it.

Written by its worker, under the fence, whatever ended it. Where the worker may write no more (it was cancelled, lost its lease,
was killed), by its host's reaper, which has the gateway's figures; where that host is gone, by the reconciler, without any.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from hyperagent_common import db, events
from hyperagent_common.actions import CANCELLED
from hyperagent_common.events import EventKind
from hyperagent_common.models import AgentRun, PlanDraft, StepAttempt, WorkflowStep
from hyperagent_common.states import AttemptState
from hyperagent_tasks.agents.base import AgentOutcome, EndReason
from hyperagent_tasks.gateway.grants import Observed

LONG = timedelta(hours=1)
SILENT = "Its worker went silent, and its host did not say how it ended."


def answered_by(model: str, observed: Observed) -> str:
    """The model that answered at the end: the one asked for, unless the gateway moved the run to another."""
    return str(observed.switches[-1]["to"]) if observed.switches else model


def write(run: AgentRun, reason: str, sentence: str, observed: Observed, at: datetime) -> None:
    """Put an end into the run's row."""
    run.end_reason, run.sentence, run.finished_at = str(reason), sentence, at
    run.input_tokens, run.output_tokens, run.cached_tokens = observed.input, observed.output, observed.cached
    run.requests, run.cost_usd = observed.requests, observed.cost
    run.model = answered_by(run.model, observed)


def claim(run: AgentRun, outcome: AgentOutcome) -> None:
    """Put what the CLI said of itself into the run's row."""
    run.session_id = outcome.session_id
    run.claimed = {"usage": asdict(outcome.usage), "tool_calls": outcome.tool_calls, "events": outcome.events}


def tell(session: Session, run: AgentRun, attempt: StepAttempt, step: WorkflowStep, observed: Observed) -> None:
    """The events of an end: each move to another model, and the end itself."""
    for switch in observed.switches:
        moved = {"role": run.role, "round": run.round, "agent": run.provider, "model": switch["to"]}
        moved |= {"from": switch["from"], "to": switch["to"], "why": f"{switch['from']} failed: {switch['why']}"}
        events.record(session, EventKind.AGENT_FALLBACK, step=step, attempt=attempt, by="gateway", **moved)
    said: dict[str, Any] = {
        "reason": run.end_reason,
        "requests": observed.requests,
        "tokens": observed.input + observed.output,
        "cost": observed.cost,
        "answered": observed.answered,
        "estimated": observed.estimated,
    }
    took = (run.finished_at - run.started_at).total_seconds() if run.finished_at else None
    events.record(session, EventKind.AGENT_ENDED, step=step, attempt=attempt, latency=took, **said)


def open_runs(session: Session) -> list[AgentRun]:
    """The runs without an end whose attempt or draft runs no more."""
    attempt = select(StepAttempt.id).where(StepAttempt.id == AgentRun.attempt_id, StepAttempt.state != AttemptState.RUNNING)
    draft = select(PlanDraft.id).where(PlanDraft.id == AgentRun.draft_id, PlanDraft.state != "running")
    return list(session.scalars(select(AgentRun).where(AgentRun.finished_at.is_(None), or_(attempt.exists(), draft.exists()))))


def of_the_dead(session: Session, run_id: str, observed: Observed) -> bool:
    """Write the end of a run whose worker may write no more; False where it has one."""
    query = select(AgentRun).where(AgentRun.id == run_id, AgentRun.finished_at.is_(None)).with_for_update()
    run = session.scalar(query)
    if run is None:
        return False
    attempt = session.get(StepAttempt, run.attempt_id or "")
    cancelled = attempt is not None and attempt.error_type == CANCELLED
    ended = (attempt.finished_at if attempt else None) or db.now(session)
    sentence = (attempt.reason if attempt else None) or "Its worker ended before it."
    write(run, EndReason.CANCELLED if cancelled else EndReason.CRASHED, sentence, observed, max(ended, run.started_at))
    if attempt is not None:
        tell(session, run, attempt, session.get_one(WorkflowStep, attempt.step_id), observed)
    return True


def give_up(session: Session, now: datetime) -> int:
    """Close the runs whose attempt or draft ended long ago and whose host did not come back to say more."""
    ended = select(StepAttempt.finished_at).where(StepAttempt.id == AgentRun.attempt_id).scalar_subquery()
    drafted = select(PlanDraft.finished_at).where(PlanDraft.id == AgentRun.draft_id).scalar_subquery()
    when = func.coalesce(ended, drafted)
    values = {"end_reason": EndReason.CRASHED, "sentence": SILENT, "finished_at": when}
    closing = update(AgentRun).where(AgentRun.finished_at.is_(None), when < now - LONG).values(**values)
    done = session.execute(closing.returning(AgentRun.id), execution_options={"synchronize_session": False})
    return len(done.all())
