"""The Agent port: a CLI's command line out, its event stream in, one outcome at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol

from hyperagent_tasks.runners.base import RunnerResult

AgentRole = Literal["planner", "coder", "verifier"]
Dialect = Literal["openai_chat", "openai_responses", "anthropic_messages", "gemini"]
"""How a CLI speaks to its model provider."""


class EndReason(StrEnum):
    """Why an agent run ended."""

    DONE = "done"
    NO_CHANGE = "no_change"
    REFUSED = "refused"
    TIMED_OUT = "timed_out"
    QUOTA = "quota"
    RATE_LIMIT = "rate_limit"
    AUTH = "auth"
    CONTEXT = "context"
    MODEL_NOT_FOUND = "model_not_found"
    PROVIDER = "provider"
    BUDGET = "budget"
    CRASHED = "crashed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Usage:
    """Tokens and US dollars as this side saw them; `input` includes `cached`. `cost` is None where unknown."""

    input: int = 0
    output: int = 0
    cached: int = 0
    cost: float | None = None
    requests: int = 0


@dataclass(frozen=True)
class AgentEvent:
    """One thing an agent's stream told (claimed, not observed)."""

    kind: Literal["session", "text", "tool", "usage", "error", "end"]
    data: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class AgentTask:
    """What one agent run is asked to do. `base_url` is the gateway as seen from inside the sandbox, the token in its path
    and no version at its end; `token` the phantom key the gateway knows; `model` is `provider/model`."""

    title: str
    prompt: str
    model: str
    base_url: str
    token: str
    role: AgentRole = "coder"


@dataclass(frozen=True)
class AgentCommand:
    """What the runner is to run for an `AgentTask`. `files` (plain name -> content) are laid by the worker into
    `/in/prompt`, read-only: one argument or variable holds at most 128 KiB on Linux, a file any prompt."""

    argv: Sequence[str]
    env: Mapping[str, str]
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class AgentOutcome:
    """How an agent run ended, decided only after its process has ended."""

    reason: EndReason
    sentence: str
    session_id: str | None = None
    final_text: str = ""
    usage: Usage = field(default_factory=Usage)
    tool_calls: int = 0
    events: int = 0
    malformed: int = 0

    @property
    def ok(self) -> bool:
        """True where the agent itself says it ended well; whether it did its work is for others to see."""
        return self.reason is EndReason.DONE


class StreamParser(Protocol):
    """Fed with raw stdout in any chunks; tolerant of garbage, bounded in memory."""

    def feed(self, data: bytes) -> Iterable[AgentEvent]:
        """Events completed by these bytes."""

    def outcome(self, result: RunnerResult, *, changed: bool | None = None) -> AgentOutcome:
        """The outcome, once the process has ended; `changed` is what the sealer saw (None: not asked)."""


class Agent(Protocol):
    """One coding-agent CLI."""

    @property
    def name(self) -> str:
        """What WORKFLOW_AGENT_PROVIDER says."""

    @property
    def dialect(self) -> Dialect | None:
        """How it speaks to the gateway; None where it never does."""

    @property
    def series(self) -> str:
        """The versions whose output it reads, as the beginning of a version; empty where it has none of its own."""

    def command(self, task: AgentTask) -> AgentCommand:
        """The command line and environment for this task; holds no real key."""

    def parser(self, role: AgentRole = "coder") -> StreamParser:
        """A new parser for one run; a coder that used no tool did nothing, a planner or verifier may just answer."""

    def probe(self) -> Sequence[str]:
        """argv that prints the CLI's version and exits 0."""
