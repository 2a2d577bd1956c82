"""Checks of this host's parts, each with the sentence that says what to do: for the doctor, heartbeats and the API."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass

import redis

from hyperagent_common import db, queue
from hyperagent_common.errors import DependencyDown, HyperagentError, NotReady
from hyperagent_tasks import requirements
from hyperagent_tasks.parts import Parts

MIN_FREE = 1 << 30


@dataclass(frozen=True)
class Check:
    """One thing looked at. `mend` says what to do where it is not `ok`."""

    name: str
    ok: bool
    message: str
    mend: str = ""


def examine(parts: Parts) -> list[Check]:
    """Every check of this host; where the parts cannot even be chosen, that, and what does not need them."""
    chosen = _look("parts", lambda parts: parts.chosen.sandbox, parts)
    if chosen.ok:
        return run(parts)
    looks = {"database": _database, "broker": _broker, "storage": _storage, "gateway": _gateway, "disk": _disk}
    return [chosen, *(_look(name, look, parts) for name, look in looks.items())]


def run(parts: Parts) -> list[Check]:
    """Every check, each within a few seconds, none stopping the next."""
    looks: dict[str, Callable[[Parts], str]] = {
        "database": _database,
        "broker": _broker,
        "storage": _storage,
        "sandbox": _sandbox,
        "gateway": _gateway,
        "agent": _agent,
        "model": _model,
        "forge": _forge,
        "disk": _disk,
    }
    return [_look(name, look, parts) for name, look in looks.items()]


def _look(name: str, look: Callable[[Parts], str], parts: Parts) -> Check:
    try:
        return Check(name, True, look(parts))
    except HyperagentError as error:
        return Check(name, False, error.message, error.mend)
    except Exception as error:
        return Check(name, False, f"The check itself failed: {type(error).__name__}: {error}", "Please report this.")


def _database(parts: Parts) -> str:
    db.check(parts.settings.db_url)
    return parts.settings.db_url.split(":", 1)[0]


def _broker(parts: Parts) -> str:
    mend = "Start Redis, or run `hyperagent up`, or mend HYPERAGENT_BROKER_URL."
    client = queue.client(parts.settings.broker, seconds=3)
    try:
        client.ping()
        policy = client.config_get("maxmemory-policy").get("maxmemory-policy")
    except redis.RedisError as error:
        raise DependencyDown(f"Redis does not answer: {error}", mend=mend) from error
    finally:
        client.close()
    if policy not in (None, "noeviction"):
        raise NotReady(f"Redis may throw messages away: its maxmemory-policy is {policy}.", mend="Set it to noeviction.")
    return "redis"


def _storage(parts: Parts) -> str:
    parts.storage.check()
    return parts.settings.storage


def _sandbox(parts: Parts) -> str:
    parts.runner.check()
    return parts.runner.name


def _gateway(parts: Parts) -> str:
    parts.gateway.health()
    return "answers"


def _agent(parts: Parts) -> str:
    agents = {choice.provider: parts.agent(choice.provider) for choice in requirements.of_deployment(parts)}
    for agent in agents.values():
        requirements.cli(parts, agent)
    return ", ".join(f"{agent.name} {parts.agent_version(agent) or ''}".strip() for agent in agents.values())


def _model(parts: Parts) -> str:
    chosen = requirements.of_deployment(parts)
    requirements.ready(parts, chosen)
    return ", ".join(f"{parts.agent(choice.provider).name} with {choice.model}" for choice in chosen)


def _forge(parts: Parts) -> str:
    parts.forge.check()
    health = parts.forge.health()
    return f"{health.name}, {health.nid or 'no node'}, {health.peers} peers"


def _disk(parts: Parts) -> str:
    free = shutil.disk_usage(parts.settings.home).free
    if free < MIN_FREE:
        raise NotReady(f"Only {free >> 20} MiB are free in {parts.settings.home}.", mend="Make room there.")
    return f"{free >> 30} GiB free"
