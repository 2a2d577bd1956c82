"""The OpenAI chat-completions dialect."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

PATH = "chat/completions"


@dataclass(frozen=True)
class Asked:
    """What a request asks: `turn` is the number of assistant turns with answered tool calls in its history."""

    model: str
    stream: bool
    turn: int
    tools: frozenset[str]
    user_text: str
    last_tool_result: str
    cwd: str


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer; `input` includes `cached`."""

    input: int = 0
    output: int = 0
    cached: int = 0


def read(body: dict[str, Any]) -> Asked:
    """Read a request. Tolerates what clients leave out; raises nothing for odd shapes."""
    messages = _dicts(body.get("messages"))
    tools = [_dict(t.get("function")).get("name") for t in _dicts(body.get("tools"))]
    results = [m for m in messages if m.get("role") == "tool"]
    return Asked(
        model=str(body.get("model", "")),
        stream=bool(body.get("stream")),
        turn=sum(1 for m in messages if m.get("role") == "assistant" and m.get("tool_calls")),
        tools=frozenset(name for name in tools if isinstance(name, str)),
        user_text="\n".join(text_of(m) for m in messages if m.get("role") == "user"),
        last_tool_result=text_of(results[-1]) if results else "",
        cwd=_cwd(messages),
    )


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: object) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def text_of(message: dict[str, Any]) -> str:
    """The text of a message whose content is a string or a list of parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(p.get("text", "")) for p in parts if isinstance(p, dict))


def _cwd(messages: Sequence[dict[str, Any]]) -> str:
    for message in messages:
        found = re.search(r"[Ww]orking directory:\s*(/[^\s<]+)", text_of(message))
        if found:
            return found[1]
    return "/workspace"


def prepare(body: dict[str, Any], model: str) -> dict[str, Any]:
    """The request as it goes upstream: the provider's model name, usage asked for."""
    sent = {**body, "model": model}
    if body.get("stream"):
        sent["stream_options"] = {**_dict(body.get("stream_options")), "include_usage": True}
    return sent


def usage(answer: dict[str, Any]) -> Usage | None:
    """Usage in a whole answer or one chunk of a stream, None where it tells none."""
    said = answer.get("usage")
    if not isinstance(said, dict):
        return None
    details = _dict(said.get("prompt_tokens_details"))
    return Usage(_int(said.get("prompt_tokens")), _int(said.get("completion_tokens")), _int(details.get("cached_tokens")))


def _int(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def finished(answer: dict[str, Any]) -> bool:
    """True where this chunk says why the answer ended."""
    choices = answer.get("choices")
    return isinstance(choices, list) and any(isinstance(c, dict) and c.get("finish_reason") for c in choices)


def told_error(answer: dict[str, Any]) -> tuple[int | None, str] | None:
    """The status (None: not said) and words of an error inside an answer, None where it is none."""
    said = answer.get("error")
    if not said:
        return None
    code = _dict(said).get("code")
    return (code if isinstance(code, int) and 400 <= code < 600 else None), json.dumps(said, ensure_ascii=False)


def error(message: str, kind: str) -> dict[str, Any]:
    """An error's body."""
    return {"error": {"message": message, "type": kind, "code": kind, "param": None}}


def chunks(
    model: str, number: int, text: str, calls: Sequence[tuple[str, dict[str, Any]]], finish: str, used: Usage
) -> Iterator[str]:
    """An answer as the data of SSE events."""
    base = {"id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "created": 1700000000, "model": model}

    def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> str:
        return json.dumps({**base, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more})

    if text:
        yield chunk({"role": "assistant", "content": text})
    for index, (name, arguments) in enumerate(calls):
        function = {"name": name, "arguments": json.dumps(arguments)}
        call = {"index": index, "id": f"call_{number}_{index}", "type": "function", "function": function}
        yield chunk({"tool_calls": [call]})
    yield chunk({}, finish, usage=_usage_json(used))
    yield "[DONE]"


def whole(
    model: str, number: int, text: str, calls: Sequence[tuple[str, dict[str, Any]]], finish: str, used: Usage
) -> dict[str, Any]:
    """An answer in one piece."""
    message: dict[str, Any] = {"role": "assistant", "content": text or None}
    if calls:
        message["tool_calls"] = [
            {"id": f"call_{number}_{i}", "type": "function", "function": {"name": n, "arguments": json.dumps(a)}}
            for i, (n, a) in enumerate(calls)
        ]
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1700000000,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": _usage_json(used),
    }


def _usage_json(used: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": used.input,
        "completion_tokens": used.output,
        "total_tokens": used.input + used.output,
        "prompt_tokens_details": {"cached_tokens": used.cached},
    }
