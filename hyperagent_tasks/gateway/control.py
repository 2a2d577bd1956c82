"""The server for workers, on a private socket: open and end grants, ask what was seen and what can be used."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict

from aiohttp import web

from hyperagent_common.errors import Conflict
from hyperagent_tasks.gateway.book import Gateway
from hyperagent_tasks.gateway.grants import Grant

CUT_SECONDS = 2.0


def app(gateway: Gateway) -> web.Application:
    """What workers can reach."""
    control = _Control(gateway)
    made = web.Application()
    made.router.add_get("/health", control.health)
    made.router.add_post("/check", control.check)
    made.router.add_post("/grants", control.grant)
    made.router.add_get("/grants", control.in_force)
    made.router.add_get("/grants/{run}", control.usage)
    made.router.add_delete("/grants/{run}", control.end)
    return made


class _Control:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def health(self, _request: web.Request) -> web.Response:
        providers = list(self._gateway.config.providers)
        open_runs = len(self._gateway.in_force())
        return web.json_response({"ok": True, "pid": os.getpid(), "grants": open_runs, "providers": providers})

    async def check(self, request: web.Request) -> web.Response:
        asked = await request.json()
        said = (str(asked.get(key) or "") for key in ("provider", "model", "dialect"))
        return web.json_response({"fault": self._gateway.fault(*said, priced=bool(asked.get("priced")))})

    async def grant(self, request: web.Request) -> web.Response:
        try:
            grant = Grant.from_json(await request.json())
        except (KeyError, TypeError, ValueError) as error:
            return web.json_response({"error": f"bad grant: {error}"}, status=422)
        fault = self._gateway.grant_fault(grant)
        if fault:
            return web.json_response({"error": fault}, status=422)
        try:
            self._gateway.put(grant)
        except Conflict as error:
            return web.json_response({"error": error.message}, status=409)
        return web.json_response({"ok": True})

    async def in_force(self, _request: web.Request) -> web.Response:
        return web.json_response(self._gateway.in_force())

    async def usage(self, request: web.Request) -> web.Response:
        entry = self._gateway.of_run(request.match_info["run"])
        if entry is None:
            return web.json_response({"error": "unknown agent run"}, status=404)
        return web.json_response(asdict(entry.run.observed))

    async def end(self, request: web.Request) -> web.Response:
        entry = self._gateway.of_run(request.match_info["run"])
        if entry is None:
            return web.json_response({"error": "unknown agent run"}, status=404)
        entry.run.ended = True
        cut = set(entry.under_way)
        for task in cut:
            task.cancel()
        if cut:  # so that the call log is whole when the worker reads it
            await asyncio.wait(cut, timeout=CUT_SECONDS)
        return web.json_response(asdict(entry.run.observed))
