"""Which agent CLI: by the name that WORKFLOW_AGENT_PROVIDER says."""

from __future__ import annotations

from typing import Protocol

from hyperagent_common.errors import BadInput
from hyperagent_tasks.agents.base import Agent
from hyperagent_tasks.agents.claude import ClaudeAgent
from hyperagent_tasks.agents.codex import CodexAgent
from hyperagent_tasks.agents.gemini import GeminiAgent
from hyperagent_tasks.agents.mock import MockAgent
from hyperagent_tasks.agents.null import NullAgent
from hyperagent_tasks.agents.opencode import OpencodeAgent


class Factory(Protocol):
    """Makes an adapter; `wrapped` where it runs in the runner image."""

    def __call__(self, *, wrapped: bool = False) -> Agent: ...


AGENTS: dict[str, Factory] = {
    "opencode": OpencodeAgent,
    "claude": ClaudeAgent,
    "codex": CodexAgent,
    "gemini": GeminiAgent,
    "mock": MockAgent,
    "null": NullAgent,
}


def agent(name: str, *, sandbox: str = "process") -> Agent:
    """The adapter called `name` for a runner called `sandbox` (`docker` or `process`). Raises `BadInput`."""
    factory = AGENTS.get(name)
    if factory is None:
        raise BadInput(
            f"There is no agent {name!r}.",
            mend=f"Set WORKFLOW_AGENT_PROVIDER to one of: {', '.join(sorted(AGENTS))}.",
        )
    return factory(wrapped=sandbox == "docker")
