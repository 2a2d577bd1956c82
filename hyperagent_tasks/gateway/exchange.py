"""One request of an agent on its way: what it asks, under which grant, and how its answer is given."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from hyperagent_tasks.gateway.book import Entry, Gateway
from hyperagent_tasks.gateway.config import GatewayConfig, Provider
from hyperagent_tasks.gateway.dialects.base import Asked, Dialect, Usage
from hyperagent_tasks.gateway.grants import Run
from hyperagent_tasks.gateway.purse import Purse

BEAT = b"\n\n"
"""Says nothing in every SSE parser there is; a comment would stop some of them."""
MOST_HELD = 32 << 20


@dataclass
class Exchange:
    """A request and everything needed to answer it. For the books: `said` is what was answered (bounded), `text` its model's
    words, `broken` whether it ended in an error event, `at` by which of the grant's providers, `used` and `cost` what all
    its tries took."""

    request: web.Request
    gateway: Gateway
    entry: Entry
    dialect: Dialect
    asked: Asked
    body: dict[str, Any]
    size: int
    number: int
    said: str = ""
    text: str = ""
    at: int = 0
    broken: bool = False
    used: Usage = field(default_factory=Usage)
    cost: float | None = 0.0
    outlet: Outlet = field(init=False)

    def __post_init__(self) -> None:
        self.outlet = Outlet(self.request, self.config.patience, self.config.beat)

    @property
    def config(self) -> GatewayConfig:
        """What the gateway was told."""
        return self.gateway.config

    @property
    def run(self) -> Run:
        """The agent run it belongs to."""
        return self.entry.run

    @property
    def purse(self) -> Purse:
        """Its budgets."""
        return self.entry.purse

    def provider(self, at: int) -> tuple[Provider, str]:
        """The grant's provider at a place of its list, and our name of the model there."""
        name, model = self.run.grant.models[at]
        return self.config.providers[name], model

    def book(self, used: Usage, provider: Provider, model: str) -> None:
        """Put the tokens of one try into its books and the run's."""
        price, was = provider.prices.get(model), self.used
        self.purse.book(used, price)
        self.used = Usage(was.input + used.input, was.output + used.output, was.cached + used.cached)
        self.cost = None if price is None or self.cost is None else self.cost + price.of(used)

    def refusal(self, status: int, message: str, kind: str, headers: dict[str, str] | None = None) -> web.Response:
        """A refusal in the agent's dialect."""
        return web.json_response(self.dialect.error(message, kind, status), status=status, headers=headers)


class Gone(ConnectionResetError):
    """The agent is no longer there."""


class Outlet:
    """Gives a streamed answer to the agent. For `patience` seconds nothing is given, so that an answer that breaks can be
    asked for again; and nothing that the agent would execute is given before its answer has ended well: a CLI that
    executes a call of a broken answer executes it twice."""

    def __init__(self, request: web.Request, patience: float, beat: float) -> None:
        self._request, self.patience, self._beat = request, patience, beat
        self._since = self._last = time.monotonic()
        self._held: list[bytes] = []
        self._size = 0
        self._calls = False
        self._response: web.StreamResponse | None = None

    @property
    def given(self) -> bool:
        """Whether the agent has seen anything: from here on nothing can be taken back."""
        return self._response is not None

    def again(self) -> None:
        """Forget what is held: the answer is asked for once more."""
        self._held, self._size, self._calls = [], 0, False

    async def put(self, block: bytes, *, call: bool = False) -> None:
        """Take one event. Raises `Gone`, and `OverflowError` where too much is held."""
        self._calls = self._calls or call
        self._held.append(block)
        self._size += len(block)
        if self._size > MOST_HELD:
            raise OverflowError
        if not self._calls:
            await self._give()

    async def beat(self) -> None:
        """Say that the answer is under way, where the agent has waited for long."""
        await self._give(BEAT if time.monotonic() - self._last > self._beat else b"")

    async def _give(self, beat: bytes = b"") -> None:
        if not self.given and time.monotonic() - self._since < self.patience:
            return
        await self._write(beat if self._calls else self._taken() + beat)

    def _taken(self) -> bytes:
        taken, self._held, self._size = b"".join(self._held), [], 0
        return taken

    async def _write(self, data: bytes) -> web.StreamResponse:
        try:
            if self._response is None:
                self._response = await self._begin()
            if data:
                await self._response.write(data)
                self._last = time.monotonic()
            return self._response
        except ConnectionError as error:  # aiohttp's is a client error too, and that would be the provider's
            raise Gone from error

    async def _begin(self) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        response.force_close()
        await response.prepare(self._request)
        return response

    async def end(self, tail: bytes = b"", *, well: bool = True) -> web.StreamResponse:
        """End the answer; what is held is given where it ended well, else dropped. Raises `Gone`."""
        response = await self._write((self._taken() if well else b"") + tail)
        await response.write_eof()
        return response

    def abort(self) -> web.StreamResponse:
        """Break the connection off, once what was written has left; what is returned reaches nobody."""
        if self._request.transport is not None:
            self._request.transport.close()
        return self._response or web.Response(status=502)


async def ticking(awaitable: Any, outlet: Outlet, seconds: float) -> Any:
    """Wait at most `seconds`, beating meanwhile. Raises `TimeoutError`."""
    task = asyncio.ensure_future(awaitable)
    until = time.monotonic() + seconds
    try:
        while not task.done():
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            await asyncio.wait({task}, timeout=min(left, 1.0))
            if not task.done():
                await outlet.beat()
        return task.result()
    finally:
        task.cancel()
