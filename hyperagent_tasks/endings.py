"""How an agent run ended: its row and its events, with what the gateway saw of it."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Session

from hyperagent_common import events
from hyperagent_common.events import EventKind
from hyperagent_common.models import AgentRun, StepAttempt, WorkflowStep
from hyperagent_tasks.gateway.grants import Observed


def answered_by(model: str, observed: Observed) -> str:
    """The model that answered at the end: the one asked for, unless the gateway moved the run to another."""
    return str(observed.switches[-1]["to"]) if observed.switches else model


def write(run: AgentRun, reason: str, sentence: str, observed: Observed, at: datetime) -> None:
    """Put an end into the run's row."""
    run.end_reason, run.sentence, run.finished_at = str(reason), sentence, at
    run.input_tokens, run.output_tokens, run.cached_tokens = observed.input, observed.output, observed.cached
    run.requests, run.cost_usd = observed.requests, observed.cost
    run.model = answered_by(run.model, observed)


def tell(session: Session, run: AgentRun, attempt: StepAttempt, step: WorkflowStep, observed: Observed) -> None:
    """The events of an end: each move to another model, and the end itself."""
    for switch in observed.switches:
        moved = {"role": run.role, "round": run.round, "agent": run.provider, "model": switch["to"]}
        moved |= {"from": switch["from"], "to": switch["to"], "why": f"{switch['from']} failed: {switch['why']}"}
        events.record(session, EventKind.AGENT_FALLBACK, step=step, attempt=attempt, by="gateway", **moved)
    said = {
        "reason": run.end_reason,
        "requests": observed.requests,
        "tokens": observed.input + observed.output,
        "cost": observed.cost,
        "answered": observed.answered,
        "estimated": observed.estimated,
    }
    took = (run.finished_at - run.started_at).total_seconds() if run.finished_at else None
    events.record(session, EventKind.AGENT_ENDED, step=step, attempt=attempt, latency=took, **said)
