"""The Anthropic messages dialect: Claude Code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from hyperagent_tasks.gateway.dialects import base
from hyperagent_tasks.gateway.dialects.base import Asked, Event, Said, Usage, mapping, mappings, number, text_of

VERSION = "2023-06-01"
FINISH = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large"}
TYPES |= {429: "rate_limit_error", 529: "overloaded_error"}
TEXT_BLOCKS = ("text", "thinking", "redacted_thinking")


CLIENT_TOOLS = ("custom", "bash_", "text_editor_", "memory_", "computer_")
BETAS = re.compile(r"[a-z0-9.,_-]{1,1000}")


class Messages:
    """`POST /v1/messages`, and what counts the tokens of one."""

    name = "anthropic_messages"
    routes: tuple[str, ...] = ("/v1/messages", "/v1/messages/{count:count_tokens}")

    def read(self, body: Mapping[str, Any], path: Mapping[str, str]) -> Asked:
        """What a request asks."""
        messages = mappings(body.get("messages"))
        blocks = [b for m in messages if m.get("role") == "user" for b in mappings(m.get("content"))]
        results = [b for b in blocks if b.get("type") == "tool_result"]
        system = text_of(body.get("system"))
        tools = mappings(body.get("tools"))
        return Asked(
            model=str(body.get("model", "")),
            stream=bool(body.get("stream")),
            turn=base.rounds(b.get("tool_use_id") for b in results),
            tools=base.named((t.get("name"), t.get("input_schema")) for t in tools),
            user_text="\n".join(text_of(m.get("content")) for m in messages if m.get("role") == "user"),
            last_tool_result=text_of(results[-1].get("content")) if results else "",
            cwd=base.cwd(system, *(text_of(m.get("content")) for m in messages)),
            counts="count" in path,
            most_output=base.limit(body.get("max_tokens")),
        )

    def events(self, said: Said) -> Iterator[Event]:
        """An answer as a stream."""
        started = {**self.whole(said), "content": [], "stop_reason": None, "usage": _usage(said.usage, 1)}
        yield _event("message_start", message=started)
        for index, block in enumerate(_blocks(said)):
            text = block["type"] == "text"
            opened = {**block, "text": ""} if text else {**block, "input": {}}
            delta = {"type": "text_delta", "text": block["text"]} if text else None
            delta = delta or {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
            yield _event("content_block_start", not text, index=index, content_block=opened)
            yield _event("content_block_delta", not text, index=index, delta=delta)
            yield _event("content_block_stop", not text, index=index)
        ended = {"stop_reason": FINISH[said.finish], "stop_sequence": None}
        yield _event("message_delta", delta=ended, usage=_usage(said.usage, said.usage.output))
        yield _event("message_stop")

    def whole(self, said: Said) -> dict[str, Any]:
        """An answer in one piece."""
        return {
            "id": f"msg_{said.number}",
            "type": "message",
            "role": "assistant",
            "model": said.model,
            "content": _blocks(said),
            "stop_reason": FINISH[said.finish],
            "stop_sequence": None,
            "usage": _usage(said.usage, said.usage.output),
        }

    def counted(self, tokens: int) -> dict[str, Any]:
        """The answer to `count_tokens`."""
        return {"input_tokens": tokens}

    def error(self, message: str, kind: str, status: int) -> dict[str, Any]:
        """An error's body."""
        fallback = "api_error" if status >= 500 else "invalid_request_error"
        return {"type": "error", "error": {"type": TYPES.get(status, fallback), "message": message}}

    def error_event(self, message: str, kind: str) -> Event:
        """An `error` event."""
        return _event("error", error={"type": "api_error", "message": message})

    def prepare(self, body: Mapping[str, Any], model: str) -> dict[str, Any]:
        """Only what the agent itself executes is offered."""
        sent = base.without(body, "mcp_servers", "container") | {"model": model}
        if "tools" in sent:
            sent["tools"] = [tool for tool in mappings(sent["tools"]) if _of_client(tool.get("type"))]
        return sent

    def url(self, base: str, model: str, stream: bool) -> str:
        """`base` is the host, as Anthropic's own SDKs have it; one that names the version is taken too."""
        return f"{base.removesuffix('/v1')}/v1/messages"

    def headers(self, key: str, asked: Mapping[str, str]) -> dict[str, str]:
        """Key, version, and the betas that the CLI's request is written for."""
        betas = asked.get("anthropic-beta", "")
        told = {"anthropic-beta": betas} if BETAS.fullmatch(betas) else {}
        return {"anthropic-version": VERSION, **told, **({"x-api-key": key} if key else {})}

    def usage(self, answer: Mapping[str, Any], before: Usage | None) -> Usage | None:
        """Input is told in `message_start`, output in `message_delta`; both count up, so that the most told is it."""
        said = mapping(answer.get("message")).get("usage") or answer.get("usage")
        if not isinstance(said, dict):
            return before
        was = before or Usage()
        cached = number(said.get("cache_read_input_tokens"))
        fresh = number(said.get("input_tokens")) + number(said.get("cache_creation_input_tokens"))
        return Usage(
            input=max(was.input, fresh + cached),
            output=max(was.output, number(said.get("output_tokens"))),
            cached=max(was.cached, cached),
        )

    def finished(self, answer: Mapping[str, Any]) -> bool:
        """The last event, or a whole answer."""
        return answer.get("type") == "message_stop" or (answer.get("type") == "message" and bool(answer.get("stop_reason")))

    def text(self, answer: Mapping[str, Any]) -> str:
        """Pieces of text blocks, or the text of a whole answer."""
        return str(mapping(answer.get("delta")).get("text") or "") + text_of(answer.get("content"))

    def calls(self, answer: Mapping[str, Any]) -> bool:
        """A block that is neither text nor thinking; its deltas follow it."""
        kind = mapping(answer.get("content_block")).get("type")
        return kind is not None and kind not in TEXT_BLOCKS

    def told_error(self, answer: Mapping[str, Any]) -> tuple[int | None, str] | None:
        """An `error` event or body."""
        said = answer.get("error")
        return (None, base.compact(said)) if said or answer.get("type") == "error" else None

    def last(self, body: Mapping[str, Any]) -> Any:
        """The newest message."""
        return base.newest(body.get("messages"))


def _of_client(kind: object) -> bool:
    return kind is None or (isinstance(kind, str) and kind.startswith(CLIENT_TOOLS))


def _event(name: str, call: bool = False, **more: Any) -> Event:
    return Event(json.dumps({"type": name, **more}), name, call)


def _blocks(said: Said) -> list[dict[str, Any]]:
    calls = [
        {"type": "tool_use", "id": f"toolu_{said.call_id(index)}", "name": call.name, "input": dict(call.args)}
        for index, call in enumerate(said.calls)
    ]
    return [*([{"type": "text", "text": said.text}] if said.text else []), *calls]


def _usage(used: Usage, output: int) -> dict[str, int]:
    return {
        "input_tokens": used.input - used.cached,
        "cache_read_input_tokens": used.cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": output,
    }
