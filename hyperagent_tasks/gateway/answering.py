"""Answering one request: tries at a provider, then the next of the grant's list, then a refusal that no CLI tries again.

Only what failed before a byte of its answer was given is tried again. The real class of each failure is in the run's books.
"""

from __future__ import annotations

import asyncio
import random
import re

from aiohttp import web

from hyperagent_tasks.gateway import purse, replay, upstream
from hyperagent_tasks.gateway.config import GatewayConfig
from hyperagent_tasks.gateway.exchange import Exchange
from hyperagent_tasks.gateway.failures import Failure, following

# opencode asks again for minutes where a refusal holds one of these anywhere (as 65000 holds 500), whatever its status
TEMPTING = re.compile(r"429|50[0234]|rate.?limit|too.?many.?requests|overloaded|unavailable|exhausted|try again", re.I)
SAID_AS = {"rate_limit": "throttled"}


async def answer(x: Exchange) -> web.StreamResponse:
    """Answer one request. Raises `replay.Dropped` where a script ends the connection."""
    while True:
        at = x.at = x.run.at
        done = await _tries(x, at)
        if isinstance(done, web.StreamResponse):
            return done
        x.run.observed.fail(done.failure.kind, done.failure.message, done.failure.status)
        after = following(done.failure.kind, at, len(x.run.grant.models))
        if after is None:
            return done.refusal(x)
        _switch(x, at, after, done.failure)


class GaveUp:
    """A provider that gave no answer after all its tries, and how the agent is told where nobody goes on."""

    def __init__(self, failure: Failure, tries: int, raw: BaseException | None = None) -> None:
        self.failure, self._tries, self._raw = failure, tries, raw

    def refusal(self, x: Exchange) -> web.Response:
        """In plain words, the provider's own only where they do not tempt; a script's refusal as it was written."""
        if isinstance(self._raw, replay.Scripted):
            headers = self._raw.headers
            return x.refusal(self.failure.status or 500, self.failure.message, self.failure.kind, headers)
        if self._raw is not None:
            raise self._raw
        why = f"after {self._tries} tries" if self._tries > 1 else self.failure.message[:400]
        code = SAID_AS.get(self.failure.kind, self.failure.kind)
        told = f"provider failed: {code}" if TEMPTING.search(why) else f"provider failed: {code}: {why}"
        return x.refusal(_client_status(self.failure.status), told, code)


def _client_status(status: int | None) -> int:
    return status if status is not None and 400 <= status < 500 and status not in (408, 409, 425, 429) else 400


def _switch(x: Exchange, at: int, after: int, failure: Failure) -> None:
    """Let the next provider go on, for the rest of the run; once, however many requests failed together."""
    if x.run.at != at:
        return
    x.run.at = after
    names = ["/".join(each) for each in x.run.grant.models]
    switch = {"from": names[at], "to": names[after], "why": failure.kind, "request": x.number}
    x.run.observed.switches.append(switch)


async def _tries(x: Exchange, at: int) -> web.StreamResponse | GaveUp:
    provider, model = x.provider(at)
    bound, price = purse.most(x.asked, x.size), provider.prices.get(model)
    tries = 0
    while True:
        async with x.purse.hold(bound, price) as refused:
            if refused is not None:
                return x.refusal(refused.status, refused.message, refused.kind)
            done = await _once(x, at)
        if isinstance(done, web.StreamResponse) and done.status < 400 and not x.broken:
            x.run.observed.answer(f"{provider.name}/{model}", x.text if x.asked.tools else None)
        if not isinstance(done, Failure):
            return done
        tries += 1
        pause = _backoff(x.config, tries) if done.wait is None else done.wait
        hopeless = done.wait is not None and done.wait > x.config.longest_pause  # to ask before that is known to be in vain
        if tries >= x.config.tries or not done.may_pass or hopeless:
            return GaveUp(done, tries if done.may_pass and not hopeless else 1)
        x.run.observed.fail(done.kind, done.message, done.status)
        x.run.observed.retries += 1
        await asyncio.sleep(min(pause, x.config.longest_pause))


async def _once(x: Exchange, at: int) -> web.StreamResponse | Failure | GaveUp:
    provider, model = x.provider(at)
    if provider.kind != "replay":
        return await upstream.answer(x, provider, model)
    try:
        return await replay.answer(x, provider, model)
    except replay.Scripted as told:
        return GaveUp(told.failure, 1, told)
    except replay.Dropped as dropped:
        if x.outlet.given:
            x.run.observed.fail("transport", str(dropped), None)
            raise
        x.outlet.again()
        return GaveUp(Failure("transport", str(dropped)), 1, dropped)


def _backoff(config: GatewayConfig, tries: int) -> float:
    return config.pause * float(2 ** (tries - 1)) * random.uniform(0.5, 1.0)
