"""What the gateway saw outweighs what a CLI says of its own failure."""

from __future__ import annotations

import pytest

from hyperagent_common.errors import AgentFailed, ProviderDown, RunnerTimeout
from hyperagent_tasks import judging
from hyperagent_tasks.agents.base import AgentOutcome, EndReason
from hyperagent_tasks.gateway.grants import Observed


def observed(kind: str) -> Observed:
    """Books with one failure."""
    books = Observed()
    books.fail(kind, "the provider's own words", 429)
    return books


@pytest.mark.parametrize(("kind", "reason"), list(judging.SEEN.items()))
def test_a_failure_takes_the_reason_the_gateway_saw(kind: str, reason: EndReason) -> None:
    ended = judging.seen_by_gateway(AgentOutcome(EndReason.CRASHED, "It crashed."), observed(kind))
    assert ended.reason is reason
    assert "the provider's own words" in ended.sentence


def test_a_run_that_recovered_stays_done() -> None:
    done = AgentOutcome(EndReason.DONE, "Done.")
    assert judging.seen_by_gateway(done, observed("server")) is done


def test_a_deadline_stays_a_deadline() -> None:
    late = AgentOutcome(EndReason.TIMED_OUT, "Too late.")
    assert judging.seen_by_gateway(late, observed("server")) is late


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (EndReason.PROVIDER, ProviderDown),
        (EndReason.RATE_LIMIT, ProviderDown),
        (EndReason.CRASHED, ProviderDown),
        (EndReason.TIMED_OUT, RunnerTimeout),
        (EndReason.NO_CHANGE, AgentFailed),
        (EndReason.AUTH, AgentFailed),
        (EndReason.QUOTA, AgentFailed),
    ],
)
def test_each_end_has_its_retry_rule(reason: EndReason, error: type[Exception]) -> None:
    assert judging.failure(reason) is error
