"""Grants: what one agent run may do at the gateway, and what the gateway saw it do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

FAILURES = (
    "auth",
    "quota",
    "rate_limit",
    "server",
    "context",
    "model_not_found",
    "transport",
    "budget",
    "scenario",
    "other",
)
MAX_FAILURES = 100
UNKNOWN = "unknown token"


@dataclass(frozen=True)
class Grant:
    """Leave for one agent run to use one model. The token itself is never kept: only its sha256 (hex).

    `run` counts the runs of this role in this attempt; `max_tokens` and `max_usd` are what is left of the budgets.
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

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "expires_at": self.expires_at.isoformat()}

    @staticmethod
    def from_json(value: dict[str, Any]) -> Grant:
        """The inverse of `to_json`. Raises `KeyError`, `TypeError`, `ValueError`."""
        return Grant(**{**value, "expires_at": datetime.fromisoformat(value["expires_at"])})


@dataclass
class Observed:
    """What the gateway saw of one agent run. `input` includes `cached`; `cost` is in US dollars, None where unknown."""

    requests: int = 0
    input: int = 0
    output: int = 0
    cached: int = 0
    retries: int = 0
    cost: float | None = None
    statuses: dict[str, int] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)

    def fail(self, kind: str, message: str, status: int | None = None) -> None:
        """Note a failure; at most `MAX_FAILURES` are kept."""
        if len(self.failures) < MAX_FAILURES:
            entry = {"class": kind, "status": status, "message": message[:500], "request": self.requests}
            self.failures.append(entry)

    @property
    def last_failure(self) -> str | None:
        """Class of the last failure, None where there was none."""
        return str(self.failures[-1]["class"]) if self.failures else None


@dataclass
class Run:
    """A grant in force with its books; `attempts` counts tries per (turn, has tools) for the replay's faults."""

    grant: Grant
    observed: Observed = field(default_factory=Observed)
    attempts: dict[tuple[int, bool], int] = field(default_factory=dict)
    ended: bool = False

    @property
    def over(self) -> bool:
        """Ended or expired."""
        return self.ended or datetime.now(UTC) > self.grant.expires_at

    def refusal(self) -> tuple[int, str] | None:
        """Why the next request is refused: status and message, or None."""
        if self.over:
            return 401, UNKNOWN
        if self.observed.requests >= self.grant.max_requests:
            self.observed.fail("budget", f"more than {self.grant.max_requests} model requests", 400)
            return 400, "step request budget exhausted"
        seen = self.observed
        if self.grant.max_tokens is not None and seen.input + seen.output >= self.grant.max_tokens:
            seen.fail("budget", f"{seen.input + seen.output} tokens used of {self.grant.max_tokens}", 400)
            return 400, "step token budget exhausted"
        if self.grant.max_usd is not None and (seen.cost or 0.0) >= self.grant.max_usd:
            seen.fail("budget", f"{seen.cost:.4f} US dollars used of {self.grant.max_usd:.4f}", 400)
            return 400, "step cost budget exhausted"
        return None


def classify(status: int | None, message: str) -> str:
    """The failure class of a provider's answer."""
    text = message.lower()
    if status is None or status >= 500:  # a proxy's words about a time-out are no words about the request
        return "transport" if status is None else "server"
    if any(word in text for word in ("insufficient_quota", "exceeded your current quota")):
        return "quota"
    if status == 429 and ("rate limit" in text or "rate_limit" in text):  # such a text may well advertise billing
        return "rate_limit"
    if status == 402 or any(word in text for word in ("billing", "credit", "usage limit")):
        return "quota"
    if ("context" in text and ("length" in text or "window" in text)) or "too long" in text:
        return "context"
    by_status = {401: "auth", 403: "auth", 404: "model_not_found", 413: "context", 429: "rate_limit"}
    return by_status.get(status, "other")
