"""What kind of end a provider's error is: pure, from the words and numbers that reach an agent's stream."""

from __future__ import annotations

import re

from hyperagent_tasks.agents.base import EndReason

CODES = {
    "budget_exhausted": EndReason.BUDGET,
    "insufficient_quota": EndReason.QUOTA,
    "billing_hard_limit_reached": EndReason.QUOTA,
    "rate_limit_exceeded": EndReason.RATE_LIMIT,
    "rate_limit_error": EndReason.RATE_LIMIT,
    "invalid_api_key": EndReason.AUTH,
    "authentication_error": EndReason.AUTH,
    "permission_error": EndReason.AUTH,
    "context_length_exceeded": EndReason.CONTEXT,
    "model_not_found": EndReason.MODEL_NOT_FOUND,
    "overloaded_error": EndReason.PROVIDER,
    "content_filter": EndReason.REFUSED,
    "ContextOverflowError": EndReason.CONTEXT,
    "MessageOutputLengthError": EndReason.CONTEXT,
    "ContentFilterError": EndReason.REFUSED,
    "ProviderAuthError": EndReason.AUTH,
    "MessageAbortedError": EndReason.CRASHED,
    # the gateway's own classes; it may not say "rate_limit" to opencode, which then asks again for minutes
    "throttled": EndReason.RATE_LIMIT,
    "server": EndReason.PROVIDER,
    "transport": EndReason.PROVIDER,
    "scenario": EndReason.REFUSED,
} | {str(reason): reason for reason in EndReason}

WORDS = [
    (EndReason.BUDGET, r"\b(request|token|step|cost)s?\b.{0,20}\bbudget\b"),
    (
        EndReason.CONTEXT,
        r"context.{0,20}(length|window|overflow)|prompt is too long|too many tokens|request too large|max_output_tokens",
    ),
    (EndReason.QUOTA, r"insufficient.{0,12}(quota|credit|fund|balance)|\bquota\b|billing|out of credits|usage limit"),
    (
        EndReason.MODEL_NOT_FOUND,
        r"model.{0,60}(not found|does not exist|not exist|not supported|unknown)|(unknown|no such) model",
    ),
    (EndReason.AUTH, r"api.?key|unauthori[sz]ed|unauthenticated|authentication|permission denied"),
    (EndReason.RATE_LIMIT, r"rate.?limit|too.?many.?requests|throttl"),
    (EndReason.REFUSED, r"content.?filter|safety system"),
]

STATUSES = {
    401: EndReason.AUTH,
    402: EndReason.QUOTA,
    403: EndReason.AUTH,
    404: EndReason.MODEL_NOT_FOUND,
    413: EndReason.CONTEXT,
    429: EndReason.RATE_LIMIT,
}

TRANSPORT = (
    r"connect|socket|fetch failed|econn|timed? ?out|terminated|stream|sse|pars(e|ing)|json|overloaded|high demand|empty response"
)

SENTENCES = {
    EndReason.BUDGET: "The budget of this agent run is spent",
    EndReason.CONTEXT: "The conversation no longer fits the model",
    EndReason.QUOTA: "The provider account has no quota left",
    EndReason.MODEL_NOT_FOUND: "The provider does not have this model",
    EndReason.AUTH: "The provider refused the key",
    EndReason.RATE_LIMIT: "The provider limits the rate of requests",
    EndReason.REFUSED: "The model or its provider refused to answer",
    EndReason.PROVIDER: "The model provider failed",
    EndReason.CRASHED: "The agent CLI failed by itself",
}


def classify(status: int | None, message: str, *codes: str) -> EndReason:
    """The reason behind an error: a known code decides, then the words, then the HTTP status (None: no answer)."""
    for code in codes:
        if code in CODES:
            return CODES[code]
    for reason, pattern in WORDS:
        if re.search(pattern, message, re.IGNORECASE):
            return reason
    if status is not None:
        return STATUSES.get(status, EndReason.PROVIDER)
    return EndReason.PROVIDER if re.search(TRANSPORT, message, re.IGNORECASE) else EndReason.CRASHED


def sentence(reason: EndReason, status: int | None, message: str) -> str:
    """One sentence for a person: what happened, the HTTP status and the provider's own words."""
    where = f" (HTTP {status})" if status is not None else ""
    told = " ".join(message.split()).rstrip(".")
    return f"{SENTENCES.get(reason, SENTENCES[EndReason.PROVIDER])}{where}: {told or 'no reason given'}."
