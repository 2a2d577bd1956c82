"""opencode's JSON event stream: events for the live view, and one outcome decided only after the process has ended."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from hyperagent_tasks.agents.base import AgentEvent, AgentOutcome, AgentRole, EndReason, Usage
from hyperagent_tasks.agents.classify import classify, sentence
from hyperagent_tasks.agents.jsonl import JsonLines, clean
from hyperagent_tasks.runners.base import RunnerResult

TEXT_LIMIT = 64 << 10
FINAL_TEXT_LIMIT = 256 << 10
DETAIL_LIMIT = 2 << 10
DENIED = re.compile(r"rule which prevents|rejected permission|permission (was )?(denied|rejected)", re.IGNORECASE)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")

ENDED = {
    "timeout": (EndReason.TIMED_OUT, "The agent was stopped at its deadline."),
    "idle": (EndReason.TIMED_OUT, "The agent was stopped because it had been silent for too long."),
    "cancelled": (EndReason.CANCELLED, "The agent was stopped because this was cancelled."),
    "oom": (EndReason.CRASHED, "The agent was killed because it used more memory than it may."),
    "disk": (EndReason.CRASHED, "The agent was stopped because it wrote more to disk than it may."),
    "output": (EndReason.CRASHED, "The agent was stopped because it printed more than it may."),
}


@dataclass(frozen=True)
class Failure:
    """The last error of a stream that nothing followed."""

    reason: EndReason
    sentence: str


def mapping(value: object) -> dict[str, object]:
    """`value` where it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def count(value: object) -> int:
    """A believable number of tokens, or 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**12 else 0


def money(value: object) -> float:
    """A believable amount of US dollars, or 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if 0 <= value < 10**6 and math.isfinite(value) else 0.0


def hide(text: str) -> str:
    """`text` without the phantom token that a gateway address carries."""
    return re.sub(r"/t/[^/\s\"]+", "/t/...", text)


