"""What is chosen for a step, layer over layer: deployment, project, plan, planner task. Pure, standard library only.

A layer is a mapping that may name any of `KEYS`. An inner layer overrides an outer one, with three exceptions: `verify` set to
`always` cannot be undone further in, budgets only ever get tighter, and `publish` is false where any layer says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hyperagent_common.errors import Fault

SCOPES = ("step", "workflow", "project")
KINDS = ("tokens", "usd", "seconds")
VERIFY = ("always", "on", "off")
ROLES = ("planner", "coder", "verifier")
MAX_ROUNDS = 50
MAX_FALLBACK = 10
MAX_PROMPT = 65_536
ASKS = 2
"""How often a verifier (in a round) or a planner is asked: once more after an answer that is no verdict or plan."""
_MODEL = re.compile(r"[^/\s]+/\S+\Z")
_CLI = re.compile(r"[a-z0-9][a-z0-9_-]{0,30}\Z")
KEYS = (
    "agent_provider",
    "agent_model",
    "agent_max_rounds",
    "verifier_provider",
    "verifier_model",
    "planner_provider",
    "planner_model",
    "verify",
    "agent_fallback",
    "prompts",
    "budgets",
    "publish",
)


@dataclass(frozen=True)
class Choice:
    """An agent CLI and the model it uses, `provider/model` as the gateway names it."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider} with {self.model}"


@dataclass(frozen=True)
class Amount:
    """A limit on tokens, US dollars and seconds of agent runs; None where there is none."""

    tokens: int | None = None
    usd: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Choices:
    """Everything chosen for one step."""

    coder: Choice
    verifier: Choice
    planner: Choice
    fallback: Sequence[Choice] = ()
    rounds: int = 3
    publish: bool = True
    verify: bool = True
    prompts: Mapping[str, str] = field(default_factory=dict)
    budgets: Mapping[str, Amount] = field(default_factory=dict)

    def of(self, role: str) -> list[Choice]:
        """The agents of a role in the order in which they are tried."""
        first: Choice = getattr(self, role)
        return [first, *(each for each in self.fallback if each != first)]

    @property
    def everybody(self) -> list[Choice]:
        """Whoever may be asked in any role, each once."""
        return list(dict.fromkeys([self.coder, self.verifier, self.planner, *self.fallback]))

    @property
    def longest(self) -> int:
        """The most agent runs one attempt can need: each role's in every round, and each fallback once, whoever comes to it."""
        coder = self.rounds + len(self.of("coder")) - 1
        return coder + (self.rounds * ASKS + len(self.of("verifier")) - 1 if self.verify else 0)


def settle(*layers: Mapping[str, Any]) -> Choices:
    """The choices of these layers, the outermost first; each must be without faults."""
    chosen: dict[str, Any] = {}
    prompts: dict[str, str] = {}
    for layer in layers:
        chosen |= {key: layer[key] for key in KEYS if layer.get(key) not in (None, "", ())}
        prompts |= layer.get("prompts") or {}
    coder = Choice(str(chosen["agent_provider"]), str(chosen["agent_model"]))
    return Choices(
        coder=coder,
        verifier=_role(chosen, "verifier", coder),
        planner=_role(chosen, "planner", coder),
        fallback=tuple(_choice(each) for each in chosen.get("agent_fallback", ())),
        rounds=int(chosen.get("agent_max_rounds", 3)),
        verify=_verify(layers),
        publish=all(layer.get("publish", True) is not False for layer in layers),
        prompts=prompts,
        budgets=_tightest(layers),
    )


def _role(chosen: Mapping[str, Any], role: str, coder: Choice) -> Choice:
    provider, model = chosen.get(f"{role}_provider", coder.provider), chosen.get(f"{role}_model", coder.model)
    return Choice(str(provider), str(model))


