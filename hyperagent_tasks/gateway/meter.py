"""Reads a provider's answer as its bytes pass: whole events, usage, errors, tool calls, and whether it ended."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hyperagent_tasks.gateway.dialects.base import Dialect, Usage
from hyperagent_tasks.gateway.failures import Failure, classify
from hyperagent_tasks.gateway.grants import MAX_TEXT

MAX_EVENT = 8 << 20
MAX_SAID = 256 << 10
GARBAGE = Failure("transport", "the provider streamed garbage")


@dataclass(frozen=True)
class Block:
    """The bytes of one whole event, and whether the agent would execute it."""

    data: bytes
    call: bool = False


class Meter:
    """Fed with a stream's bytes, or with a whole answer. `failed` is set at the first event that tells an error or is broken;
    nothing is read after it. `size` counts bytes, `heard` those of whole events."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._rest = bytearray()
        self._lines: list[bytes] = []
        self._waiting = 0
        self._told: Usage | None = None
        self.ended = False
        self.failed: Failure | None = None
        self.said, self.size, self.heard = b"", 0, 0
        self.text = ""

    @property
    def usage(self) -> Usage | None:
        """What the provider told of tokens so far, None where it told nothing."""
        return self._told

    def feed(self, data: bytes) -> Iterator[Block]:
        """The events that these bytes complete, up to one that is broken or tells an error."""
        self.said += data[: MAX_SAID - len(self.said)]
        self.size += len(data)
        self._rest += data
        if b"\n" not in data:
            self._bound()
            return
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            self._lines.append(bytes(line) + b"\n")
            self._waiting += len(line) + 1
            if not line.strip() and self.failed is None and (block := self._block()):
                yield block
        self._bound()

    def rest(self) -> Iterator[Block]:
        """The last event of a stream that ended without an empty line; a scrap after the answer's end is none."""
        self._lines.append(bytes(self._rest))
        self._rest.clear()
        if self.failed is not None:
            return
        block = self._block()
        if self.ended and self.failed is GARBAGE:
            self.failed = None
        elif block is not None and block.data.strip():
            yield Block(block.data + b"\n\n", block.call)

    def _bound(self) -> None:
        if len(self._rest) + self._waiting > MAX_EVENT:
            self.failed = self.failed or GARBAGE

    def _block(self) -> Block | None:
        """The event of the lines so far."""
        lines, self._lines, self._waiting = self._lines, [], 0
        data = b"\n".join(line[5:].strip() for line in lines if line.startswith(b"data:"))
        call = self.take(data) if data else False
        if self.failed:
            return None
        self.heard += len(data)
        return Block(b"".join(lines), call)

    def take(self, data: bytes) -> bool:
        """Take the data of one event, or a whole answer; whether the agent would execute it."""
        if data == b"[DONE]":
            self.ended = True
            return False
        try:
            answer = json.loads(data.decode())
        except (ValueError, RecursionError):
            self.failed = GARBAGE
            return False
        return isinstance(answer, dict) and self._read(answer)

    def _read(self, answer: Mapping[str, Any]) -> bool:
        self._told = self._dialect.usage(answer, self._told)
        self.text = (self.text + self._dialect.text(answer))[-MAX_TEXT:]
        told = self._dialect.told_error(answer)
        if told is not None:
            self.failed = Failure(classify(*told), told[1], told[0])
            return False
        self.ended = self.ended or self._dialect.finished(answer)
        return self._dialect.calls(answer)
