"""Properties of the gateway: budgets hold whatever runs beside what, a stream is read the same however it is cut up."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperagent_common.settings import Settings
from hyperagent_tasks.budget import Share
from hyperagent_tasks.gateway.book import Gateway
from hyperagent_tasks.gateway.config import from_settings
from hyperagent_tasks.gateway.dialects import ALL
from hyperagent_tasks.gateway.dialects.base import Dialect, Usage
from hyperagent_tasks.gateway.failures import FAILURES, WORTH_ANOTHER_PROVIDER, following
from hyperagent_tasks.gateway.grants import Grant, Run
from hyperagent_tasks.gateway.meter import Meter
from hyperagent_tasks.gateway.purse import Price, Purse
from tests.shapes import GOOD

PRICE = Price(2.0, 10.0, 0.5)


def purse(**limits: float) -> Purse:
    """The purse of a new run."""
    expires = datetime.now(UTC) + timedelta(minutes=5)
    grant = Grant("run", "attempt", "sha", "step", "coder", "p", "m", 1000, expires, "log", **limits)  # type: ignore[arg-type]
    return Purse(Run(grant))


async def _ask(held: Purse, bound: int, used: int, pause: float, found: list[int]) -> None:
    async with held.hold(Usage(bound, 0), PRICE) as refused:
        if refused is None:
            await asyncio.sleep(pause)
            held.book(Usage(used, 0), PRICE)
            found.append(used)


async def _all(held: Purse, seed: int, count: int) -> list[int]:
    dice, found = random.Random(seed), list[int]()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(count):
            bound = dice.randint(1, 200)
            tasks.create_task(_ask(held, bound, dice.randint(1, bound), dice.random() / 500, found))
    return found


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30), limit=st.integers(1, 1500), money=st.booleans())
def test_no_interleaving_overshoots_a_budget_by_more_than_one_request(seed: int, limit: int, money: bool) -> None:
    held = purse(max_usd=limit * 2 / 1e6) if money else purse(max_tokens=limit)
    found = asyncio.run(_all(held, seed, 30))
    spent = held.run.observed.input
    assert spent == sum(found)
    assert spent - max(found) < limit, (found, limit)
    assert spent >= limit or len(found) == 30


def test_a_run_that_is_over_is_refused_also_where_it_waited() -> None:
    async def scenario() -> list[int]:
        held, found = purse(max_tokens=10), list[int]()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_ask(held, 100, 5, 0.05, found))
            tasks.create_task(_ask(held, 100, 5, 0.0, found))
            await asyncio.sleep(0.01)
            held.run.ended = True
        return found

    assert asyncio.run(scenario()) == [5]


@pytest.mark.parametrize("dialect", ALL, ids=lambda d: d.name)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_a_stream_is_read_the_same_however_it_is_cut_up(dialect: Dialect, seed: int) -> None:
    whole, dice, meter = b"".join(GOOD[dialect.name]), random.Random(seed), Meter(dialect)
    cuts = sorted(dice.sample(range(len(whole)), dice.randint(0, 40)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    blocks = [block for piece in pieces for block in meter.feed(piece)] + list(meter.rest())
    assert b"".join(block.data for block in blocks) == whole
    assert (meter.usage, meter.ended, meter.failed) == (Usage(900, 50, 400), True, None)
    first = next(n for n, block in enumerate(blocks) if block.call)
    assert b"touch" not in b"".join(block.data for block in blocks[:first])


@pytest.mark.parametrize("dialect", ALL, ids=lambda d: d.name)
@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=400), seed=st.integers(0, 1 << 30))
def test_no_bytes_break_the_reader(dialect: Dialect, data: bytes, seed: int) -> None:
    whole, at = b"".join(GOOD[dialect.name]), random.Random(seed).randrange(2000)
    meter = Meter(dialect)
    for piece in (whole[:at], data, whole[at:]):
        list(meter.feed(piece))
    list(meter.rest())
    assert meter.failed is None or meter.failed.kind in FAILURES


@pytest.mark.parametrize("kind", FAILURES)
def test_who_goes_on_is_the_next_of_the_list_after_an_outage_and_nobody_after_anything_else(kind: str) -> None:
    assert following(kind, 0, 3) == (1 if kind in WORTH_ANOTHER_PROVIDER else None)
    assert following(kind, 2, 3) is None


def drawing(name: str, *shares: Share, beside: tuple[str, ...] = ()) -> Grant:
    """A grant that draws on shared budgets only."""
    expires = datetime.now(UTC) + timedelta(minutes=5)
    return Grant(name, "a", f"sha-{name}", "s", "coder", "p", "m", 1000, expires, "log", shares=shares, beside=beside)


def put(gateway: Gateway, grant: Grant) -> Purse:
    """The purse of a grant put in force, as it comes from a worker."""
    gateway.put(Grant.from_json(json.loads(json.dumps(grant.to_json()))))
    entry = gateway.of_run(grant.agent_run_id)
    assert entry
    return entry.purse


def fresh() -> Gateway:
    """A gateway's books."""
    return Gateway(from_settings(Settings()))


