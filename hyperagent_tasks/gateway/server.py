"""The gateway's two servers: data for agents (a phantom token in the path), control for workers (a private socket)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from hyperagent_common.errors import Conflict, HyperagentError
from hyperagent_tasks.gateway import bodies, calllog, replay, scenario, upstream
from hyperagent_tasks.gateway.config import GatewayConfig
from hyperagent_tasks.gateway.dialects import openai_chat as chat
from hyperagent_tasks.gateway.grants import UNKNOWN, Grant, Run

log = logging.getLogger(__name__)
DRAIN_SECONDS = 2.0  # aiohttp waits this long twice
KEEP_ENDED = 1000


class Gateway:
    """The grants in force and the handlers of both servers."""

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self._by_token: dict[str, Run] = {}
        self._by_run: dict[str, Run] = {}
        self._under_way: dict[str, set[asyncio.Task[Any]]] = {}
        self._redactor = calllog.Redactor(p.api_key.reveal() for p in config.providers.values())
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make the client session."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.config.connect_timeout)
        self._session = aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=True)

    async def close(self) -> None:
        """Close the client session."""
        if self._session is not None:
            await self._session.close()

    def data_app(self) -> web.Application:
        """What agents can reach: two paths, nothing else."""
        app = web.Application(client_max_size=bodies.MAX_BODY)
        app.router.add_post("/t/{token}/v1/" + chat.PATH, self._chat)
        app.router.add_get("/t/{token}/v1/models", self._models)
        return app

    def control_app(self) -> web.Application:
        """What workers can reach."""
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_post("/check", self._check)
        app.router.add_post("/grants", self._grant)
        app.router.add_get("/grants", self._in_force)
        app.router.add_get("/grants/{run}", self._usage)
        app.router.add_delete("/grants/{run}", self._end)
        return app

    def _run(self, request: web.Request) -> Run | None:
        return self._by_token.get(hashlib.sha256(request.match_info["token"].encode()).hexdigest())

    async def _models(self, request: web.Request) -> web.Response:
        run = self._run(request)
        if run is None or run.over:
            return web.json_response(chat.error(UNKNOWN, "auth"), status=401)
        model = {"id": run.grant.model, "object": "model", "created": 0, "owned_by": run.grant.provider}
        return web.json_response({"object": "list", "data": [model]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        run = self._run(request)
        if run is None or run.over:
            return web.json_response(chat.error(UNKNOWN, "auth"), status=401)
        with self._cut_when_ended(run):
            raw, body = await bodies.read(request)
            refused = self._refused(run, body)
            if refused is not None or body is None:
                return refused or web.Response(status=400)
            return await self._answer(request, run, body, raw)

    @contextlib.contextmanager
    def _cut_when_ended(self, run: Run) -> Iterator[None]:
        task = asyncio.current_task()
        tasks = self._under_way.setdefault(run.grant.agent_run_id, set())
        if task is not None:
            tasks.add(task)
        try:
            yield
        finally:
            tasks.discard(task) if task is not None else None

    def _refused(self, run: Run, body: dict[str, Any] | None) -> web.Response | None:
        """Asked once the body is there, with no wait before the request is counted: the budget holds for many at once."""
        if body is None:
            return web.json_response(chat.error("the body is not a JSON object", "invalid_request_error"), status=400)
        refusal = run.refusal()
        if refusal:
            kind = "budget" if refusal[0] == 400 else "auth"
            return web.json_response(chat.error(refusal[1], kind), status=refusal[0])
        if body.get("model") != run.grant.model:
            told = f"this grant is for the model {run.grant.model}"
            return web.json_response(chat.error(told, "model_not_found"), status=404)
        return None

    async def _answer(self, request: web.Request, run: Run, body: dict[str, Any], raw: bytes) -> web.StreamResponse:
        run.observed.requests += 1
        number, began = run.observed.requests, time.monotonic()
        before = (run.observed.input, run.observed.output, run.observed.cached)
        status: int | None = None
        said = ""
        try:
            response, said = await self._backend(request, run, body)
            status = response.status
            return response
        except replay.Dropped:
            if request.transport is not None:
                request.transport.abort()
            raise
        finally:
            run.observed.statuses[str(status)] = run.observed.statuses.get(str(status), 0) + 1
            self._log(run, number, status, time.monotonic() - began, before, body, raw, said)

    async def _backend(self, request: web.Request, run: Run, body: dict[str, Any]) -> tuple[web.StreamResponse, str]:
        provider = self.config.providers[run.grant.provider]
        if provider.kind == "replay":
            return await replay.answer(request, self.config, run, body)
        if self._session is None:
            raise Conflict("the gateway is not open")
        return await upstream.answer(request, self._session, self.config, provider, run, body)

    def _log(
        self,
        run: Run,
        number: int,
        status: int | None,
        seconds: float,
        before: tuple[int, int, int],
        body: dict[str, Any],
        raw: bytes,
        said: str,
    ) -> None:
        seen = run.observed
        messages = body.get("messages")
        last = messages[-1] if isinstance(messages, list) and messages else None
        with contextlib.suppress(FileNotFoundError):  # the attempt's directory is gone: nobody will read this
            calllog.write(
                Path(run.grant.log_path),
                self._redactor,
                agent_run=run.grant.agent_run_id,
                number=number,
                dialect="openai_chat",
                provider=run.grant.provider,
                model=run.grant.model,
                status=status,
                ms=round(seconds * 1000),
                tokens={
                    "input": seen.input - before[0],
                    "output": seen.output - before[1],
                    "cached": seen.cached - before[2],
                },
                request_sha256=calllog.digest(raw),
                last_message=calllog.bounded(json.dumps(last, ensure_ascii=False)),
                answer=calllog.bounded(said),
            )

    async def _health(self, _request: web.Request) -> web.Response:
        open_runs = sum(1 for run in self._by_run.values() if not run.ended)
        return web.json_response({"ok": True, "pid": os.getpid(), "grants": open_runs, "providers": list(self.config.providers)})

    async def _check(self, request: web.Request) -> web.Response:
        asked = await request.json()
        return web.json_response({"fault": self.fault(str(asked.get("provider")), str(asked.get("model")))})

    def fault(self, provider: str, model: str) -> str | None:
        """Why this model cannot be used, with what to do, or None."""
        known = self.config.providers.get(provider)
        if known is None:
            there = ", ".join(self.config.providers)
            return f"The model provider {provider!r} is not configured; known are: {there}. Add [providers.{provider}]."
        if known.kind == "openai":
            return None if known.api_key else f"The provider {provider!r} has no key. Set its api_key or api_key_file."
        try:
            scenario.find(self.config.scenario_dirs, model, "*", "*")
        except HyperagentError as error:
            return None if "no script for" in error.message else error.sentence
        return None

    async def _grant(self, request: web.Request) -> web.Response:
        try:
            grant = Grant.from_json(await request.json())
        except (KeyError, TypeError, ValueError) as error:
            return web.json_response({"error": f"bad grant: {error}"}, status=422)
        fault = self.fault(grant.provider, grant.model)
        if fault:
            return web.json_response({"error": fault}, status=422)
        known = self._by_run.get(grant.agent_run_id)
        if known is None:
            self._forget_old()
            run = Run(grant)
            self._by_run[grant.agent_run_id] = self._by_token[grant.token_sha256] = run
        elif known.grant != grant:
            return web.json_response({"error": "another grant has this agent_run_id"}, status=409)
        return web.json_response({"ok": True})

    def _forget_old(self) -> None:
        ended = [key for key, run in self._by_run.items() if run.ended]
        for key in ended[:-KEEP_ENDED]:
            run = self._by_run.pop(key)
            self._by_token.pop(run.grant.token_sha256, None)

    async def _in_force(self, _request: web.Request) -> web.Response:
        return web.json_response({key: run.grant.attempt_id for key, run in self._by_run.items() if not run.ended})

    async def _usage(self, request: web.Request) -> web.Response:
        run = self._by_run.get(request.match_info["run"])
        if run is None:
            return web.json_response({"error": "unknown agent run"}, status=404)
        return web.json_response(asdict(run.observed))

    async def _end(self, request: web.Request) -> web.Response:
        run = self._by_run.get(request.match_info["run"])
        if run is None:
            return web.json_response({"error": "unknown agent run"}, status=404)
        run.ended = True
        cut = self._under_way.pop(run.grant.agent_run_id, set())
        for task in cut:
            task.cancel()
        if cut:  # so that the call log is whole when the worker reads it
            await asyncio.wait(cut, timeout=2)
        return web.json_response(asdict(run.observed))


async def serve(config: GatewayConfig, *, tcp: bool = True, ready: Callable[[], Awaitable[None]] | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Raises `Conflict` where another gateway serves this directory."""
    for path, mode in ((config.data_socket, 0o755), (config.control_socket, 0o700)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(mode)
        _claim(path)
    gateway = Gateway(config)
    await gateway.open()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runners = [
        web.AppRunner(app, shutdown_timeout=DRAIN_SECONDS, access_log=None, auto_decompress=False)
        for app in (gateway.data_app(), gateway.control_app())
    ]
    for runner in runners:
        await runner.setup()
    await web.UnixSite(runners[0], str(config.data_socket)).start()
    config.data_socket.chmod(0o666)
    if tcp:  # only a plain-process agent needs it; a container has its socket
        site = web.TCPSite(runners[0], "127.0.0.1", 0)
        await site.start()
        (config.control_socket.parent / "port").write_text(str(runners[0].addresses[-1][1]))
    await web.UnixSite(runners[1], str(config.control_socket)).start()
    config.control_socket.chmod(0o600)
    log.info("gateway.ready", extra={"providers": list(config.providers)})
    if ready is not None:
        await ready()
    await stop.wait()
    await asyncio.gather(*(runner.cleanup() for runner in runners))
    await gateway.close()


def _claim(path: Path) -> None:
    """Remove a socket nobody answers; refuse where somebody does."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise Conflict(f"The gateway's socket {path} cannot be used: {error}") from error
    raise Conflict(f"Another gateway serves {path.parent.parent} already.", mend="Stop it first: `hyperagent down`.")
