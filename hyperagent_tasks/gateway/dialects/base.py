"""What a wire dialect is: how a request is read, an answer is written, and what a provider's answer tells of itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

CREATED = 1_700_000_000
_CWD = re.compile(r"(?:working directory|workspace root folder|<cwd>|\bcwd)[\"`*:>\s=]+(/[^\s\"`<,]+)", re.IGNORECASE)


@dataclass(frozen=True)
class Asked:
    """What a request asks. `turn` counts the rounds of answered tool calls in its history; `tools` maps each offered tool
    to its parameters' schema, `custom` names those that take plain text; `counts`: it only asks how many tokens it has;
    `most_output` is the limit it sets, over all the answers it wants."""

    model: str
    stream: bool
    turn: int
    tools: Mapping[str, Mapping[str, Any]]
    user_text: str
    last_tool_result: str
    cwd: str
    custom: frozenset[str] = frozenset()
    counts: bool = False
    most_output: int | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer; `input` includes `cached`."""

    input: int = 0
    output: int = 0
    cached: int = 0


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool; `custom`: its argument is the text under `input`."""

    name: str
    args: Mapping[str, Any]
    custom: bool = False


@dataclass(frozen=True)
class Said:
    """An answer to be written; `number` counts the requests of the run, `finish` is one of the scenarios' words for it."""

    model: str
    number: int
    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    finish: str = "stop"
    usage: Usage = field(default_factory=Usage)

    def call_id(self, index: int) -> str:
        """The id of a call: the calls of one answer share all but its last number."""
        return f"call_{self.number}_{index}"


@dataclass(frozen=True)
class Event:
    """One server-sent event of an answer; `call`: from here on it holds what the agent would execute."""

    data: str
    name: str = ""
    call: bool = False

    def block(self) -> bytes:
        """The event as it goes over the wire."""
        head = f"event: {self.name}\n" if self.name else ""
        return f"{head}data: {self.data}\n\n".encode()


class Dialect(Protocol):
    """One way in which a CLI and a provider talk. Nothing here raises for odd shapes: both sides may be hostile."""

    name: str
    routes: tuple[str, ...]
    """Path patterns below `/t/TOKEN` that are answered."""

    def read(self, body: Mapping[str, Any], path: Mapping[str, str]) -> Asked:
        """What a request asks; `path` holds what its route's pattern matched."""

    def events(self, said: Said) -> Iterator[Event]:
        """An answer as a stream."""

    def whole(self, said: Said) -> dict[str, Any]:
        """An answer in one piece."""

    def counted(self, tokens: int) -> dict[str, Any]:
        """The answer to a request that only counts."""

    def error(self, message: str, kind: str, status: int) -> dict[str, Any]:
        """An error's body."""

    def error_event(self, message: str, kind: str) -> Event:
        """An error in the middle of a stream, which ends it."""

    def prepare(self, body: Mapping[str, Any], model: str) -> dict[str, Any]:
        """The request as it goes to the provider: with its name of the model, and without what would have the provider reach
        out to others (hosted tools, remote tool servers) or back to what it keeps: a sandbox has no network by that way."""

    def url(self, base: str, model: str, stream: bool) -> str:
        """Where it goes there."""

    def headers(self, key: str, asked: Mapping[str, str]) -> dict[str, str]:
        """The headers that carry the provider's key, and those few of the agent's that a provider must see."""

    def usage(self, answer: Mapping[str, Any], before: Usage | None) -> Usage | None:
        """The usage after this event or whole answer, given what earlier events told; None where nothing was told yet."""

    def finished(self, answer: Mapping[str, Any]) -> bool:
        """Whether this event, or this whole answer, says how the answer ended."""

    def text(self, answer: Mapping[str, Any]) -> str:
        """The words of the model in this event, or in a whole answer."""

    def calls(self, answer: Mapping[str, Any]) -> bool:
        """Whether this event holds (a part of) a tool call."""

    def told_error(self, answer: Mapping[str, Any]) -> tuple[int | None, str] | None:
        """The status (None: not said) and words of an error inside an answer, None where it is none."""

    def last(self, body: Mapping[str, Any]) -> Any:
        """The newest entry of the request's history, for the call log."""


def mapping(value: object) -> dict[str, Any]:
    """The value where it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def mappings(value: object) -> list[dict[str, Any]]:
    """The mappings in a list, none where it is no list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def number(value: object) -> int:
    """A count of tokens: 0 for whatever is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40 else 0


def limit(value: object, times: object = 1) -> int | None:
    """The most output tokens of a request that sets a limit and asks for `times` answers."""
    return number(value) * max(1, number(times)) or None


def text_of(content: object) -> str:
    """The text of a content that is a string or a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in mappings(content))


def without(body: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """A copy of the body without these members."""
    return {key: value for key, value in body.items() if key not in names}


def newest(entries: object) -> Any:
    """The last entry of a list, None where there is none."""
    return entries[-1] if isinstance(entries, list) and entries else None


def named(tools: Iterable[tuple[object, object]]) -> dict[str, dict[str, Any]]:
    """Tools by name with their schema, those with a proper name only."""
    return {name: mapping(schema) for name, schema in tools if isinstance(name, str)}


def rounds(ids: Iterable[object]) -> int:
    """How many answers the calls with these ids came in: ids of one answer differ in their last number only."""
    return len({re.sub(r"_\d+$", "", str(each)) for each in ids})


def cwd(*texts: str) -> str:
    """The working directory that a CLI tells its model."""
    for text in texts:
        found = _CWD.search(text)
        if found:
            return found[1]
    return "/workspace"


def compact(value: object) -> str:
    """JSON on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def status_of(value: object) -> int | None:
    """An HTTP error status told as a number, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600 else None
