"""The pass-through back end: a request to the real provider with the key added here, its answer streamed back, metered.

The gateway retries what may pass before the first byte; after that the CLI gets a plain 4xx, so that no CLI retries for
minutes by itself. The real class of the failure is in the run's books.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from typing import Any

import aiohttp
from aiohttp import web

from hyperagent_tasks.gateway.calllog import Redactor
from hyperagent_tasks.gateway.config import GatewayConfig, Provider
from hyperagent_tasks.gateway.dialects import openai_chat as chat
from hyperagent_tasks.gateway.grants import Run, classify

# opencode asks again for minutes where a refusal holds one of these, whatever its status
TEMPTING = re.compile(r"429|rate.?limit|too.?many.?requests|overloaded|unavailable|exhausted|try again", re.IGNORECASE)
SAID_AS = {"rate_limit": "throttled"}
PASSES = frozenset({429, 500, 502, 503, 504, 529})
MAX_ERROR = 64 << 10
MAX_WHOLE = 32 << 20
MAX_LINE = 8 << 20
MAX_SAID = 256 << 10


async def answer(
    request: web.Request, session: aiohttp.ClientSession, config: GatewayConfig, provider: Provider, run: Run, body: Any
) -> tuple[web.StreamResponse, str]:
    """Answer one request from the provider; returns the response and the raw text that was said (bounded)."""
    redactor = Redactor([provider.api_key.reveal()])  # a provider may tell the key back in its error
    for attempt in range(1, config.tries + 1):
        try:
            reply = await _send(session, config, provider, run, body)
        except (TimeoutError, aiohttp.ClientError) as error:
            run.observed.fail("transport", f"{type(error).__name__}: the provider did not answer", None)
            pause: float | None = None
        else:
            streaming = "event-stream" in reply.headers.get("Content-Type", "")
            if 200 <= reply.status < 300 and streaming:
                return await _stream(request, reply, run, config)
            raw = await _read(reply, MAX_WHOLE if reply.status < 300 else MAX_ERROR, config.idle_timeout)
            if 200 <= reply.status < 300 and _whole(raw, run):
                return web.Response(body=raw, content_type="application/json"), raw[:MAX_SAID].decode("utf-8", "replace")
            told = redactor.clean(raw[:MAX_ERROR].decode("utf-8", "replace"))
            kind = classify(reply.status, told) if reply.status >= 300 else "transport"
            run.observed.fail(kind, told or "an empty answer", reply.status)
            pause = _retry_after(reply)
            if kind in ("quota", "context") or not (reply.status in PASSES or kind == "transport"):
                return _final(kind, told[:400] or f"HTTP {reply.status}", _client_status(reply.status))
            if pause is not None and pause > config.longest_pause:  # asking before that is known to be in vain
                return _final(kind, f"it asks to wait {pause:.0f} s", 400)
        if attempt < config.tries:
            run.observed.retries += 1
            await asyncio.sleep(min(pause if pause is not None else _backoff(config, attempt), config.longest_pause))
    kind = run.observed.last_failure or "other"
    return _final(kind, f"after {config.tries} tries", 400)


def _client_status(status: int) -> int:
    return status if 400 <= status < 500 and status not in (408, 409, 425, 429) else 400


def _final(kind: str, why: str, status: int) -> tuple[web.StreamResponse, str]:
    """A refusal that no CLI tries again: in plain words, the provider's own only where they do not tempt."""
    code = SAID_AS.get(kind, kind)
    told = f"provider failed: {code}" if TEMPTING.search(why) else f"provider failed: {code}: {why}"
    return web.json_response(chat.error(told, code), status=status), ""


def _backoff(config: GatewayConfig, attempt: int) -> float:
    return config.pause * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)


def _retry_after(reply: aiohttp.ClientResponse) -> float | None:
    try:
        return max(0.0, float(reply.headers["Retry-After"]))
    except (KeyError, ValueError):
        return None


async def _send(
    session: aiohttp.ClientSession, config: GatewayConfig, provider: Provider, run: Run, body: dict[str, Any]
) -> aiohttp.ClientResponse:
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
    if provider.api_key:
        headers["Authorization"] = f"Bearer {provider.api_key.reveal()}"
    return await asyncio.wait_for(
        session.post(
            f"{provider.base_url}/{chat.PATH}",
            json=chat.prepare(body, provider.upstream_model(run.grant.model)),
            headers=headers,
            allow_redirects=False,
        ),
        config.head_timeout,
    )


