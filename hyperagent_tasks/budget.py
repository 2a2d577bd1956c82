"""What is left of the budgets of step, workflow and project: pure. Limits and what was spent in, what is left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from hyperagent_common.choices import KINDS, SCOPES, Amount

WORDS = {"tokens": "{:.0f} tokens", "usd": "{:.2f} US dollars", "seconds": "{:.0f} seconds of agent runs"}


@dataclass(frozen=True)
class Spent:
    """What agent runs used, and how often a person, resuming after its end, gave the budget once more; `unpriced` counts the
    runs whose cost nobody knows: a project's earlier runs may have had no price; `open` names those that have not ended, of which
    nothing is counted."""

    tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0
    grants: int = 0
    unpriced: int = 0
    open: tuple[str, ...] = ()


@dataclass(frozen=True)
class Share:
    """A budget that agent runs under way draw on together, of a workflow or project (`id`): the limits, how often they count,
    and what the runs that had ended used. Without limits it still says whose budget a run draws on."""

    scope: str
    id: str
    tokens: float | None = None
    usd: float | None = None
    times: int = 1
    used_tokens: int = 0
    used_usd: float = 0.0

    @property
    def key(self) -> tuple[str, str]:
        """What it is a share of."""
        return self.scope, self.id


def share(scope: str, of: str, limit: Amount, used: Spent) -> Share:
    """The share of a run that is about to begin."""
    return Share(scope, of, limit.tokens, limit.usd, 1 + used.grants, used.tokens, used.usd)


@dataclass(frozen=True)
class Left:
    """What the next agent run may use; None where nothing limits it. `spent` names the first budget that is used up,
    `scopes` by kind whose rest it is. `shares` are drawn on by others at the same time, by the runs `open` among them."""

    tokens: int | None = None
    usd: float | None = None
    seconds: float | None = None
    scope: str | None = None
    spent: str | None = None
    scopes: Mapping[str, str] = field(default_factory=dict)
    shares: tuple[Share, ...] = ()
    open: tuple[str, ...] = ()


def left(limits: Mapping[str, Amount], spent: Mapping[str, Spent]) -> Left:
    """The smallest rest over all scopes; each time a person resumes after a pause the limit counts once more."""
    rests: dict[str, float] = {}
    scopes: dict[str, str] = {}
    for scope in SCOPES:
        used = spent.get(scope, Spent())
        for kind in KINDS:
            limit = getattr(limits.get(scope, Amount()), kind)
            if limit is None:
                continue
            rest = limit * (1 + used.grants) - getattr(used, kind)
            if rest <= 0:
                much = WORDS[kind].format(getattr(used, kind))
                whole = WORDS[kind].format(limit * (1 + used.grants))
                more = f", and {used.unpriced} agent runs of unknown cost" if kind == "usd" and used.unpriced else ""
                return Left(0, 0.0, 0.0, scope, f"The budget of this {scope} is spent: {much} of {whole}{more}.")
            if rest < rests.get(kind, math.inf):
                rests[kind], scopes[kind] = rest, scope
    tokens = rests.get("tokens")
    return Left(None if tokens is None else int(tokens), rests.get("usd"), rests.get("seconds"), scopes=scopes)
