"""The pass-through back end: one try at a real provider, with the key added here; its answer is metered and given on.

What fails before a byte of the answer was given comes back as a `Failure`, for others to retry, to pass on to the next
provider or to refuse. What fails later ends the agent's stream with an error event.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import aiohttp
from aiohttp import web

from hyperagent_tasks.gateway.config import Provider
from hyperagent_tasks.gateway.exchange import Exchange, ticking
from hyperagent_tasks.gateway.failures import Failure, classify, wait_of
from hyperagent_tasks.gateway.meter import MAX_SAID, Meter
from hyperagent_tasks.gateway.purse import estimate

MAX_ERROR = 64 << 10
MAX_WHOLE = 32 << 20
MAX_STREAM = 128 << 20
LINGER = 5.0
"""How long a provider may take to close a stream whose answer has ended; what it tells of usage comes before."""
CUT = "provider failed: cut stream"


async def answer(x: Exchange, provider: Provider, model: str) -> web.StreamResponse | Failure:
    """One try. Raises `Gone`."""
    meter, gone = Meter(x.dialect), True
    try:
        done = await _answer(x, provider, model, meter)
        gone = False
    finally:
        _book(x, provider, model, meter, gone=gone)
    if isinstance(done, Failure):  # a provider may tell the key back in its error
        return replace(done, message=x.gateway.redactor.clean(done.message))
    return done


def _book(x: Exchange, provider: Provider, model: str, meter: Meter, *, gone: bool) -> None:
    """Book what a try used: as the provider told it, else estimated where it began to answer or the agent went away, for
    that is paid too."""
    if meter.usage is None and not meter.heard and not gone:
        return
    x.run.observed.estimated += meter.usage is None
    x.book(meter.usage or estimate(x.size, meter.heard), provider, model)


async def _answer(x: Exchange, provider: Provider, model: str, meter: Meter) -> web.StreamResponse | Failure:
    try:
        reply = await _send(x, provider, model)
    except (TimeoutError, aiohttp.ClientError, ValueError) as error:
        return Failure("transport", f"{type(error).__name__}: the provider did not answer")
    try:
        if not 200 <= reply.status < 300:
            return await _refused(x, reply)
        if "event-stream" in reply.headers.get("Content-Type", ""):
            return await _stream(x, reply, meter)
        return await _whole(x, reply, meter)
    finally:
        reply.close()


async def _send(x: Exchange, provider: Provider, model: str) -> aiohttp.ClientResponse:
    named = provider.upstream_model(model)
    accept = "text/event-stream" if x.asked.stream else "application/json"
    headers = {"Accept": accept, "Accept-Encoding": "identity", **x.dialect.headers(provider.api_key.reveal(), x.request.headers)}
    url = x.dialect.url(provider.base_url, named, x.asked.stream)
    sent = x.gateway.session.post(url, json=x.dialect.prepare(x.body, named), headers=headers, allow_redirects=False)
    reply: aiohttp.ClientResponse = await asyncio.wait_for(sent, x.config.head_timeout)
    return reply


async def _refused(x: Exchange, reply: aiohttp.ClientResponse) -> Failure:
    told = (await _read(reply, MAX_ERROR, x.config.idle_timeout)).decode("utf-8", "replace")
    wait = wait_of(reply.headers.get("Retry-After"), told)
    return Failure(classify(reply.status, told), told or "an empty answer", reply.status, wait)


async def _read(reply: aiohttp.ClientResponse, limit: int, idle: float) -> bytes:
    """The body up to `limit` bytes; what there is of it where it breaks off or stalls."""
    read = bytearray()
    until = time.monotonic() + 5 * idle
    try:
        while len(read) < limit and time.monotonic() < until:
            data = await asyncio.wait_for(reply.content.read(limit - len(read)), idle)
            if not data:
                break
            read += data
    except (TimeoutError, aiohttp.ClientError):
        return bytes(read)
    return bytes(read)


async def _whole(x: Exchange, reply: aiohttp.ClientResponse, meter: Meter) -> web.StreamResponse | Failure:
    """An answer in one piece."""
    raw = await _read(reply, MAX_WHOLE, x.config.idle_timeout)
    meter.take(raw)
    if meter.failed or not meter.ended:
        return meter.failed or Failure("transport", "the answer is not whole")
    meter.heard = len(raw)
    x.said, x.text = raw[:MAX_SAID].decode("utf-8", "replace"), meter.text
    return web.Response(body=x.gateway.redactor.scrub(raw), content_type="application/json")


async def _stream(x: Exchange, reply: aiohttp.ClientResponse, meter: Meter) -> web.StreamResponse | Failure:
    cut = await _copy(x, reply, meter)
    x.said, x.text = meter.said.decode("utf-8", "replace"), meter.text
    if meter.failed is None and meter.ended:
        return await x.outlet.end()
    failed = meter.failed or Failure("transport", f"the stream was cut: {cut}")
    if not x.outlet.given:
        x.outlet.again()
        return failed
    x.broken = True
    x.run.observed.fail(failed.kind, x.gateway.redactor.clean(failed.message), failed.status)
    return await x.outlet.end(b"\n\n" + x.dialect.error_event(CUT, "transport").block(), well=False)


async def _copy(x: Exchange, reply: aiohttp.ClientResponse, meter: Meter) -> str:
    """Copy the stream until it ends or breaks; returns how it ended. Raises `Gone`."""
    while True:
        idle = min(x.config.idle_timeout, LINGER) if meter.ended else x.config.idle_timeout
        try:
            data: Any = await ticking(reply.content.readany(), x.outlet, idle)
        except (TimeoutError, aiohttp.ClientError) as error:
            return type(error).__name__
        try:
            for block in meter.feed(data) if data else meter.rest():
                await x.outlet.put(x.gateway.redactor.scrub(block.data), call=block.call)
        except OverflowError:
            return "it is too large"
        if not data or meter.failed or meter.size > MAX_STREAM:
            return "it had no end"
