"""What real providers of every dialect send, in their own words: whole answers, broken ones, errors and refusals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tests.providers import CANARY, HEAD, Script, refused

KINDS = {"openai_chat": "openai", "openai_responses": "openai", "anthropic_messages": "anthropic", "gemini": "gemini"}
KEY_HEADER = {
    "openai_chat": f"authorization: bearer {CANARY}",
    "openai_responses": f"authorization: bearer {CANARY}",
    "anthropic_messages": f"x-api-key: {CANARY}",
    "gemini": f"x-goog-api-key: {CANARY}",
}
PATHS = {
    "openai_chat": "/chat/completions",
    "openai_responses": "/responses",
    "anthropic_messages": "/v1/messages",
    "gemini": "/v1beta/models/m1:streamGenerateContent?alt=sse",
}

Told = dict[str, Any]


def sse(*events: Told | str, named: bool = False, end: str = "\n\n") -> bytes:
    """Events as a provider streams them."""
    blocks = []
    for event in events:
        data = event if isinstance(event, str) else json.dumps(event)
        name = f"event: {event['type']}{end[: len(end) // 2]}" if named and isinstance(event, dict) else ""
        blocks.append(f"{name}data: {data}{end}")
    return "".join(blocks).encode()


def _chat() -> list[bytes]:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "bash", "arguments": '{"comm'}}
    more = {"index": 0, "function": {"arguments": 'and": "touch x"}'}}
    used = {"prompt_tokens": 900, "completion_tokens": 50, "prompt_tokens_details": {"cached_tokens": 400}}
    deltas: list[Told] = [{"content": "héllo"}, {"tool_calls": [call]}, {"tool_calls": [more]}]
    events: list[Told] = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    events += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}, {"choices": [], "usage": used}]
    return [*(sse(event) for event in events), sse("[DONE]")]


def _responses() -> list[bytes]:
    used = {"input_tokens": 900, "input_tokens_details": {"cached_tokens": 400}, "output_tokens": 50}
    item = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "bash", "arguments": '{"command": "touch x"}'}
    done = {"id": "r1", "status": "completed", "error": None, "output": [item], "usage": used}
    events: list[Told] = [
        {"type": "response.created", "response": {"id": "r1", "status": "in_progress", "error": None, "usage": None}},
        {"type": "response.output_item.added", "item": {"type": "message", "role": "assistant", "content": []}},
        {"type": "response.output_text.delta", "delta": "héllo"},
        {"type": "response.output_item.added", "item": {**item, "arguments": ""}},
        {"type": "response.function_call_arguments.delta", "delta": '{"command": "touch x"}'},
        {"type": "response.output_item.done", "item": item},
        {"type": "response.completed", "response": done},
    ]
    return [sse(event, named=True) for event in events]


def _messages() -> list[bytes]:
    begun = {"input_tokens": 300, "cache_read_input_tokens": 400, "cache_creation_input_tokens": 200, "output_tokens": 2}
    tool = {"type": "tool_use", "id": "t1", "name": "Bash", "input": {}}
    events: list[Told] = [
        {"type": "message_start", "message": {"id": "m", "type": "message", "stop_reason": None, "usage": begun}},
        {"type": "ping"},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "héllo"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": tool},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"command": "touch'}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": ' x"}'}},
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 50}},
        {"type": "message_stop"},
    ]
    return [sse(event, named=True) for event in events]


def _gemini() -> list[bytes]:
    def event(part: Told, output: int, **ended: str) -> bytes:
        used = {"promptTokenCount": 900, "cachedContentTokenCount": 400, "candidatesTokenCount": output, "thoughtsTokenCount": 20}
        candidates = [{"content": {"role": "model", "parts": [part]}, "index": 0, **ended}]
        return sse({"candidates": candidates, "usageMetadata": used}, end="\r\n\r\n")

    call = {"functionCall": {"name": "run_shell_command", "args": {"command": "touch x"}}}
    return [event({"text": "hé"}, 10), event({"text": "llo"}, 12), event(call, 30), event({"text": ""}, 30, finishReason="STOP")]


GOOD = {"openai_chat": _chat(), "openai_responses": _responses(), "anthropic_messages": _messages(), "gemini": _gemini()}
IN_STREAM = {
    "openai_chat": sse({"error": {"message": "The server had an error", "type": "server_error", "code": None}}),
    "openai_responses": sse(
        {"type": "response.failed", "response": {"status": "failed", "error": {"code": "server_error", "message": "oops"}}},
        named=True,
    ),
    "anthropic_messages": sse({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, named=True),
    "gemini": sse({"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}, end="\r\n\r\n"),
}


def _openai_error(message: str, code: str | None, kind: str = "invalid_request_error") -> str:
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


def _anthropic_error(kind: str, message: str) -> str:
    return json.dumps({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"})


def _google_error(code: int, status: str, message: str, *details: Told) -> str:
    return json.dumps({"error": {"code": code, "message": message, "status": status, "details": list(details)}})


QUOTA_WORDS = "You exceeded your current quota, please check your plan and billing details."
_PER_DAY = {"violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]}
_PER_MINUTE = {"violations": [{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"}]}
_OPENAI = [
    ("auth", 401, _openai_error("Incorrect API key provided: sk-x.", "invalid_api_key")),
    ("quota", 429, _openai_error(QUOTA_WORDS, "insufficient_quota", "insufficient_quota")),
    ("rate_limit", 429, _openai_error("Rate limit reached for m1. Visit /account/billing.", "rate_limit_exceeded", "tokens")),
    ("context", 400, _openai_error("This model's maximum context length is 8192 tokens.", "context_length_exceeded")),
    ("model_not_found", 404, _openai_error("The model `m1` does not exist", "model_not_found")),
    ("server", 500, _openai_error("The server had an error", None, "server_error")),
]
REFUSALS: dict[str, list[tuple[str, int, str]]] = {
    "openai_chat": _OPENAI,
    "openai_responses": _OPENAI,
    "anthropic_messages": [
        ("auth", 401, _anthropic_error("authentication_error", "invalid x-api-key")),
        ("quota", 400, _anthropic_error("invalid_request_error", "Your credit balance is too low to access the API.")),
        ("rate_limit", 429, _anthropic_error("rate_limit_error", "This request would exceed your organization's rate limit")),
        ("context", 400, _anthropic_error("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum")),
        ("model_not_found", 404, _anthropic_error("not_found_error", "model: m1")),
        ("server", 529, _anthropic_error("overloaded_error", "Overloaded")),
    ],
    "gemini": [
        ("auth", 400, _google_error(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.")),
        ("quota", 429, _google_error(429, "RESOURCE_EXHAUSTED", QUOTA_WORDS, _PER_DAY, {"retryDelay": "40s"})),
        ("rate_limit", 429, _google_error(429, "RESOURCE_EXHAUSTED", QUOTA_WORDS, _PER_MINUTE, {"retryDelay": "0.01s"})),
        (
            "context",
            400,
            _google_error(400, "INVALID_ARGUMENT", "The input token count (9) exceeds the maximum number of tokens"),
        ),
        ("model_not_found", 404, _google_error(404, "NOT_FOUND", "models/m1 is not found for API version v1beta")),
        ("server", 503, _google_error(503, "UNAVAILABLE", "The model is overloaded. Please try again later.")),
    ],
}


def scripts(dialect: str) -> dict[str, Script | Sequence[Script]]:
    """What the providers of one dialect do."""
    good, broken = GOOD[dialect], IN_STREAM[dialect]
    whole = HEAD + b"".join(good)
    text = len(good) // 2 - 1
    end = len(good) - (3 if dialect == "openai_chat" else 1)
    half = HEAD + b"".join(good[:end]) + good[end][: len(good[end]) // 2]
    split = whole.index("é".encode()) + 1 if "é".encode() in whole else whole.index(b"\\u00e9") + 3
    made: dict[str, Script | Sequence[Script]] = {
        "good": [whole],
        "split": [whole[:split], 0.1, whole[split:]],
        "no-last-newline": [whole.rstrip()],
        "cut-once": [[half], [whole]],
        "garbage-once": [[HEAD + good[0] + b"data: {oops\n\n"], [whole]],
        "bytes-once": [[HEAD + good[0] + b'data: {"a": "\xc3\x28"}\n\n'], [whole]],
        "error-once": [[HEAD + good[0] + broken], [whole]],
        "empty-once": [[HEAD], [whole]],
        "cut": [half],
        "error": [HEAD + good[0] + broken],
        "stalls-late": [HEAD + b"".join(good[:text]), 0.4, b"".join(good[text:end]), 30.0],
        "begins": [HEAD + good[0], *([b": still here\n\n", 0.5] * 120)],
        "pauses": [HEAD + b"".join(good[:-1]), 1.6, good[-1]],
        "lingers": [HEAD + b"".join(good), 60.0],
        "endless": [HEAD, *([good[0].replace(b"data: {", b'data: {"pad": "%s", ' % (b"x" * (4 << 20)))] * 40)],
        "endless-line": [HEAD + b"data: " + b"x" * (9 << 20)],
        "key-in-stream": [HEAD + sse({"error": {"message": f"bad key {CANARY}"}})],
    }
    for kind, status, body in REFUSALS[dialect]:
        made[kind] = [refused(status, body)]
    return {f"{dialect}-{name}": script for name, script in made.items()}
