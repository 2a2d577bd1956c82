"""What is left of a grant's budgets: a request begins only where those under way cannot spend all of it, at the worst.

So the budgets are overshot by one request at most, however many are asked at once: whoever does not fit beside the
others waits for them and is then asked about again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from hyperagent_tasks.gateway.dialects.base import Asked, Usage
from hyperagent_tasks.gateway.grants import UNKNOWN, Run

MOST_OUTPUT = 200_000
"""The most a request without a limit of its own may be answered with."""
PER_TOKEN = 4
"""Bytes of a token, where nobody told the tokens."""


@dataclass(frozen=True)
class Price:
    """US dollars for a million tokens."""

    input: float = 0.0
    output: float = 0.0
    cached: float | None = None

    def of(self, used: Usage) -> float:
        """What these tokens cost; cached ones cost as others do where no price of theirs is known."""
        cached = self.input if self.cached is None else self.cached
        fresh = max(0, used.input - used.cached)
        return (fresh * self.input + used.cached * cached + used.output * self.output) / 1_000_000


@dataclass(frozen=True)
class Refusal:
    """Why a request is refused."""

    status: int
    message: str
    kind: str = "budget"


def most(asked: Asked, size: int) -> Usage:
    """The most tokens a request of `size` bytes can use: no token is shorter than a byte."""
    return Usage(size, MOST_OUTPUT if asked.most_output is None else asked.most_output)


def estimate(size: int, said: int) -> Usage:
    """Tokens of a request of `size` bytes and of `said` bytes of answer, where the provider told none."""
    return Usage(size // PER_TOKEN, said // PER_TOKEN)


@dataclass
class Purse:
    """The budgets of a run, and the most that its requests under way can use."""

    run: Run
    spent: float = 0.0
    unpriced: bool = False
    _held: list[tuple[int, float]] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def refusal(self) -> Refusal | None:
        """Why the next request is refused, or None; a spent budget is noted as a failure of the run."""
        if self.run.over:
            return Refusal(401, UNKNOWN, "auth")
        if self.run.observed.requests >= self.run.grant.max_requests:
            return self._spent("requests", "request", f"more than {self.run.grant.max_requests} model requests")
        return self._used_up()

    def _used_up(self) -> Refusal | None:
        seen, grant = self.run.observed, self.run.grant
        if grant.max_tokens is not None and seen.input + seen.output >= grant.max_tokens:
            return self._spent("tokens", "token", f"{seen.input + seen.output} tokens used of {grant.max_tokens}")
        if grant.max_usd is not None and self.spent >= grant.max_usd:
            return self._spent("usd", "cost", f"{self.spent:.4f} US dollars used of {grant.max_usd:.4f}")
        return None

    def _spent(self, of: str, what: str, message: str) -> Refusal:
        self.run.observed.fail("budget", message, 400, of=of)
        return Refusal(400, f"step {what} budget exhausted")

    @asynccontextmanager
    async def hold(self, bound: Usage, price: Price | None) -> AsyncIterator[Refusal | None]:
        """Count a request as under way for as long as it is; waits until it fits, yields a refusal where it never will."""
        while not self._fits():
            await self._changed.wait()
        refused = Refusal(401, UNKNOWN, "auth") if self.run.over else self._used_up()
        held = (bound.input + bound.output, price.of(bound) if price else 0.0)
        self._held.append(held)
        try:
            yield refused
        finally:
            self._held.remove(held)
            self._changed.set()
            self._changed = asyncio.Event()

    def _fits(self) -> bool:
        """Whether there is something left even if those under way use the most they can."""
        if not self._held:
            return True
        seen, grant = self.run.observed, self.run.grant
        tokens, usd = sum(held[0] for held in self._held), sum(held[1] for held in self._held)
        if grant.max_tokens is not None and seen.input + seen.output + tokens >= grant.max_tokens:
            return False
        return grant.max_usd is None or self.spent + usd < grant.max_usd

    def book(self, used: Usage, price: Price | None) -> None:
        """Put the tokens of one answer into the run's books."""
        seen = self.run.observed
        seen.input, seen.output, seen.cached = seen.input + used.input, seen.output + used.output, seen.cached + used.cached
        self.unpriced = self.unpriced or price is None
        self.spent += price.of(used) if price else 0.0
        seen.cost = None if self.unpriced else self.spent
