"""Reading what an agent sent: bounded in time, in size and in what it unpacks to."""

from __future__ import annotations

import asyncio
import json
import zlib
from typing import Any

from aiohttp import web

MAX_BODY = 32 << 20
SECONDS = 60.0


class Unreadable(Exception):
    """A body that is none, with the status and the words for the agent."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def read(request: web.Request) -> tuple[bytes, dict[str, Any]]:
    """The body, unpacked to at most `MAX_BODY` bytes, and the JSON object it is. Raises `Unreadable`."""
    packed = request.headers.get("Content-Encoding", "identity").lower()
    if packed not in ("identity", "gzip"):
        raise Unreadable(415, f"the body is packed as {packed[:40]!r}; send it plain or as gzip")
    try:
        raw = await asyncio.wait_for(request.read(), SECONDS)
        raw = _unpacked(raw) if packed == "gzip" else raw
        body = json.loads(raw)
    except (ValueError, RecursionError, OSError, EOFError, TimeoutError, zlib.error) as error:
        raise Unreadable(400, "the body is not a JSON object") from error
    if not isinstance(body, dict):
        raise Unreadable(400, "the body is not a JSON object")
    return raw, body


def _unpacked(raw: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)  # aiohttp's own unpacking inflates a whole read before it looks at the size
    data = unpacker.decompress(raw, MAX_BODY)
    if not unpacker.eof:
        raise ValueError("too large, or cut")
    return data
