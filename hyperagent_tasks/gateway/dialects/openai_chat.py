"""The OpenAI chat-completions dialect: opencode, and most servers that call themselves OpenAI-compatible."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from hyperagent_tasks.gateway.dialects import base
from hyperagent_tasks.gateway.dialects.base import Asked, Event, Said, Usage, mapping, mappings, number, text_of

CLIENT_TOOLS = ("function", "custom")


class Chat:
    """`POST /v1/chat/completions`."""

    name = "openai_chat"
    routes: tuple[str, ...] = ("/v1/chat/completions",)

    def read(self, body: Mapping[str, Any], path: Mapping[str, str]) -> Asked:
        """What a request asks."""
        messages = mappings(body.get("messages"))
        functions = [mapping(tool.get("function")) for tool in mappings(body.get("tools"))]
        results = [m for m in messages if m.get("role") == "tool"]
        most = body.get("max_completion_tokens") or body.get("max_tokens")
        return Asked(
            model=str(body.get("model", "")),
            stream=bool(body.get("stream")),
            turn=sum(1 for m in messages if m.get("role") == "assistant" and m.get("tool_calls")),
            tools=base.named((f.get("name"), f.get("parameters")) for f in functions),
            user_text="\n".join(text_of(m.get("content")) for m in messages if m.get("role") == "user"),
            last_tool_result=text_of(results[-1].get("content")) if results else "",
            cwd=base.cwd(*(text_of(m.get("content")) for m in messages)),
            most_output=base.limit(most, body.get("n")),
        )

    def events(self, said: Said) -> Iterator[Event]:
        """An answer as a stream."""
        if said.text:
            yield self._chunk(said, {"role": "assistant", "content": said.text})
        for index, call in enumerate(_calls(said)):
            yield self._chunk(said, {"tool_calls": [{"index": index, **call}]}, call=True)
        yield self._chunk(said, {}, reason=said.finish, usage=_usage(said.usage))
        yield Event("[DONE]")

    def _chunk(self, said: Said, delta: dict[str, Any], *, call: bool = False, reason: str | None = None, **more: Any) -> Event:
        choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
        return Event(json.dumps({**_head(said, "chat.completion.chunk"), "choices": choices, **more}), call=call)

    def whole(self, said: Said) -> dict[str, Any]:
        """An answer in one piece."""
        message: dict[str, Any] = {"role": "assistant", "content": said.text or None}
        if said.calls:
            message["tool_calls"] = _calls(said)
        choices = [{"index": 0, "message": message, "finish_reason": said.finish}]
        return {**_head(said, "chat.completion"), "choices": choices, "usage": _usage(said.usage)}

    def counted(self, tokens: int) -> dict[str, Any]:
        """There is no such request in this dialect."""
        return {"input_tokens": tokens}

    def error(self, message: str, kind: str, status: int) -> dict[str, Any]:
        """An error's body."""
        return {"error": {"message": message, "type": kind, "code": kind, "param": None}}

    def error_event(self, message: str, kind: str) -> Event:
        """An error in the middle of a stream."""
        return Event(json.dumps(self.error(message, kind, 400)))

    def prepare(self, body: Mapping[str, Any], model: str) -> dict[str, Any]:
        """Usage is asked for; what only a tool server of theirs could do is left out."""
        sent = base.without(body, "web_search_options") | {"model": model}
        if "tools" in sent:
            sent["tools"] = [tool for tool in mappings(sent["tools"]) if tool.get("type") in CLIENT_TOOLS]
        if body.get("stream"):
            sent["stream_options"] = {**mapping(body.get("stream_options")), "include_usage": True}
        return sent

    def url(self, base: str, model: str, stream: bool) -> str:
        """`base` includes the version, as OpenAI's own SDKs have it."""
        return f"{base}/chat/completions"

    def headers(self, key: str, asked: Mapping[str, str]) -> dict[str, str]:
        """A bearer token."""
        return {"Authorization": f"Bearer {key}"} if key else {}

    def usage(self, answer: Mapping[str, Any], before: Usage | None) -> Usage | None:
        """The last usage told counts: some servers tell a running one in every chunk."""
        said = answer.get("usage")
        if not isinstance(said, dict):
            return before
        cached = number(mapping(said.get("prompt_tokens_details")).get("cached_tokens"))
        return Usage(number(said.get("prompt_tokens")), number(said.get("completion_tokens")), cached)

    def finished(self, answer: Mapping[str, Any]) -> bool:
        """A choice with its reason."""
        return any(choice.get("finish_reason") for choice in mappings(answer.get("choices")))

    def text(self, answer: Mapping[str, Any]) -> str:
        """The first choice's."""
        first = next((c for c in mappings(answer.get("choices")) if not c.get("index")), {})
        return text_of((mapping(first.get("delta")) or mapping(first.get("message"))).get("content"))

    def calls(self, answer: Mapping[str, Any]) -> bool:
        """A choice that calls, in the new words or the old."""
        found = [mapping(c.get("delta")) or mapping(c.get("message")) for c in mappings(answer.get("choices"))]
        return any(each.get("tool_calls") or each.get("function_call") for each in found)

    def told_error(self, answer: Mapping[str, Any]) -> tuple[int | None, str] | None:
        """An `error` member."""
        said = answer.get("error")
        return (base.status_of(mapping(said).get("code")), base.compact(said)) if said else None

    def last(self, body: Mapping[str, Any]) -> Any:
        """The newest message."""
        return base.newest(body.get("messages"))


def _head(said: Said, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{said.number}", "object": kind, "created": base.CREATED, "model": said.model}


def _calls(said: Said) -> list[dict[str, Any]]:
    return [
        {
            "id": said.call_id(index),
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.args)},
        }
        for index, call in enumerate(said.calls)
    ]


def _usage(used: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": used.input,
        "completion_tokens": used.output,
        "total_tokens": used.input + used.output,
        "prompt_tokens_details": {"cached_tokens": used.cached},
    }
