"""The server for agents: a phantom token in the path, the routes of every dialect, nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aiohttp import web

from hyperagent_tasks.gateway import answering, bodies, calllog, purse, reach, replay
from hyperagent_tasks.gateway.book import Entry, Gateway
from hyperagent_tasks.gateway.dialects import ALL
from hyperagent_tasks.gateway.dialects.base import Asked, Dialect
from hyperagent_tasks.gateway.exchange import Exchange, Gone
from hyperagent_tasks.gateway.grants import UNKNOWN

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def app(gateway: Gateway) -> web.Application:
    """What agents can reach."""
    made = web.Application(client_max_size=bodies.MAX_BODY)
    for dialect in ALL:
        for route in dialect.routes:
            made.router.add_post("/t/{token}" + route, _handler(gateway, dialect))
    for path in ("/t/{token}/v1/models", "/t/{token}/v1beta/models"):
        made.router.add_get(path, _models(gateway))
        made.router.add_get(path + "/{model:.+}", _models(gateway))
    made.router.add_route("*", "/t/{token}{rest:(/.*)?}", _other(gateway))
    return made


def _handler(gateway: Gateway, dialect: Dialect) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        entry = gateway.entry(request.match_info["token"])
        if entry is None or entry.run.over:
            return _error(dialect, 401, UNKNOWN, "auth")
        with _cut_when_ended(entry):
            return await _handle(gateway, entry, request, dialect)

    return handle


async def _handle(gateway: Gateway, entry: Entry, request: web.Request, dialect: Dialect) -> web.StreamResponse:
    async with entry.places:
        try:
            raw, body = await bodies.read(request)
        except bodies.Unreadable as error:
            return _error(dialect, error.status, str(error), "invalid_request_error")
        asked = dialect.read(body, request.match_info)
        url = reach.named(body)
        if url is not None:
            told = "a picture or file is named by its URL; send it whole, an agent has no network by any way"
            return _error(dialect, 400, told, "invalid_request_error")
        refused = _refused(entry, dialect, asked, gateway)
        if refused is not None:
            return refused
        if asked.counts:
            return web.json_response(dialect.counted(max(1, purse.estimate(len(raw), 0).input)))
        return await _answer(gateway, entry, request, dialect, asked, body, raw)


def _error(dialect: Dialect, status: int, message: str, kind: str) -> web.Response:
    return web.json_response(dialect.error(message, kind, status), status=status)


@contextlib.contextmanager
def _cut_when_ended(entry: Entry) -> Iterator[None]:
    task = asyncio.current_task()
    if task is not None:
        entry.under_way.add(task)
    try:
        yield
    finally:
        entry.under_way.discard(task) if task is not None else None


def _refused(entry: Entry, dialect: Dialect, asked: Asked, gateway: Gateway) -> web.Response | None:
    """Asked once the body is there, with no wait before the request is counted: the budget holds for many at once."""
    grant = entry.run.grant
    refusal = entry.purse.refusal()
    if refusal:
        return _error(dialect, refusal.status, refusal.message, refusal.kind)
    if asked.model != grant.model:
        return _error(dialect, 404, f"this grant is for the model {grant.model}", "model_not_found")
    for name, _ in grant.models:
        provider = gateway.config.providers[name]
        if not provider.speaks(dialect.name):
            told = f"the provider {name!r} is of kind {provider.kind} and does not speak {dialect.name}"
            entry.run.observed.fail("other", told, 400)
            return _error(dialect, 400, told, "invalid_request_error")
    return None


async def _answer(
    gateway: Gateway, entry: Entry, request: web.Request, dialect: Dialect, asked: Asked, body: dict[str, Any], raw: bytes
) -> web.StreamResponse:
    seen = entry.run.observed
    seen.requests += 1
    began = time.monotonic()
    x = Exchange(request, gateway, entry, dialect, asked, body, len(raw), seen.requests)
    status: int | None = None
    try:
        response = await answering.answer(x)
        status = response.status
        return response
    except (replay.Dropped, Gone):
        return x.outlet.abort()
    finally:
        seen.statuses[str(status)] = seen.statuses.get(str(status), 0) + 1
        _log(gateway, x, status, time.monotonic() - began, raw)


def _log(gateway: Gateway, x: Exchange, status: int | None, seconds: float, raw: bytes) -> None:
    grant = x.run.grant
    provider, model = grant.models[x.at]
    with contextlib.suppress(FileNotFoundError):  # the attempt's directory is gone: nobody will read this
        calllog.write(
            Path(grant.log_path),
            gateway.redactor,
            agent_run=grant.agent_run_id,
            number=x.number,
            dialect=x.dialect.name,
            provider=provider,
            model=model,
            status=status,
            ms=round(seconds * 1000),
            turn=x.asked.turn,
            tokens=asdict(x.used),
            cost=x.cost,
            request_sha256=calllog.digest(raw),
            last_message=calllog.bounded(json.dumps(x.dialect.last(x.body), ensure_ascii=False)),
            answer=calllog.bounded(x.said),
        )


def _models(gateway: Gateway) -> Handler:
    async def models(request: web.Request) -> web.Response:
        """One answer that every CLI can read: the words of all dialects together."""
        entry = gateway.entry(request.match_info["token"])
        if entry is None or entry.run.over:
            return _error(ALL[0], 401, UNKNOWN, "auth")
        grant = entry.run.grant
        known = {"id": grant.model, "object": "model", "created": 0, "owned_by": grant.provider, "type": "model"}
        known |= {"display_name": grant.model, "created_at": "1970-01-01T00:00:00Z"}
        if "model" in request.match_info:
            found = request.match_info["model"] == grant.model
            return web.json_response({**known, "name": f"models/{grant.model}"}) if found else web.Response(status=404)
        google = [{"name": f"models/{grant.model}"}] if "v1beta" in request.path else []
        return web.json_response({"object": "list", "data": [known], "has_more": False, "models": google})

    return models


def _other(gateway: Gateway) -> Handler:
    async def other(request: web.Request) -> web.Response:
        """A CLI asks whether anybody is there (HEAD), or for something that is not served."""
        entry = gateway.entry(request.match_info["token"])
        if entry is None or entry.run.over:
            return _error(ALL[0], 401, UNKNOWN, "auth")
        return web.Response() if request.method == "HEAD" else _error(ALL[0], 404, "there is no such path here", "not_found")

    return other
