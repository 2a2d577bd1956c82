"""Reading what an agent sent: bounded in time, in size and in what it unpacks to."""

from __future__ import annotations

import asyncio
import json
import zlib
from typing import Any

from aiohttp import web

MAX_BODY = 32 << 20
SECONDS = 60.0


async def read(request: web.Request) -> tuple[bytes, dict[str, Any] | None]:
    """The body, unpacked to at most `MAX_BODY` bytes, and the JSON object it is, None where it is none."""
    try:
        raw = await asyncio.wait_for(request.read(), SECONDS)
        if request.headers.get("Content-Encoding", "").lower() == "gzip":
            raw = _unpacked(raw)
        body = json.loads(raw)
    except (ValueError, RecursionError, OSError, EOFError, TimeoutError, zlib.error):
        return b"", None
    return raw, body if isinstance(body, dict) else None


def _unpacked(raw: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)  # aiohttp's own unpacking inflates a whole read before it looks at the size
    data = unpacker.decompress(raw, MAX_BODY)
    if not unpacker.eof:
        raise ValueError("too large, or cut")
    return data
