"""The Gemini generateContent dialect: Gemini CLI. The model and the way of answering stand in the path."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from hyperagent_tasks.gateway.dialects import base
from hyperagent_tasks.gateway.dialects.base import Asked, Event, Said, Usage, mapping, mappings, number, text_of

FINISH = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP", "content_filter": "SAFETY"}
STATUSES = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED"}
STATUSES |= {500: "INTERNAL", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}


class Gemini:
    """`POST /v1beta/models/MODEL:generateContent` and its kin; a stream is always one of server-sent events."""

    name = "gemini"
    routes: tuple[str, ...] = ("/v1beta/models/{model:[^/]+}:{method:generateContent|streamGenerateContent|countTokens}",)

    def read(self, body: Mapping[str, Any], path: Mapping[str, str]) -> Asked:
        """What a request asks."""
        contents = mappings(body.get("contents"))
        parts = [(c.get("role"), part) for c in contents for part in mappings(c.get("parts"))]
        results = [mapping(p.get("functionResponse")) for _, p in parts if p.get("functionResponse")]
        declared = [d for t in mappings(body.get("tools")) for d in mappings(t.get("functionDeclarations"))]
        config = mapping(body.get("generationConfig"))
        system = text_of(mapping(body.get("systemInstruction")).get("parts"))
        return Asked(
            model=path.get("model", ""),
            stream=path.get("method") == "streamGenerateContent",
            turn=sum(1 for c in contents if c.get("role") == "model" and _calls(c)),
            tools=base.named((d.get("name"), d.get("parametersJsonSchema") or d.get("parameters")) for d in declared),
            user_text="\n".join(str(p["text"]) for role, p in parts if role != "model" and "text" in p),
            last_tool_result=base.compact(results[-1].get("response")) if results else "",
            cwd=base.cwd(system, *(text_of(c.get("parts")) for c in contents)),
            counts=path.get("method") == "countTokens",
            most_output=base.limit(config.get("maxOutputTokens"), config.get("candidateCount")),
        )

    def events(self, said: Said) -> Iterator[Event]:
        """An answer as a stream."""
        calls = [{"functionCall": {"name": call.name, "args": dict(call.args)}} for call in said.calls]
        if said.text:
            yield Event(json.dumps(_answer(said, [{"text": said.text}], None)))
        yield Event(json.dumps(_answer(said, calls or [{"text": ""}], FINISH[said.finish])), call=bool(calls))

    def whole(self, said: Said) -> dict[str, Any]:
        """An answer in one piece."""
        calls = [{"functionCall": {"name": call.name, "args": dict(call.args)}} for call in said.calls]
        return _answer(said, [*([{"text": said.text}] if said.text else []), *calls], FINISH[said.finish])

    def counted(self, tokens: int) -> dict[str, Any]:
        """The answer to `countTokens`."""
        return {"totalTokens": tokens}

    def error(self, message: str, kind: str, status: int) -> dict[str, Any]:
        """An error's body."""
        return {"error": {"code": status, "message": message, "status": STATUSES.get(status, "INVALID_ARGUMENT")}}

    def error_event(self, message: str, kind: str) -> Event:
        """An error in the middle of a stream."""
        return Event(json.dumps(self.error(message, kind, 400)))

    def prepare(self, body: Mapping[str, Any], model: str) -> dict[str, Any]:
        """The model stands in the path; only functions of the agent are offered."""
        sent = base.without(body, "model", "cachedContent")
        if "tools" in sent:
            declared = [tool.get("functionDeclarations") for tool in mappings(sent["tools"])]
            sent["tools"] = [{"functionDeclarations": each} for each in declared if each]
        return sent

    def url(self, base: str, model: str, stream: bool) -> str:
        """`base` is the host, as Google's own SDK has it; one that names the version is taken too."""
        method = "streamGenerateContent?alt=sse" if stream else "generateContent"
        return f"{base.removesuffix('/v1beta')}/v1beta/models/{quote(model, safe='')}:{method}"

    def headers(self, key: str, asked: Mapping[str, str]) -> dict[str, str]:
        """Google's own header."""
        return {"x-goog-api-key": key} if key else {}

    def usage(self, answer: Mapping[str, Any], before: Usage | None) -> Usage | None:
        """Told, running, in every event: the last counts. What was thought is paid as output."""
        said = answer.get("usageMetadata")
        if not isinstance(said, dict):
            return before
        output = number(said.get("candidatesTokenCount")) + number(said.get("thoughtsTokenCount"))
        asked = number(said.get("promptTokenCount")) + number(said.get("toolUsePromptTokenCount"))
        return Usage(asked, output, number(said.get("cachedContentTokenCount")))

    def finished(self, answer: Mapping[str, Any]) -> bool:
        """A candidate with its reason, or a prompt that was blocked."""
        blocked = mapping(answer.get("promptFeedback")).get("blockReason")
        return bool(blocked) or any(c.get("finishReason") for c in mappings(answer.get("candidates")))

    def text(self, answer: Mapping[str, Any]) -> str:
        """The first candidate's, without its thoughts."""
        first = next(iter(mappings(answer.get("candidates"))), {})
        parts = mappings(mapping(first.get("content")).get("parts"))
        return "".join(str(part["text"]) for part in parts if "text" in part and not part.get("thought"))

    def calls(self, answer: Mapping[str, Any]) -> bool:
        """A candidate that calls."""
        return any(_calls(mapping(c.get("content"))) for c in mappings(answer.get("candidates")))

    def told_error(self, answer: Mapping[str, Any]) -> tuple[int | None, str] | None:
        """An `error` member, which holds its HTTP status."""
        said = answer.get("error")
        return (base.status_of(mapping(said).get("code")), base.compact(said)) if said else None

    def last(self, body: Mapping[str, Any]) -> Any:
        """The newest content."""
        return base.newest(body.get("contents"))


def _calls(content: Mapping[str, Any]) -> bool:
    return any("functionCall" in part or "executableCode" in part for part in mappings(content.get("parts")))


def _answer(said: Said, parts: list[dict[str, Any]], finish: str | None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
    used = {
        "promptTokenCount": said.usage.input,
        "candidatesTokenCount": said.usage.output,
        "cachedContentTokenCount": said.usage.cached,
        "totalTokenCount": said.usage.input + said.usage.output,
    }
    ended = {"finishReason": finish} if finish else {}
    return {"candidates": [candidate | ended], "usageMetadata": used, "modelVersion": said.model}
