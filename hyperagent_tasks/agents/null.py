"""The null agent: one shell command that changes a file, or approves it, for benchmarks and tests of all around an agent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from hyperagent_tasks.agents.base import AgentCommand, AgentEvent, AgentOutcome, AgentRole, AgentTask, Dialect, EndReason
from hyperagent_tasks.runners.base import RunnerResult

SCRIPT = r"printf 'def add(a, b):\n    return a + b\n# %s\n' $(date +%s%N) >calc.py"
NONCE = re.compile(r'The nonce is "(\w+)"')


class NullParser:
    """Keeps what was printed as the final text; the exit code is all there is besides."""

    def __init__(self) -> None:
        self._printed = b""

    def feed(self, data: bytes) -> Iterable[AgentEvent]:
        """No events."""
        self._printed = (self._printed + data)[-65536:]
        return ()

    def outcome(self, result: RunnerResult, *, changed: bool | None = None) -> AgentOutcome:
        """Done where it exited 0."""
        if result.ok:
            text = self._printed.decode("utf-8", "replace")
            return AgentOutcome(EndReason.DONE, "The null agent did what it does.", final_text=text)
        return AgentOutcome(EndReason.CRASHED, f"The null agent ended: {result.ended}, {result.exit_code}.")


class NullAgent:
    """Changes calc.py as coder; as verifier it approves whatever it is shown."""

    name = "null"
    dialect: Dialect | None = None
    series = ""

    def __init__(self, *, wrapped: bool = False) -> None:
        self._wrapped = wrapped

    def command(self, task: AgentTask) -> AgentCommand:
        """The same command whatever the task."""
        nonce = NONCE.search(task.prompt) if task.role == "verifier" else None
        if nonce is None:
            return AgentCommand(argv=["sh", "-c", SCRIPT], env={})
        said = {"nonce": nonce[1], "decision": "approved", "summary": "The null agent approves whatever it is shown."}
        return AgentCommand(argv=["printf", "%s", json.dumps(said)], env={})

    def parser(self, role: AgentRole = "coder") -> NullParser:
        """A parser that reads next to nothing."""
        return NullParser()

    def probe(self) -> Sequence[str]:
        """It is always there."""
        return ["true"]
