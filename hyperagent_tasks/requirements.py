"""What a choice of agent and model needs before anything is spent: the CLI in its version, a provider that it can talk to."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hyperagent_common import choices, providers
from hyperagent_common.choices import Choice
from hyperagent_common.errors import DependencyDown, HyperagentError, NotReady
from hyperagent_tasks.agents import versions
from hyperagent_tasks.agents.base import Agent
from hyperagent_tasks.gateway.config import SPEAKS
from hyperagent_tasks.parts import Parts

VERSION = re.compile(r"\d+(\.\d+)+")


def of_deployment(parts: Parts) -> list[Choice]:
    """Every agent that the settings of this host choose, each once."""
    return choices.settle(parts.settings.choices()).everybody


def require(parts: Parts, choice: Choice) -> None:
    """Everything this choice needs that can be told without the gateway. Raises `BadInput`, `NotReady`, `DependencyDown`."""
    agent = parts.agent(choice.provider)
    cli(parts, agent)
    provider(parts, agent, choice.model)


def ready(parts: Parts, wanted: Iterable[Choice], *, priced: bool = False) -> None:
    """As `require`, and the gateway knows each model; `priced`: and its price, for a budget in dollars. Raises `BadInput`,
    `NotReady`, `DependencyDown`."""
    for choice in dict.fromkeys(wanted):
        require(parts, choice)
        dialect = parts.agent(choice.provider).dialect or ""
        fault = parts.gateway.fault(choice.model.partition("/")[0], choice.model, dialect, priced=priced)
        if fault:
            raise NotReady(fault)


def lacking(parts: Parts) -> str | None:
    """What keeps this host from starting at all, with its mend. What may come by itself, such as an engine, does not."""
    try:
        _ = parts.chosen
    except HyperagentError:
        return None
    try:
        for choice in of_deployment(parts):
            require(parts, choice)
    except DependencyDown:
        return None
    except HyperagentError as error:
        return f"{error.message} {error.mend}".strip()
    return None


def cli(parts: Parts, agent: Agent) -> None:
    """The CLI is where agents run, in a version whose output the adapter reads. Raises `NotReady`, `DependencyDown`."""
    if not agent.series:
        return
    docker, image = parts.chosen.sandbox == "docker", parts.settings.runner_image
    labels = versions.labels(image) if docker else {}
    if labels is None:
        return  # no engine or no image: the check of the sandbox says so
    found = VERSION.search((versions.labelled(labels, agent) if docker else versions.said(agent)) or "")
    place = f"in the image {image}" if docker else "on the PATH"
    mend = "Build the image: `ops/parts runner-image`." if docker else f"Install {agent.name} {agent.series}."
    if found is None:
        raise NotReady(f"The agent CLI {agent.name} is not {place}.", mend=mend)
    if not f"{found[0]}.".startswith(f"{agent.series}."):
        raise NotReady(f"The agent CLI {agent.name} {place} is {found[0]}; its adapter reads {agent.series}.", mend=mend)


def provider(parts: Parts, agent: Agent, model: str) -> None:
    """The provider of `provider/model` is configured, has its key and is asked in the CLI's dialect. Raises `NotReady`."""
    said = None if agent.dialect is None else providers.configured(parts.settings, model)
    if said is None:
        return
    name = model.partition("/")[0]
    speaks = SPEAKS.get(said["kind"])
    if speaks is not None and agent.dialect not in speaks:
        fitting = " or ".join(kind for kind, dialects in SPEAKS.items() if agent.dialect in dialects)
        raise NotReady(
            f"{agent.name} speaks {agent.dialect}, which the model provider {name!r} of kind {said['kind']} does not.",
            mend=f"Choose a provider of kind {fitting} for {agent.name}, or another agent CLI for this model.",
        )
    try:
        key = providers.key(said)
    except ValueError as error:
        raise NotReady(f"The key of the provider {name!r} {error}.", mend=f"Mend providers.{name}.api_key_file.") from error
    if speaks is not None and not key:
        raise NotReady(f"The provider {name!r} has no key.", mend="Set its api_key or api_key_file.")
