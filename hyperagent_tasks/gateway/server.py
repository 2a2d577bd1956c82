"""Serving: one process, a socket and a loopback port for agents, a private socket for workers, until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from hyperagent_common.errors import Conflict
from hyperagent_tasks.gateway import control, data
from hyperagent_tasks.gateway.book import Gateway
from hyperagent_tasks.gateway.config import GatewayConfig

log = logging.getLogger(__name__)
DRAIN_SECONDS = 2.0  # aiohttp waits this long twice


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
    runners = [_runner(data.app(gateway), cancel=True), _runner(control.app(gateway), cancel=False)]
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


def _runner(app: web.Application, *, cancel: bool) -> web.AppRunner:
    """`cancel`: a request whose client is gone is given up at once, and so is what was asked of a provider for it."""
    return web.AppRunner(app, shutdown_timeout=DRAIN_SECONDS, access_log=None, auto_decompress=False, handler_cancellation=cancel)


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
