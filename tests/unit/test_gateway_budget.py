"""Properties of the gateway: budgets hold whatever runs beside what, a stream is read the same however it is cut up."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
