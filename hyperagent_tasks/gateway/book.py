"""The grants in force: by token for agents, by agent run for workers; and whether a model can be used at all."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from hyperagent_common.errors import Conflict, HyperagentError
from hyperagent_tasks.gateway import calllog, scenario
from hyperagent_tasks.gateway.config import GatewayConfig, Provider
from hyperagent_tasks.gateway.grants import Grant, Run
from hyperagent_tasks.gateway.purse import Pots, Purse

KEEP_ENDED = 1000
AT_ONCE = 8
"""Requests of one run that are answered side by side; others wait with their bodies unread, so that memory is bounded."""


@dataclass
class Entry:
    """A run, its budgets, and the handlers that answer its requests now."""

    run: Run
    purse: Purse
    under_way: set[asyncio.Task[Any]] = field(default_factory=set)
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))


class Gateway:
    """What both servers share."""

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self.redactor = calllog.Redactor(p.api_key.reveal() for p in config.providers.values())
        self._by_token: dict[str, Entry] = {}
        self._by_run: dict[str, Entry] = {}
        self._pots = Pots()
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make the client session."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.config.connect_timeout)
        self._session = aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=True)

    async def close(self) -> None:
        """Close the client session."""
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """The client session. Raises `Conflict` before `open`."""
        if self._session is None:
            raise Conflict("the gateway is not open")
        return self._session

    def entry(self, token: str) -> Entry | None:
        """The run a token stands for; its hash is looked up, so that nothing is learned from how long this takes."""
        return self._by_token.get(hashlib.sha256(token.encode("utf-8", "replace")).hexdigest())

    def of_run(self, agent_run_id: str) -> Entry | None:
        """The run with this id."""
        return self._by_run.get(agent_run_id)

    def in_force(self) -> dict[str, str]:
        """Agent run id to attempt id of every grant that has not ended."""
        return {key: entry.run.grant.attempt_id for key, entry in self._by_run.items() if not entry.run.ended}

    def put(self, grant: Grant) -> None:
        """Put a grant in force; again is no error. Raises `Conflict` where another has its id."""
        known = self._by_run.get(grant.agent_run_id)
        if known is None:
            self._forget_old()
            run = Run(grant)
            purse = Purse(run, self._pots)
            self._pots.draw(purse, [entry.purse for entry in self._by_run.values()])
            self._by_run[grant.agent_run_id] = self._by_token[grant.token_sha256] = Entry(run, purse)
        elif known.run.grant != grant:
            raise Conflict("another grant has this agent_run_id")

    def _forget_old(self) -> None:
        ended = [key for key, entry in self._by_run.items() if entry.run.ended]
        for key in ended[:-KEEP_ENDED]:
            self._by_token.pop(self._by_run.pop(key).run.grant.token_sha256, None)

    def fault(self, provider: str, model: str, dialect: str = "", *, priced: bool = False) -> str | None:
        """Why this model cannot be used (by a CLI of this dialect, within a budget in dollars), with what to do, or None."""
        known = self.config.providers.get(provider)
        if known is None:
            there = ", ".join(self.config.providers)
            return f"The model provider {provider!r} is not configured; known are: {there}. Add [providers.{provider}]."
        if dialect and not known.speaks(dialect):
            return (
                f"The provider {provider!r} is of kind {known.kind}, and this agent CLI speaks {dialect}. "
                f"Choose a provider or a CLI that fits."
            )
        if known.kind == "replay":
            return self._replay_fault(model) or (_unpriced(known, model) if priced else None)
        if not known.api_key:
            return f"The provider {provider!r} has no key. Set its api_key or api_key_file."
        return _unpriced(known, model) if priced else None

    def _replay_fault(self, model: str) -> str | None:
        try:
            scenario.find(self.config.scenario_dirs, model, "*", "*")
        except HyperagentError as error:
            return None if "no script for" in error.message else error.sentence
        return None

    def grant_fault(self, grant: Grant) -> str | None:
        """Why a grant cannot be put in force: a model of it that cannot be used, or money nobody could count."""
        priced = grant.max_usd is not None
        found = (self.fault(provider, model, priced=priced) for provider, model in grant.models)
        return next((fault for fault in found if fault), None)


def _unpriced(provider: Provider, model: str) -> str | None:
    if model in provider.prices:
        return None
    return (
        f"There is a budget in US dollars, and {provider.name}/{model} has no price. "
        f"Set providers.{provider.name}.prices, or a budget in tokens."
    )
