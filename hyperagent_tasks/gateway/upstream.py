"""The pass-through back end: a request to the real provider with the key added here, its answer streamed back, metered.

The gateway retries what may pass before the first byte; after that the CLI gets a plain 4xx, so that no CLI retries for
minutes by itself. The real class of the failure is in the run's books.
"""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import aiohttp
from aiohttp import web

from hyperagent_tasks.gateway.config import GatewayConfig, Provider
from hyperagent_tasks.gateway.dialects import openai_chat as chat
from hyperagent_tasks.gateway.grants import Run, classify

PASSES = frozenset({429, 500, 502, 503, 504, 529})
MAX_ERROR = 64 << 10
MAX_SAID = 256 << 10


async def answer(
    request: web.Request, session: aiohttp.ClientSession, config: GatewayConfig, provider: Provider, run: Run, body: Any
) -> tuple[web.StreamResponse, str]:
    """Answer one request from the provider; returns the response and the raw text that was said (bounded)."""
    for attempt in range(1, config.tries + 1):
        try:
            reply = await _send(session, config, provider, run, body)
        except (TimeoutError, aiohttp.ClientError) as error:
            run.observed.fail("transport", f"{type(error).__name__}: the provider did not answer", None)
            pause: float | None = None
        else:
            if reply.status < 400:
                return await _stream(request, reply, run, config)
            told = (await _read(reply))[:MAX_ERROR].decode("utf-8", "replace")
            kind = classify(reply.status, told)
            run.observed.fail(kind, told, reply.status)
            pause = _retry_after(reply)
            if reply.status not in PASSES or kind in ("quota", "context"):
                return _final(
                    f"provider failed: {kind} ({reply.status}): {told[:400]}", kind, _client_status(reply.status)
                )
        if attempt < config.tries:
            run.observed.retries += 1
            await asyncio.sleep(min(pause if pause is not None else _backoff(config, attempt), config.longest_pause))
    kind = run.observed.last_failure or "other"
    return _final(f"provider failed: {kind} after {config.tries} tries", kind, 400)


def _client_status(status: int) -> int:
    return status if 400 <= status < 500 and status not in (408, 409, 425, 429) else 400


def _final(message: str, kind: str, status: int) -> tuple[web.StreamResponse, str]:
    return web.json_response(chat.error(message, kind), status=status), ""


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


async def _read(reply: aiohttp.ClientResponse) -> bytes:
    try:
        return await asyncio.wait_for(reply.content.read(MAX_ERROR), 10)
    except (TimeoutError, aiohttp.ClientError):
        return b""
    finally:
        reply.close()


async def _stream(
    request: web.Request, reply: aiohttp.ClientResponse, run: Run, config: GatewayConfig
) -> tuple[web.StreamResponse, str]:
    response = web.StreamResponse(
        status=reply.status, headers={"Content-Type": reply.headers.get("Content-Type", "application/json")}
    )
    response.force_close()
    await response.prepare(request)
    meter = Meter(run, streaming="event-stream" in response.headers["Content-Type"])
    try:
        while True:
            data = await asyncio.wait_for(reply.content.readany(), config.idle_timeout)
            if not data:
                break
            meter.feed(data)
            await response.write(data)
    except (TimeoutError, aiohttp.ClientError) as error:
        run.observed.fail("transport", f"the stream was cut: {type(error).__name__}", None)
    finally:
        reply.close()
    if not meter.close():
        run.observed.fail("transport", "the stream ended without an end", None)
        await response.write(f"data: {json.dumps(chat.error('provider failed: cut stream', 'transport'))}\n\n".encode())
    await response.write_eof()
    return response, meter.said.decode("utf-8", "replace")


class Meter:
    """Reads usage and the end of an answer as its bytes pass."""

    def __init__(self, run: Run, *, streaming: bool) -> None:
        self._run, self._streaming = run, streaming
        self._rest, self._ended, self._usage = b"", False, chat.Usage()
        self.said = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        self.said += data[: MAX_SAID - len(self.said)]
        if not self._streaming:
            self._rest = (self._rest + data)[: 32 << 20]
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[: 8 << 20]
        for line in lines:
            if line.startswith(b"data:"):
                self._take(line[5:].strip())

    def _take(self, data: bytes) -> None:
        if data == b"[DONE]":
            self._ended = True
            return
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError):
            self._run.observed.fail("transport", "the provider streamed garbage", None)
            return
        if isinstance(answer, dict):
            self._usage = chat.usage(answer) or self._usage
            self._ended = self._ended or chat.finished(answer)

    def close(self) -> bool:
        """Book the usage; False where the answer never ended."""
        if not self._streaming and self._rest:
            self._take(self._rest)
        observed = self._run.observed
        observed.input += self._usage.input
        observed.output += self._usage.output
        observed.cached += self._usage.cached
        return self._ended
