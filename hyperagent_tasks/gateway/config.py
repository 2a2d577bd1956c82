"""The gateway's configuration: model providers with their keys and prices, and where scenarios are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from hyperagent_common import providers
from hyperagent_common.errors import BadSettings, Fault
from hyperagent_common.settings import Secret, Settings
from hyperagent_tasks.gateway.purse import Price

SPEAKS = {
    "openai": ("openai_chat", "openai_responses"),
    "openai-responses": ("openai_responses",),
    "anthropic": ("anthropic_messages",),
    "gemini": ("gemini",),
}
"""Which dialects a provider of a kind is asked in; `replay` knows them all."""


@dataclass(frozen=True)
class Provider:
    """One model provider: `replay` (answers from scenario files), or a kind of `SPEAKS` at `base_url`."""

    name: str
    kind: str
    base_url: str = ""
    api_key: Secret = Secret("")
    models: dict[str, str] = field(default_factory=dict)
    prices: dict[str, Price] = field(default_factory=dict)

    def upstream_model(self, model: str) -> str:
        """The provider's own name of a model."""
        return self.models.get(model, model)

    def speaks(self, dialect: str) -> bool:
        """Whether it can be asked in this dialect."""
        return self.kind == "replay" or dialect in SPEAKS[self.kind]


@dataclass(frozen=True)
class GatewayConfig:
    """Everything the gateway is told. Times in seconds."""

    run_dir: Path
    providers: dict[str, Provider]
    scenario_dirs: tuple[Path, ...]
    connect_timeout: float = 10.0
    head_timeout: float = 150.0
    idle_timeout: float = 120.0
    patience: float = 30.0
    beat: float = 10.0
    tries: int = 3
    pause: float = 1.0
    longest_pause: float = 30.0

    @property
    def data_socket(self) -> Path:
        """Where agents connect; its directory is mounted into their containers."""
        return self.run_dir / "gateway" / "llm.sock"

    @property
    def control_socket(self) -> Path:
        """Where workers ask for grants; never mounted."""
        return self.run_dir / "gateway-control" / "control.sock"


def from_settings(settings: Settings) -> GatewayConfig:
    """The configuration of this host. Raises `BadSettings` where a key file cannot be read."""
    found = {"replay": Provider("replay", "replay")}
    faults: list[Fault] = []
    for name, said in settings.providers.items():
        key = _key(name, said, faults)
        prices = {model: Price(**price) for model, price in said["prices"].items()}
        base = said["base_url"].rstrip("/")
        found[name] = Provider(name, said["kind"], base, Secret(key), said["models"], prices)
    if faults:
        raise BadSettings("A provider's key cannot be read.", faults=faults)
    bundled = Path(str(resources.files("hyperagent_tasks.gateway") / "scenarios"))
    dirs = (*(Path(d).expanduser() for d in settings.scenario_dirs), bundled)
    return GatewayConfig(settings.run_dir, found, dirs)


def _key(name: str, said: Mapping[str, Any], faults: list[Fault]) -> str:
    try:
        return providers.key(said)
    except ValueError as error:
        faults.append(Fault(f"providers.{name}.api_key_file", str(error)))
        return ""
