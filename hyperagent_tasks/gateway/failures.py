"""Failures of a provider: what class an answer's words and status stand for, and what may be tried after it. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
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
WORTH_ANOTHER_TRY = frozenset({"rate_limit", "server", "transport"})
WORTH_ANOTHER_PROVIDER = frozenset({"auth", "quota", "rate_limit", "server", "transport", "model_not_found"})
CODES = {
    "overloaded_error": "server",
    "api_error": "server",
    "server_error": "server",
    "timeout_error": "server",
    "rate_limit_error": "rate_limit",
    "rate_limit_exceeded": "rate_limit",
    "insufficient_quota": "quota",
    "billing_error": "quota",
    "billing_hard_limit_reached": "quota",
    "authentication_error": "auth",
    "permission_error": "auth",
    "invalid_api_key": "auth",
    "API_KEY_INVALID": "auth",
    "UNAUTHENTICATED": "auth",
    "PERMISSION_DENIED": "auth",
    "context_length_exceeded": "context",
    "request_too_large": "context",
    "model_not_found": "model_not_found",
    "not_found_error": "model_not_found",
    "UNAVAILABLE": "server",
    "INTERNAL": "server",
}
_QUOTED = re.compile(f'"({"|".join(CODES)})"')
_QUOTA = re.compile(r"insufficient_quota|exceeded your current quota|perday|per day", re.IGNORECASE)
_RATE = re.compile(r"rate.limit|per.?minute", re.IGNORECASE)
_PAYING = re.compile(r"billing|credit|usage limit", re.IGNORECASE)
_EXCEEDS = re.compile(r"too long|token count.{0,40}exceeds", re.IGNORECASE)
_KEY = re.compile(r"api.?key.{0,20}(not valid|invalid|expired)|(invalid|incorrect).{0,10}api.?key", re.IGNORECASE)
_WAIT = re.compile(r'"retryDelay"\s*:\s*"([0-9.]{1,9})s"')
_BY_STATUS = {401: "auth", 403: "auth", 404: "model_not_found", 413: "context", 429: "rate_limit"}


@dataclass(frozen=True)
class Failure:
    """A provider that gave no answer: nothing of it has reached the agent. `wait`: it asks for so many seconds."""

    kind: str
    message: str
    status: int | None = None
    wait: float | None = None

    @property
    def may_pass(self) -> bool:
        """Whether the same provider may well answer a little later."""
        return self.kind in WORTH_ANOTHER_TRY


def classify(status: int | None, message: str) -> str:
    """The failure class of a provider's answer; `status` None where it said none."""
    if status is None and (found := _QUOTED.search(message)):
        return CODES[found[1]]
    if status is None or status >= 500:  # a proxy's words about a time-out are no words about the request
        return "transport" if status is None else "server"
    if status == 429 and _RATE.search(message) and not re.search("insufficient_quota|per.?day", message, re.I):
        return "rate_limit"  # such a text may well advertise billing
    if status == 402 or _QUOTA.search(message) or _PAYING.search(message):
        return "quota"
    if _EXCEEDS.search(message) or _of_context(message.lower()):
        return "context"
    if status == 400 and _KEY.search(message):
        return "auth"
    if status not in _BY_STATUS and (found := _QUOTED.search(message)):
        return CODES[found[1]]
    return _BY_STATUS.get(status, "other")


def _of_context(text: str) -> bool:
    return "context" in text and ("length" in text or "window" in text)


def wait_of(header: str | None, message: str) -> float | None:
    """How long a refusal asks to wait, None where it does not say."""
    found = _WAIT.search(message)
    try:
        return max(0.0, float(header if header is not None else found[1] if found else ""))
    except ValueError:
        return None


def words(said: Any) -> str:
    """An error's body as text."""
    return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)


def following(kind: str, at: int, providers: int) -> int | None:
    """Which of a grant's providers goes on after one that failed before a byte of its answer was given; None: nobody."""
    return at + 1 if kind in WORTH_ANOTHER_PROVIDER and at + 1 < providers else None