def _choice(value: object) -> Choice:
    """A fallback entry, `{provider, model}` or `CLI:provider/model`. Raises `ValueError`."""
    if isinstance(value, str):
        provider, _, model = value.partition(":")
        value = {"provider": provider, "model": model}
    if not isinstance(value, Mapping) or set(value) != {"provider", "model"}:
        raise ValueError("must be {provider, model} or CLI:provider/model")
    provider, model = value["provider"], value["model"]
    if not isinstance(provider, str) or not _CLI.match(provider) or not isinstance(model, str) or not _MODEL.match(model):
        raise ValueError("must name an agent CLI as provider, and its model as provider/model")
    return Choice(provider, model)


def _verify(layers: Sequence[Mapping[str, Any]]) -> bool:
    said = "on"
    for layer in layers:
        value = layer.get("verify")
        if value is not None and said != "always":
            said = ("on" if value else "off") if isinstance(value, bool) else str(value)
    return said != "off"


def _tightest(layers: Sequence[Mapping[str, Any]]) -> dict[str, Amount]:
    found: dict[str, Amount] = {}
    for scope in SCOPES:
        said = [layer["budgets"][scope] for layer in layers if scope in (layer.get("budgets") or {})]
        limits = {kind: min((s[kind] for s in said if s.get(kind) is not None), default=None) for kind in KINDS}
        if any(limit is not None for limit in limits.values()):
            found[scope] = Amount(**limits)
    return found


def faults(layer: Mapping[str, Any], path: str, *, prompts: bool = False, verify: Sequence[str] = VERIFY) -> list[Fault]:
    """Every fault of a layer's known keys; other keys are somebody else's. `prompts`: whether it may set personas."""
    found = [Fault(f"{path}{key}", told) for key in KEYS if key in layer and (told := _fault(key, layer[key], verify))]
    if "publish" in layer and path.endswith(".metadata."):
        found.append(Fault(f"{path}publish", "is set for a project or a plan: a workflow has one patch"))
    if "prompts" in layer and not prompts:
        found.append(Fault(f"{path}prompts", "is set for a project, not here"))
    return found


def _fault(key: str, value: object, verify: Sequence[str]) -> str:
    if key == "publish":
        return "" if isinstance(value, bool) else "must be true or false"
    if key == "verify":
        return "" if isinstance(value, bool) or value in verify else f"must be true, false or one of {', '.join(verify)}"
    if key == "agent_max_rounds":
        whole = isinstance(value, int) and not isinstance(value, bool)
        return "" if whole and 1 <= int(str(value)) <= MAX_ROUNDS else f"must be a whole number from 1 to {MAX_ROUNDS}"
    if key.endswith("_provider"):
        return "" if isinstance(value, str) and _CLI.match(value) else "must be the name of an agent CLI"
    if key.endswith("_model"):
        return "" if isinstance(value, str) and _MODEL.match(value) else "must read provider/model"
    return {"agent_fallback": _fallback_fault, "prompts": _prompts_fault, "budgets": budgets_fault}[key](value)


def _fallback_fault(value: object) -> str:
    if not isinstance(value, list) or len(value) > MAX_FALLBACK:
        return f"must be a list of at most {MAX_FALLBACK} entries"
    for position, entry in enumerate(value):
        try:
            _choice(entry)
        except ValueError as error:
            return f"entry {position} {error}"
    return ""


def _prompts_fault(value: object) -> str:
    if not isinstance(value, Mapping) or not all(isinstance(v, str) and 0 < len(v) <= MAX_PROMPT for v in value.values()):
        return f"must map roles to texts of at most {MAX_PROMPT} characters"
    strange = [str(role) for role in value if role not in ROLES]
    return f"{', '.join(strange)}: known are {', '.join(ROLES)}" if strange else ""


def budgets_fault(value: object) -> str:
    """What is wrong with budgets, or nothing."""
    if not isinstance(value, Mapping) or any(scope not in SCOPES for scope in value):
        return f"must map {', '.join(SCOPES)} to limits"
    for scope, limits in value.items():
        if not isinstance(limits, Mapping) or any(kind not in KINDS for kind in limits):
            return f"{scope} must hold {', '.join(KINDS)}"
        for kind, limit in limits.items():
            if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 < limit < 1e12:
                return f"{scope}.{kind} must be a number above 0"
    return ""
