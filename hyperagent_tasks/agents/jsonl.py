"""A bounded splitter of JSON lines: whatever a sandbox prints, memory stays bounded and nothing raises."""

from __future__ import annotations

import json
from collections.abc import Iterator

LINE_LIMIT = 8 << 20


def clean(value: object, limit: int) -> str:
    """At most `limit` characters of `value` as text that any database and terminal takes; each kind of line end is a newline."""
    if not isinstance(value, str):
        return ""
    text = value[:limit].encode("utf-8", "replace").decode().replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c if c in "\n\t" or (c >= " " and c != "\x7f") else "\ufffd" for c in text)


def _no_number(_name: str) -> None:
    """NaN and the infinities, which JSON does not have."""


def decode(line: bytes) -> dict[str, object] | None:
    """The object on one line, or None where it is not one."""
    try:
        value = json.loads(line.decode("utf-8", "replace"), parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


class JsonLines:
    """Turns chunks of bytes into JSON objects; `malformed` counts lines that are not one or exceed `limit` bytes."""

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self.malformed = 0
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        self._skipping = False

    def feed(self, data: bytes) -> Iterator[dict[str, object]]:
        """The objects completed by `data`; at most `limit` bytes are kept for the next call."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._keep(line)
            yield from self._take()
        self._keep(rest)

    def finish(self) -> Iterator[dict[str, object]]:
        """The object on a last line without a newline."""
        yield from self._take()

    def _keep(self, piece: bytes) -> None:
        if self._skipping or not piece:
            return
        if self._size + len(piece) > self._limit:
            self._skipping = True
            self._parts, self._size = [], 0
            return
        self._parts.append(piece)
        self._size += len(piece)

    def _take(self) -> Iterator[dict[str, object]]:
        line, skipped = b"".join(self._parts).strip(), self._skipping
        self._parts, self._size, self._skipping = [], 0, False
        found = decode(line) if line and not skipped else None
        if found is not None:
            yield found
        elif line or skipped:
            self.malformed += 1
