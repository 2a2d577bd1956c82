"""The null agent: one shell command that changes a file, for benchmarks of everything around an agent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hyperagent_tasks.agents.base import AgentCommand, AgentEvent, AgentOutcome, AgentRole, AgentTask, Dialect, EndReason
from hyperagent_tasks.runners.base import RunnerResult

SCRIPT = r"printf 'def add(a, b):\n    return a + b\n# %s\n' $(date +%s%N) >calc.py"


class NullParser:
    """Reads nothing; the exit code is all there is."""

    def feed(self, data: bytes) -> Iterable[AgentEvent]:
        """No events."""
        return ()

    def outcome(self, result: RunnerResult, *, changed: bool | None = None) -> AgentOutcome:
        """Done where it exited 0."""
        if result.ok:
            return AgentOutcome(EndReason.DONE, "The null agent changed a file.")
        return AgentOutcome(EndReason.CRASHED, f"The null agent ended: {result.ended}, {result.exit_code}.")


class NullAgent:
    """Changes calc.py."""

    name = "null"
    dialect: Dialect | None = None
    series = ""

    def __init__(self, *, wrapped: bool = False) -> None:
        self._wrapped = wrapped

    def command(self, task: AgentTask) -> AgentCommand:
        """The same command whatever the task."""
        return AgentCommand(argv=["sh", "-c", SCRIPT], env={})

    def parser(self, role: AgentRole = "coder") -> NullParser:
        """A parser that reads nothing."""
        return NullParser()

    def probe(self) -> Sequence[str]:
        """It is always there."""
        return ["true"]
