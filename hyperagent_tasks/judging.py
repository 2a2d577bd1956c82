"""How an agent run ended and what comes of it: what the CLI says, judged by what the gateway saw, which only it knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from celery.exceptions import SoftTimeLimitExceeded

from hyperagent_common.errors import AgentFailed, Cancelled, DependencyDown, HyperagentError, ProviderDown, RunnerTimeout
from hyperagent_tasks.agents.base import Agent, AgentOutcome, AgentRole, EndReason
from hyperagent_tasks.gateway import calllog
from hyperagent_tasks.gateway.client import Observed
from hyperagent_tasks.parts import Parts
from hyperagent_tasks.spec import Place

SEEN = {
    "auth": EndReason.AUTH,
    "quota": EndReason.QUOTA,
    "rate_limit": EndReason.RATE_LIMIT,
    "server": EndReason.PROVIDER,
    "transport": EndReason.PROVIDER,
    "context": EndReason.CONTEXT,
    "model_not_found": EndReason.MODEL_NOT_FOUND,
    "budget": EndReason.BUDGET,
    "scenario": EndReason.REFUSED,
}
FORGOTTEN = AgentOutcome(EndReason.PROVIDER, "The gateway was started anew while the agent ran, and cut it off.")
MAY_PASS = {EndReason.RATE_LIMIT, EndReason.PROVIDER, EndReason.CRASHED}


def broken_off(error: BaseException) -> tuple[EndReason, str]:
    """The end of a run that has no outcome, because of what this side raised within it."""
    if isinstance(error, SystemExit):
        return EndReason.CANCELLED, "The agent was broken off: its worker was stopped."
    if isinstance(error, SoftTimeLimitExceeded):
        return EndReason.TIMED_OUT, "The agent was broken off: the attempt took longer than it may."
    return EndReason.CRASHED, f"The agent was broken off: {str(error) or type(error).__name__}"


def figures(parts: Parts, run_id: str, place: Place) -> Observed:
    """End a run's grant; what the gateway saw of it, from its call log where it cannot be asked or has forgotten it."""
    try:
        observed = parts.gateway.close(run_id)
    except DependencyDown:
        observed = None
    return observed or calllog.summed(place.kept / "gateway.jsonl", run_id)


def judged(
    agent: Agent, outcome: AgentOutcome, known: Observed | None, place: Place, run_id: str
) -> tuple[AgentOutcome, Observed]:
    """How a run ended by what the gateway says of it, and what it saw; `FORGOTTEN` where it was started anew within it."""
    observed = known or calllog.summed(place.kept / "gateway.jsonl", run_id)
    if known is None and agent.dialect is not None:
        return FORGOTTEN, observed
    return seen_by_gateway(outcome, observed), observed


def answered(outcome: AgentOutcome, role: AgentRole) -> bool:
    """Whether there is something to judge: a verifier or planner that ended without a word gave an empty answer."""
    empty = role != "coder" and outcome.reason is EndReason.NO_CHANGE and not outcome.final_text.strip()
    return outcome.ok or empty


def spoken(agent: Agent, observed: Observed) -> str | None:
    """What a run's model said last at the gateway; None where the agent asks no model."""
    return None if agent.dialect is None else observed.text


def seen_by_gateway(outcome: AgentOutcome, observed: Observed) -> AgentOutcome:
    """The outcome with the reason the gateway saw: it knows the provider's answer, the CLI only its own words. A CLI that says
    it is done though its model's last answer never came whole (Gemini CLI takes a cut answer for a whole one) is not."""
    reason = SEEN.get(observed.last_failure or "")
    cut = outcome.ok and observed.last_failure == "transport"
    if reason is None or (outcome.ok and not cut) or outcome.reason in (EndReason.TIMED_OUT, EndReason.CANCELLED):
        return outcome
    if cut:
        outcome = replace(outcome, sentence="The agent says it is done, but its model's last answer broke off.")
    told = str((observed.failure or {}).get("message", ""))[:300].rstrip(".")
    return replace(outcome, reason=reason, sentence=f"{outcome.sentence} The gateway saw: {reason}: {told}.")


def failure(reason: EndReason) -> Callable[[str], HyperagentError]:
    """The class of error an end reason stands for."""
    if reason is EndReason.TIMED_OUT:
        return RunnerTimeout
    if reason is EndReason.CANCELLED:
        return Cancelled
    return ProviderDown if reason in MAY_PASS else AgentFailed
