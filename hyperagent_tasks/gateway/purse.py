"""What is left of a grant's budgets: a request begins only where those under way cannot spend all of it, at the worst.

So the budgets are overshot by one request at most, however many are asked at once: whoever does not fit beside the
others waits for them and is then asked about again. The budget of a workflow or project is a pot: all runs on this host that
draw on it are the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
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
class Pot:
    """A shared budget: what the runs that had ended used when it was last read, how often its limits count, and the purses of
    the runs on this host that are not in that."""

    tokens: int
    usd: float
    times: int
    purses: list[Purse]


@dataclass
class Pots:
    """Every pot in use on this host, and a bell that rings where a request waits for another, maybe another run's, to end."""

    by_key: dict[tuple[str, str], Pot] = field(default_factory=dict)
    _bell: asyncio.Event = field(default_factory=asyncio.Event)

    def draw(self, purse: Purse, known: Iterable[Purse]) -> None:
        """Let a new run draw on its shares, beside the `known` ones that no figures of its grant hold: those that have not ended
        at the gateway, or had not in their rows when the shares were read."""
        grant = purse.run.grant
        for share in grant.shares:
            others = [p for p in known if p.run.grant.draws_on(share.key)]
            others = [p for p in others if not p.run.ended or p.run.grant.agent_run_id in grant.beside]
            was = self.by_key.get(share.key)
            times = max(share.times, was.times if was else 1)
            self.by_key[share.key] = Pot(share.used_tokens, share.used_usd, times, [*others, purse])
        for key in [key for key, pot in self.by_key.items() if all(p.run.ended for p in pot.purses)]:
            del self.by_key[key]
        self.ring()

    def ring(self) -> None:
        """Wake whoever waits."""
        self._bell.set()
        self._bell = asyncio.Event()

    async def rung(self) -> None:
        """Wait for the next time."""
        await self._bell.wait()


@dataclass(frozen=True)
class Limit:
    """One budget of a run: how much of how much is used, by whom; `scope` where it is shared."""

    scope: str
    tokens: float | None
    usd: float | None
    used: int
    cost: float
    purses: Sequence[Purse]


@dataclass(eq=False)
class Purse:
    """The budgets of a run, and the most that its requests under way can use."""

    run: Run
    pots: Pots = field(default_factory=Pots)
    spent: float = 0.0
    unpriced: bool = False
    held: list[tuple[int, float]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """What the run used so far."""
        return self.run.observed.input + self.run.observed.output

    def _limits(self) -> Iterator[Limit]:
        grant = self.run.grant
        yield Limit("", grant.max_tokens, grant.max_usd, self.tokens, self.spent, [self])
        for share in grant.shares:
            pot = self.pots.by_key.get(share.key)
            if pot is not None:
                tokens, usd = (None if most is None else most * pot.times for most in (share.tokens, share.usd))
                used, cost = sum(p.tokens for p in pot.purses), sum(p.spent for p in pot.purses)
                yield Limit(share.scope, tokens, usd, pot.tokens + used, pot.usd + cost, pot.purses)

    def refusal(self) -> Refusal | None:
        """Why the next request is refused, or None; a spent budget is noted as a failure of the run."""
        if self.run.over:
            return Refusal(401, UNKNOWN, "auth")
        if self.run.observed.requests >= self.run.grant.max_requests:
            return self._spent("requests", "request", f"more than {self.run.grant.max_requests} model requests")
        return self._used_up()

    def _used_up(self) -> Refusal | None:
        for limit in self._limits():
            if limit.tokens is not None and limit.used >= limit.tokens:
                return self._spent("tokens", "token", f"{limit.used} tokens used of {limit.tokens:.0f}", limit.scope)
            if limit.usd is not None and limit.cost >= limit.usd:
                return self._spent("usd", "cost", f"{limit.cost:.4f} US dollars used of {limit.usd:.4f}", limit.scope)
        return None

    def _spent(self, of: str, what: str, message: str, scope: str = "") -> Refusal:
        self.run.observed.fail("budget", message, 400, of=of, **({"scope": scope} if scope else {}))
        return Refusal(400, f"step {what} budget exhausted")

    @asynccontextmanager
    async def hold(self, bound: Usage, price: Price | None) -> AsyncIterator[Refusal | None]:
        """Count a request as under way for as long as it is; waits until it fits, yields a refusal where it never will."""
        while not self._fits():
            await self.pots.rung()
        refused = Refusal(401, UNKNOWN, "auth") if self.run.over else self._used_up()
        held = (bound.input + bound.output, price.of(bound) if price else 0.0)
        self.held.append(held)
        try:
            yield refused
        finally:
            self.held.remove(held)
            self.pots.ring()

    def _fits(self) -> bool:
        """Whether there is something left even if those under way use the most they can."""
        for limit in self._limits():
            held = [each for purse in limit.purses for each in purse.held]
            tokens, usd = sum(each[0] for each in held), sum(each[1] for each in held)
            if held and limit.tokens is not None and limit.used + tokens >= limit.tokens:
                return False
            if held and limit.usd is not None and limit.cost + usd >= limit.usd:
                return False
        return True

    def book(self, used: Usage, price: Price | None) -> None:
        """Put the tokens of one answer into the run's books."""
        seen = self.run.observed
        seen.input, seen.output, seen.cached = seen.input + used.input, seen.output + used.output, seen.cached + used.cached
        self.unpriced = self.unpriced or price is None
        self.spent += price.of(used) if price else 0.0
        seen.cost = None if self.unpriced else self.spent
