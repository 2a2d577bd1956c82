"""Model providers as the settings name them: whether a model's is there, and its key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hyperagent_common import choices
from hyperagent_common.errors import NotReady
from hyperagent_common.settings import Settings
from hyperagent_common.settings_schema import KEY

REPLAY = "replay"
"""The provider that answers from scenario files: always there, without a key."""
MODELLESS = ("null",)
"""Agents that ask no model."""


def configured(settings: Settings, model: str) -> Mapping[str, Any] | None:
    """What the settings say of the provider of `provider/model`; None for `replay`. Raises `NotReady` where they say nothing."""
    name = model.partition("/")[0]
    if name == REPLAY:
        return None
    if name not in settings.providers:
        known = ", ".join([REPLAY, *settings.providers])
        raise NotReady(
            f"The model provider {name!r} is not configured; known are: {known}.",
            mend=f"Add [providers.{name}] to the settings, or mend WORKFLOW_AGENT_MODEL.",
        )
    said: Mapping[str, Any] = settings.providers[name]
    return said


def require(settings: Settings) -> None:
    """Every model that these settings choose has a provider. Raises `NotReady`."""
    for choice in choices.settle(settings.choices()).everybody:
        if choice.provider not in MODELLESS:
            configured(settings, choice.model)


def key(said: Mapping[str, Any]) -> str:
    """The provider's key, from its file where one is named; empty where it has none. Raises `ValueError` with what is wrong."""
    if said["api_key"] or not said["api_key_file"]:
        return str(said["api_key"])
    try:
        found = Path(said["api_key_file"]).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot be read: {error}") from error
    if not re.match(KEY, found):
        raise ValueError("must hold one key, printable and without spaces")
    return found