async def _read(reply: aiohttp.ClientResponse, limit: int, idle: float) -> bytes:
    """The body up to `limit` bytes; what there is of it where it breaks off or stalls."""
    read = bytearray()
    try:
        while len(read) < limit and (data := await asyncio.wait_for(reply.content.read(limit - len(read)), idle)):
            read += data
    except (TimeoutError, aiohttp.ClientError):
        return bytes(read)
    finally:
        reply.close()
    return bytes(read)


def _whole(raw: bytes, run: Run) -> bool:
    """Book the usage of an answer in one piece; False where it is none."""
    meter = Meter(run, quiet=True)
    meter.take(raw)
    return meter.close()


async def _stream(
    request: web.Request, reply: aiohttp.ClientResponse, run: Run, config: GatewayConfig
) -> tuple[web.StreamResponse, str]:
    response = web.StreamResponse(status=200, headers={"Content-Type": "text/event-stream"})
    response.force_close()
    meter = Meter(run)
    try:
        await response.prepare(request)
        cut = await _copy(reply, response, meter, config.idle_timeout)
        if not meter.close():
            if not meter.failed:
                run.observed.fail("transport", f"the stream was cut: {cut}", None)
            told = json.dumps(chat.error("provider failed: cut stream", "transport"))
            await response.write(f"\n\ndata: {told}\n\n".encode())
        await response.write_eof()
    except ConnectionResetError:  # the agent went away: nobody's failure, and the handler's end closes everything
        meter.close()
    finally:
        reply.close()
    return response, meter.said.decode("utf-8", "replace")


async def _copy(reply: aiohttp.ClientResponse, response: web.StreamResponse, meter: Meter, idle: float) -> str:
    """Copy the stream until it ends or breaks; returns how it ended. Raises `ConnectionResetError` of the agent."""
    while True:
        try:
            data = await asyncio.wait_for(reply.content.readany(), idle)
        except (TimeoutError, aiohttp.ClientError) as error:
            return type(error).__name__
        if not data:
            return "it had no end"
        whole = meter.feed(data)  # a broken line would make the CLI ask again and again
        if whole:
            await response.write(whole)
        if meter.broken:
            return "it held garbage"


class Meter:
    """Reads usage, errors and the end of an answer as its bytes pass. `quiet`: garbage is no failure yet."""

    def __init__(self, run: Run, *, quiet: bool = False) -> None:
        self._run, self._quiet = run, quiet
        self._rest, self._ended, self._usage = b"", False, chat.Usage()
        self.said, self.failed, self.broken = b"", "", False

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; returns the lines that they complete, up to one that is broken."""
        self.said += data[: MAX_SAID - len(self.said)]
        self._rest += data
        if b"\n" not in data:
            self.broken = self.broken or len(self._rest) > MAX_LINE
            return b""
        *lines, self._rest = self._rest.split(b"\n")
        passed = []
        for line in lines:
            if line.startswith(b"data:"):
                self.take(line[5:].strip())
            if self.broken:
                break
            passed.append(line + b"\n")
        return b"".join(passed)

    def take(self, data: bytes) -> None:
        """Take one whole event."""
        if data == b"[DONE]":
            self._ended = True
            return
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError):
            self._fail("transport", "the provider streamed garbage", None)
            self.broken = True
            return
        if isinstance(answer, dict):
            told = chat.told_error(answer)
            if told is not None:
                self._fail(classify(told[0] or 400, told[1]), told[1], told[0])
                self.broken = True
            self._usage = chat.usage(answer) or self._usage
            self._ended = self._ended or chat.finished(answer)

    def _fail(self, kind: str, message: str, status: int | None) -> None:
        if not self._quiet and not self.failed:
            self.failed = kind
            self._run.observed.fail(kind, message, status)

    def close(self) -> bool:
        """Book the usage; False where the answer never ended."""
        observed = self._run.observed
        observed.input += self._usage.input
        observed.output += self._usage.output
        observed.cached += self._usage.cached
        return self._ended and not self.broken
