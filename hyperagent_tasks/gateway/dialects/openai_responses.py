"""The OpenAI responses dialect: Codex CLI."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from hyperagent_tasks.gateway.dialects import base
from hyperagent_tasks.gateway.dialects.base import Asked, Event, Said, ToolCall, Usage, mapping, mappings, number, text_of

ENDS = ("response.completed", "response.incomplete")
INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
CALL_TYPES = ("function_call", "custom_tool_call", "local_shell_call")


CLIENT_TOOLS = ("function", "custom", "namespace", "local_shell", "apply_patch")


class Responses:
    """`POST /v1/responses`."""

    name = "openai_responses"
    routes: tuple[str, ...] = ("/v1/responses",)

    def read(self, body: Mapping[str, Any], path: Mapping[str, str]) -> Asked:
        """What a request asks."""
        history = body.get("input")
        items = mappings(history) if isinstance(history, list) else [{"role": "user", "content": history}]
        tools = mappings(body.get("tools"))
        results = [i for i in items if str(i.get("type", "")).endswith("_output")]
        instructions = text_of(body.get("instructions"))
        return Asked(
            model=str(body.get("model", "")),
            stream=bool(body.get("stream")),
            turn=base.rounds(i.get("call_id") for i in results),
            tools=base.named((t.get("name") or t.get("type"), t.get("parameters")) for t in tools),
            user_text="\n".join(text_of(i.get("content")) for i in items if i.get("role") == "user"),
            last_tool_result=_output(results[-1]) if results else "",
            cwd=base.cwd(instructions, *(text_of(i.get("content")) for i in items)),
            custom=frozenset(str(t.get("name")) for t in tools if t.get("type") == "custom"),
            most_output=base.limit(body.get("max_output_tokens")),
        )

    def events(self, said: Said) -> Iterator[Event]:
        """An answer as a stream."""
        started = {**_head(said), "status": "in_progress", "output": []}
        yield _event("response.created", response=started)
        for index, item in enumerate(_items(said)):
            call = item["type"] in CALL_TYPES
            opened = {**item, "status": "in_progress", **({} if call else {"content": []})}
            yield _event("response.output_item.added", call, output_index=index, item=opened)
            if not call:
                yield _event(
                    "response.output_text.delta", item_id=item["id"], output_index=index, content_index=0, delta=said.text
                )
            yield _event("response.output_item.done", call, output_index=index, item=item)
        final = self.whole(said)
        yield _event(f"response.{final['status']}", response=final)

    def whole(self, said: Said) -> dict[str, Any]:
        """An answer in one piece."""
        why = INCOMPLETE.get(said.finish)
        ended = {"status": "incomplete", "incomplete_details": {"reason": why}} if why else {"status": "completed"}
        return {**_head(said), **ended, "output": _items(said), "usage": _usage(said.usage)}

    def counted(self, tokens: int) -> dict[str, Any]:
        """There is no such request in this dialect."""
        return {"input_tokens": tokens}

    def error(self, message: str, kind: str, status: int) -> dict[str, Any]:
        """An error's body."""
        return {"error": {"message": message, "type": kind, "code": kind, "param": None}}

    def error_event(self, message: str, kind: str) -> Event:
        """A response that failed."""
        failed = {"id": "resp_failed", "object": "response", "status": "failed", "output": []}
        return _event("response.failed", response={**failed, "error": {"code": kind, "message": message}})

    def prepare(self, body: Mapping[str, Any], model: str) -> dict[str, Any]:
        """Nothing is stored there, and only what the agent itself executes is offered."""
        sent = base.without(body, "previous_response_id", "conversation", "background", "prompt", "model", "store")
        if "tools" in sent:
            sent["tools"] = [tool for tool in mappings(sent["tools"]) if tool.get("type") in CLIENT_TOOLS]
        return {**sent, "model": model, "store": False}

    def url(self, base: str, model: str, stream: bool) -> str:
        """`base` includes the version."""
        return f"{base}/responses"

    def headers(self, key: str, asked: Mapping[str, str]) -> dict[str, str]:
        """A bearer token."""
        return {"Authorization": f"Bearer {key}"} if key else {}

    def usage(self, answer: Mapping[str, Any], before: Usage | None) -> Usage | None:
        """Told in the last event, or in a whole answer."""
        said = mapping(answer.get("response")).get("usage") or answer.get("usage")
        if not isinstance(said, dict):
            return before
        cached = number(mapping(said.get("input_tokens_details")).get("cached_tokens"))
        return Usage(number(said.get("input_tokens")), number(said.get("output_tokens")), cached)

    def finished(self, answer: Mapping[str, Any]) -> bool:
        """The last event, or a whole answer."""
        return answer.get("type") in ENDS or answer.get("status") in ("completed", "incomplete")

    def text(self, answer: Mapping[str, Any]) -> str:
        """Whole messages: as they are done, or in a whole answer; what comes in pieces comes again as a whole."""
        items = [mapping(answer.get("item"))] if answer.get("type") == "response.output_item.done" else []
        items += mappings(answer.get("output"))
        return "".join(text_of(item.get("content")) for item in items if item.get("type") == "message")

    def calls(self, answer: Mapping[str, Any]) -> bool:
        """An item that is no message and no reasoning."""
        kind = str(answer.get("type", ""))
        item = mapping(answer.get("item")).get("type")
        return "call" in kind or (item is not None and item not in ("message", "reasoning"))

    def told_error(self, answer: Mapping[str, Any]) -> tuple[int | None, str] | None:
        """An `error` event, a failed response, or an error's body."""
        inner = mapping(answer.get("response"))
        failed = "failed" in (answer.get("status"), inner.get("status"))
        said = answer.get("error") or inner.get("error")
        if not (said or failed or answer.get("type") == "error"):
            return None
        told = said or {key: answer.get(key) for key in ("code", "message")}
        return base.status_of(mapping(said).get("code")), base.compact(told)

    def last(self, body: Mapping[str, Any]) -> Any:
        """The newest item."""
        return base.newest(body.get("input"))


def _event(name: str, call: bool = False, **more: Any) -> Event:
    return Event(json.dumps({"type": name, **more}), name, call)


def _head(said: Said) -> dict[str, Any]:
    return {"id": f"resp_{said.number}", "object": "response", "created_at": base.CREATED, "model": said.model}


def _items(said: Said) -> list[dict[str, Any]]:
    part = {"type": "output_text", "text": said.text, "annotations": []}
    message = {"type": "message", "role": "assistant", "id": f"msg_{said.number}", "status": "completed", "content": [part]}
    return [*([message] if said.text else []), *(_call(said.call_id(i), call) for i, call in enumerate(said.calls))]


def _call(call_id: str, call: ToolCall) -> dict[str, Any]:
    head = {"call_id": call_id, "name": call.name, "status": "completed"}
    if call.custom:
        return {"type": "custom_tool_call", "id": f"ct_{call_id}", **head, "input": str(call.args.get("input", ""))}
    return {"type": "function_call", "id": f"fc_{call_id}", **head, "arguments": json.dumps(call.args)}


def _output(item: dict[str, Any]) -> str:
    said = item.get("output")
    if isinstance(said, dict):
        said = said.get("content", said)
    return said if isinstance(said, str) else text_of(said) or base.compact(said)


def _usage(used: Usage) -> dict[str, Any]:
    return {
        "input_tokens": used.input,
        "input_tokens_details": {"cached_tokens": used.cached},
        "output_tokens": used.output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used.input + used.output,
    }
