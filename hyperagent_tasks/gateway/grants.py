"""Grants: what one agent run may do at the gateway, and what the gateway saw it do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from hyperagent_tasks.budget import Share

MAX_FAILURES = 100
MAX_TEXT = 256 << 10
"""Characters of a model's last words: as many as are kept of a CLI's final text, which is compared with them."""
UNKNOWN = "unknown token"


@dataclass(frozen=True)
class Grant:
    """Leave for one agent run to use one model. The token itself is never kept: only its sha256 (hex).

    `run` counts the runs of this role in this attempt; `max_tokens` and `max_usd` are what is left of the budgets;
    `shares` are the budgets it draws on with others, `beside` the runs that had not ended when those were read;
    `fallback` names who goes on where the first provider fails, in order, each `provider/model`.
    """

    agent_run_id: str
    attempt_id: str
    token_sha256: str
    step_key: str
    role: str
    provider: str
    model: str
    max_requests: int
    expires_at: datetime
    log_path: str
    run: int = 1
    max_tokens: int | None = None
    max_usd: float | None = None
    fallback: tuple[str, ...] = ()
    shares: tuple[Share, ...] = ()
    beside: tuple[str, ...] = ()

    def draws_on(self, key: tuple[str, str]) -> bool:
        """Whether this budget is one of its shares."""
        return any(share.key == key for share in self.shares)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "expires_at": self.expires_at.isoformat()}

    @staticmethod
    def from_json(value: dict[str, Any]) -> Grant:
        """The inverse of `to_json`. Raises `KeyError`, `TypeError`, `ValueError`."""
        fallback = tuple(str(each) for each in value.get("fallback", ()))
        expires = datetime.fromisoformat(value["expires_at"])
        shares = tuple(Share(**each) for each in value.get("shares", ()))
        beside = tuple(str(each) for each in value.get("beside", ()))
        return Grant(**{**value, "expires_at": expires, "fallback": fallback, "shares": shares, "beside": beside})

    @property
    def models(self) -> list[tuple[str, str]]:
        """Provider and model of everybody who may answer, in order."""
        split = [each.partition("/") for each in self.fallback]
        return [(self.provider, self.model), *((provider, model) for provider, _, model in split)]


@dataclass
class Observed:
    """What the gateway saw of one agent run. `input` includes `cached`; `cost` is in US dollars, None where a price is
    unknown; `estimated` counts answers whose tokens nobody told; `mended` counts the failures that a whole answer followed;
    `answered` counts those by provider/model, `switches` tells each move to the next provider; `text` is what the model said
    in its last answer of the conversation (its end, where that is long)."""

    requests: int = 0
    input: int = 0
    output: int = 0
    cached: int = 0
    retries: int = 0
    cost: float | None = None
    estimated: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    mended: int = 0
    answered: dict[str, int] = field(default_factory=dict)
    switches: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""

    def fail(self, kind: str, message: str, status: int | None = None, **more: str) -> None:
        """Note a failure; at most `MAX_FAILURES` are kept. `of` names the budget that is spent: requests, tokens,
        usd; `scope` whose it is, where runs share it."""
        if len(self.failures) == MAX_FAILURES:
            self.failures.pop()
            self.mended = min(self.mended, len(self.failures))
        entry = {"class": kind, "status": status, "message": message[:500], "request": self.requests, **more}
        self.failures.append(entry)

    def answer(self, model: str, text: str | None = None) -> None:
        """Note a whole answer of `provider/model`; its `text`, unless it was aside from the conversation, is the last."""
        self.text = self.text if text is None else text[-MAX_TEXT:]
        self.answered[model] = self.answered.get(model, 0) + 1
        self.mended = len(self.failures)

    @property
    def failure(self) -> dict[str, Any] | None:
        """The failure that stands at the end: a spent budget, else the last one that no whole answer followed."""
        spent = next((each for each in reversed(self.failures) if each["class"] == "budget"), None)
        return spent or next(reversed(self.failures[self.mended :]), None)

    @property
    def last_failure(self) -> str | None:
        """Class of the failure that stands, None where there is none."""
        return None if self.failure is None else str(self.failure["class"])


@dataclass
class Run:
    """A grant in force with its books; `attempts` counts tries per (turn, has tools) for the replay's faults, `at` is
    which of the grant's providers answers now."""

    grant: Grant
    observed: Observed = field(default_factory=Observed)
    attempts: dict[tuple[int, bool], int] = field(default_factory=dict)
    at: int = 0
    ended: bool = False

    @property
    def over(self) -> bool:
        """Ended or expired."""
        return self.ended or datetime.now(UTC) > self.grant.expires_at