class OpencodeParser:
    """Parses one run of opencode (or of its mock)."""

    def __init__(self, role: AgentRole = "coder") -> None:
        self._role = role
        self._lines = JsonLines()
        self._session: str | None = None
        self._text, self._text_of = "", ""
        self._stop: str | None = None
        self._failure: Failure | None = None
        self._input = self._output = self._cached = self._requests = 0
        self._cost = 0.0
        self._events = self._tools = self._tools_ok = self._denied = 0

    def feed(self, data: bytes) -> list[AgentEvent]:
        """Events completed by these bytes."""
        return [event for line in self._lines.feed(data) for event in self._read(line)]

    def outcome(self, result: RunnerResult, *, changed: bool | None = None) -> AgentOutcome:
        """The outcome, once the process has ended; `changed` is what the sealer saw (None: not asked)."""
        for line in self._lines.finish():
            list(self._read(line))
        reason, said = self._judge(result, changed)
        return AgentOutcome(
            reason=reason,
            sentence=said,
            session_id=self._session,
            final_text=self._text,
            usage=Usage(self._input, self._output, self._cached, self._cost or None, self._requests),
            tool_calls=self._tools,
            events=self._events,
            malformed=self._lines.malformed,
        )

    def _read(self, line: dict[str, object]) -> Iterator[AgentEvent]:
        self._events += 1
        session = line.get("sessionID")
        if self._session is None and isinstance(session, str) and re.fullmatch(r"[\w-]{1,128}", session, re.ASCII):
            self._session = session
            yield AgentEvent("session", {"session_id": session, "mock": line.get("mock") is True})
        kind, part = line.get("type"), mapping(line.get("part"))
        if kind == "text":
            yield self._take_text(part)
        elif kind == "tool_use":
            yield self._take_tool(part)
        elif kind == "step_finish":
            yield self._take_step(part)
        elif kind == "error":
            yield self._take_error(mapping(line.get("error")))

    def _take_text(self, part: dict[str, object]) -> AgentEvent:
        text, message = clean(part.get("text"), FINAL_TEXT_LIMIT), clean(part.get("messageID"), 128)
        if text:
            kept = self._text if message == self._text_of else ""
            self._text, self._text_of = (kept + text)[-FINAL_TEXT_LIMIT:], message
        return AgentEvent("text", {"text": text[:TEXT_LIMIT]})

    def _take_tool(self, part: dict[str, object]) -> AgentEvent:
        state, name = mapping(part.get("state")), clean(part.get("tool"), 128)
        told = clean(state.get("output") or state.get("error"), DETAIL_LIMIT)
        ok = state.get("status") == "completed" and name != "invalid"
        self._tools += 1
        self._tools_ok += ok
        self._denied += not ok and bool(DENIED.search(told))
        call = clean(part.get("callID"), 128)
        return AgentEvent("tool", {"name": name, "id": call, "ok": ok, "input": _brief(state.get("input")), "output": told})

    def _take_step(self, part: dict[str, object]) -> AgentEvent:
        self._stop = clean(part.get("reason"), 64)
        if self._stop in {"stop", "tool-calls"}:
            self._failure = None  # the session went on after its error
        tokens = mapping(part.get("tokens"))
        cached = count(mapping(tokens.get("cache")).get("read"))
        self._requests += 1
        self._cached += cached
        self._input += count(tokens.get("input")) + cached
        self._output += count(tokens.get("output")) + count(tokens.get("reasoning"))
        self._cost += money(part.get("cost"))
        said = {"input": self._input, "output": self._output, "cached": self._cached, "stop": self._stop}
        return AgentEvent("usage", said)

    def _take_error(self, error: dict[str, object]) -> AgentEvent:
        name, data = clean(error.get("name"), 128), mapping(error.get("data"))
        message = hide(clean(data.get("message"), DETAIL_LIMIT))
        status = count(data.get("statusCode")) or None
        reason = classify(status, message, _code(data.get("responseBody")), name)
        self._failure = Failure(reason, sentence(reason, status, message[:400]))
        return AgentEvent("error", {"name": name, "message": message, "status": status, "reason": str(reason)})

    def _judge(self, result: RunnerResult, changed: bool | None) -> tuple[EndReason, str]:
        if result.ended in ENDED:
            return ENDED[result.ended]
        if self._failure:
            return self._failure.reason, self._failure.sentence
        if result.exit_code != 0:
            return EndReason.CRASHED, _exit_sentence(result)
        if self._stop != "stop":
            return self._unfinished(result)
        return self._done(changed)

    def _unfinished(self, result: RunnerResult) -> tuple[EndReason, str]:
        """The CLI says 0, but its last answer did not end by itself."""
        if self._denied or "auto-reject" in result.stderr_tail:
            return EndReason.REFUSED, "The agent stopped because a permission it asked for was refused."
        if self._stop is None:
            return EndReason.NO_CHANGE, "The agent exited with 0 without a single answer from its model."
        if self._stop == "length":
            return EndReason.CONTEXT, "The model's last answer was cut off at its output limit."
        if self._stop == "content-filter":
            return EndReason.REFUSED, "The provider's content filter stopped the model's answer."
        if self._stop == "tool-calls":
            return EndReason.CRASHED, "The agent exited with 0 in the middle of its work, after a tool call."
        return EndReason.PROVIDER, f"The model's last answer broke off (finish reason: {self._stop or 'none'})."

    def _done(self, changed: bool | None) -> tuple[EndReason, str]:
        """The CLI and its model both say all is well; look whether anything was done (row A5)."""
        if self._role != "coder":
            if self._text.strip():
                return EndReason.DONE, "The agent answered."
            return EndReason.NO_CHANGE, "The agent exited with 0 without an answer."
        if changed or (changed is None and self._tools_ok):
            return EndReason.DONE, f"The agent finished after {self._tools} tool calls."
        if self._denied:
            return EndReason.REFUSED, f"The agent changed nothing: {self._denied} of its tool calls were not permitted."
        if not self._tools:
            return EndReason.NO_CHANGE, "The agent exited with 0 but used no tool and changed nothing."
        if not self._tools_ok:
            return EndReason.NO_CHANGE, f"The agent changed nothing: all its {self._tools} tool calls failed."
        return EndReason.NO_CHANGE, f"The agent finished after {self._tools} tool calls but changed nothing."


def _brief(value: object) -> str:
    """`value` as short JSON for a person."""
    try:
        return clean(json.dumps(value, ensure_ascii=False), DETAIL_LIMIT)
    except (ValueError, RecursionError):
        return ""


def _code(body: object) -> str:
    """`error.code` (or `error.type`) of a provider's JSON answer where this is one we know."""
    try:
        error = mapping(mapping(json.loads(clean(body, 64 << 10) or "{}")).get("error"))
    except (ValueError, RecursionError):
        return ""
    return clean(error.get("code") or error.get("type"), 128)


def _exit_sentence(result: RunnerResult) -> str:
    """Why a CLI that said nothing itself did not end with 0."""
    plain = COLOUR.sub("", result.stderr_tail[-8192:])
    lines = [line for line in clean(plain, 8192).splitlines() if line.strip()]
    told = f": {hide(' '.join(lines[-1].split()))[:400]}" if lines else " without saying why"
    how = "never reported an exit code" if result.exit_code is None else f"exited with {result.exit_code}"
    return f"The agent CLI {how}{told.rstrip('.')}."
