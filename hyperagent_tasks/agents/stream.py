"""What the event streams of all CLIs share: bounded books of a run, and one outcome decided only after its process has ended."""

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
SESSION = re.compile(r"[\w-]{1,128}", re.ASCII)
CALLS_LIMIT = 10_000

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


class CliParser:
    """One run of a CLI. A subclass reads its CLI's lines (`_take`) and knows its terminal event (`_unfinished`)."""

    def __init__(self, role: AgentRole = "coder") -> None:
        self._role = role
        self._lines = JsonLines()
        self._session: str | None = None
        self._text, self._text_of = "", ""
        self._failure: Failure | None = None
        self._input = self._output = self._cached = self._requests = 0
        self._cost = 0.0
        self._events = self._tools = self._tools_ok = self._denied = 0
        self._calls: dict[str, tuple[str, str]] = {}

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

    def _take(self, line: dict[str, object]) -> Iterator[AgentEvent]:
        """What one line of this CLI's stream tells."""
        raise NotImplementedError

    def _unfinished(self, result: RunnerResult) -> tuple[EndReason, str] | None:
        """Why a CLI that exited with 0 does not itself say that all went well; None where it does."""
        raise NotImplementedError

    def _read(self, line: dict[str, object]) -> Iterator[AgentEvent]:
        self._events += 1
        yield from self._take(line)

    def _see_session(self, session: object, *, mock: bool = False) -> Iterator[AgentEvent]:
        if self._session is None and isinstance(session, str) and SESSION.fullmatch(session):
            self._session = session
            yield AgentEvent("session", {"session_id": session, "mock": mock})

    def _see_text(self, value: object, message: object) -> AgentEvent:
        """Text of the model; what belongs to one `message` is put together, the last message is the answer."""
        text, of = clean(value, FINAL_TEXT_LIMIT), clean(message, 128)
        if text:
            kept = self._text if of == self._text_of else ""
            self._text, self._text_of = (kept + text)[-FINAL_TEXT_LIMIT:], of
        return AgentEvent("text", {"text": text[:TEXT_LIMIT]})

    def _see_call(self, call: object, name: object, asked: object) -> None:
        """A tool call whose end is told by a later event."""
        if len(self._calls) < CALLS_LIMIT:
            self._calls[clean(call, 128)] = (clean(name, 128), _brief(asked))

    def _see_tool(self, call: object, ok: bool, told: object, name: object = None, asked: object = None) -> AgentEvent:
        """The end of a tool call; name and input are those of `_see_call` where they are not given."""
        known, brief = self._calls.pop(clean(call, 128), ("", ""))
        if name is not None:
            known, brief = clean(name, 128), _brief(asked)
        output = clean(told if isinstance(told, str) else _brief(told), DETAIL_LIMIT)
        self._tools += 1
        self._tools_ok += ok
        self._denied += not ok and bool(DENIED.search(output))
        return AgentEvent("tool", {"name": known, "id": clean(call, 128), "ok": ok, "input": brief, "output": output})

    def _see_usage(self, stop: str | None) -> AgentEvent:
        said = {"input": self._input, "output": self._output, "cached": self._cached, "stop": stop}
        return AgentEvent("usage", said)

    def _see_error(self, name: str, message: object, status: int | None, *codes: str) -> AgentEvent:
        """An error that ends the run unless something follows it."""
        told = hide(clean(message, DETAIL_LIMIT))
        reason = classify(status, told, *codes)
        self._failure = Failure(reason, sentence(reason, status, told[:400]))
        return AgentEvent("error", {"name": name, "message": told, "status": status, "reason": str(reason)})

    def _judge(self, result: RunnerResult, changed: bool | None) -> tuple[EndReason, str]:
        if result.ended in ENDED:
            return ENDED[result.ended]
        if self._failure:
            return self._failure.reason, self._failure.sentence
        if result.exit_code != 0:
            return EndReason.CRASHED, _exit_sentence(result)
        return self._unfinished(result) or self._done(changed)

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


def error_code(body: object) -> str:
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
