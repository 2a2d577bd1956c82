"""Requests as the four kinds of agent CLI make them, for tests of the gateway."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

OBJECT = {"type": "object"}
HEADERS = {
    "openai_chat": {"Authorization": "Bearer phantom"},
    "openai_responses": {"Authorization": "Bearer phantom"},
    "anthropic_messages": {"x-api-key": "phantom", "anthropic-beta": "context-1m", "anthropic-version": "2023-06-01"},
    "gemini": {"x-goog-api-key": "phantom"},
}
DIALECTS = tuple(HEADERS)


@dataclass(frozen=True)
class Wire:
    """One dialect as a client writes it."""

    dialect: str
    model: str = "m1"
    stream: bool = True
    tools: tuple[str, ...] = ("write",)
    text: str = "x"
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Path and query below `/t/TOKEN`."""
        method = "streamGenerateContent?alt=sse" if self.stream else "generateContent"
        return {
            "openai_chat": "/v1/chat/completions",
            "openai_responses": "/v1/responses",
            "anthropic_messages": "/v1/messages?beta=true",
            "gemini": f"/v1beta/models/{self.model}:{method}",
        }[self.dialect]

    def body(self, rounds: int = 0) -> dict[str, Any]:
        """The request after so many rounds of answered tool calls."""
        return {**getattr(self, f"_{self.dialect}")(rounds), **self.more}

    def _openai_chat(self, rounds: int) -> dict[str, Any]:
        messages: list[dict[str, Any]] = [{"role": "user", "content": self.text}]
        for number in range(rounds):
            messages.append({"role": "assistant", "tool_calls": [{"id": f"call_{number}_0", "type": "function"}]})
            messages.append({"role": "tool", "tool_call_id": f"call_{number}_0", "content": "done"})
        tools = [{"type": "function", "function": {"name": name, "parameters": OBJECT}} for name in self.tools]
        return {"model": self.model, "stream": self.stream, "messages": messages, "tools": tools}

    def _openai_responses(self, rounds: int) -> dict[str, Any]:
        items: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "input_text", "text": self.text}]}]
        for number in range(rounds):
            items.append({"type": "function_call", "call_id": f"call_{number}_0", "name": "write", "arguments": "{}"})
            items.append({"type": "function_call_output", "call_id": f"call_{number}_0", "output": "done"})
        tools = [{"type": "function", "name": name, "parameters": OBJECT} for name in self.tools]
        return {"model": self.model, "stream": self.stream, "input": items, "tools": tools}

    def _anthropic_messages(self, rounds: int) -> dict[str, Any]:
        messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": self.text}]}]
        for number in range(rounds):
            called = f"toolu_call_{number}_0"
            messages.append({"role": "assistant", "content": [{"type": "tool_use", "id": called, "name": "w", "input": {}}]})
            messages.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": called, "content": "done"}]})
        tools = [{"name": name, "input_schema": OBJECT} for name in self.tools]
        return {"model": self.model, "stream": self.stream, "messages": messages, "tools": tools, "max_tokens": 4096}

    def _gemini(self, rounds: int) -> dict[str, Any]:
        contents: list[dict[str, Any]] = [{"role": "user", "parts": [{"text": self.text}]}]
        for _ in range(rounds):
            contents.append({"role": "model", "parts": [{"functionCall": {"name": "write", "args": {}}}]})
            answered = {"name": "write", "response": {"output": "done"}}
            contents.append({"role": "user", "parts": [{"functionResponse": answered}]})
        tools = [{"functionDeclarations": [{"name": name, "parametersJsonSchema": OBJECT} for name in self.tools]}]
        return {"contents": contents, "tools": tools if self.tools else []}