def spend(purse: Purse, tokens: int) -> str | None:
    """Ask for so many tokens; the scope of the budget that refused it."""
    refused = purse.refusal()
    if refused is None:
        purse.book(Usage(tokens, 0), PRICE)
        return None
    return str((purse.run.observed.failure or {})["scope"])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30), limit=st.integers(1, 1500), money=st.booleans(), runs=st.integers(2, 4))
def test_runs_beside_each_other_overshoot_a_shared_budget_by_one_request_together(
    seed: int, limit: int, money: bool, runs: int
) -> None:
    async def scenario() -> list[list[int]]:
        return list(await asyncio.gather(*(_all(held, seed + n, 12) for n, held in enumerate(purses))))

    share = Share("workflow", "w", usd=limit * 2 / 1e6) if money else Share("workflow", "w", tokens=limit)
    gateway = fresh()
    purses = [put(gateway, drawing(f"r{n}", share)) for n in range(runs)]
    found = [used for each in asyncio.run(scenario()) for used in each]
    assert sum(found) == sum(purse.run.observed.input for purse in purses)
    assert sum(found) - max(found) < limit, (found, limit)
    assert sum(found) >= limit or len(found) == 12 * runs


def test_a_run_that_ended_counts_once_in_its_row_or_in_the_gateways_books() -> None:
    gateway = fresh()
    first = put(gateway, drawing("first", Share("project", "p", tokens=100)))
    assert spend(first, 60) is None
    first.run.ended = True
    unwritten = put(gateway, drawing("second", Share("project", "p", tokens=100), beside=("first",)))
    assert spend(unwritten, 40) is None
    assert spend(unwritten, 1) == "project"
    unwritten.run.ended = True
    written = put(gateway, drawing("third", Share("project", "p", tokens=120, used_tokens=100)))
    assert spend(written, 20) is None
    assert spend(written, 1) == "project"


def test_a_resume_counts_for_the_run_that_was_under_way_too() -> None:
    gateway, share = fresh(), Share("workflow", "w", tokens=100)
    one, other = put(gateway, drawing("one", share)), put(gateway, drawing("other", share))
    assert spend(one, 100) is None
    assert spend(other, 1) == "workflow"
    one.run.ended = True
    put(gateway, drawing("again", Share("workflow", "w", tokens=100, times=2, used_tokens=100)))
    other.run.observed.failures.clear()
    assert spend(other, 100) is None
    assert spend(other, 1) == "workflow"


def test_who_has_no_limit_of_its_own_still_spends_what_others_share() -> None:
    gateway = fresh()
    free, bound = (
        put(gateway, drawing("free", Share("workflow", "w"))),
        put(gateway, drawing("bound", Share("workflow", "w", 10))),
    )
    assert spend(free, 10) is None
    assert spend(bound, 1) == "workflow"
    assert spend(free, 1) is None
    assert spend(put(gateway, drawing("elsewhere", Share("workflow", "x", 10))), 1) is None
