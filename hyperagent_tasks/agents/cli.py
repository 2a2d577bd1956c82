"""What the adapters of all CLIs share: the prompt as a file on standard input, the launcher, what makes a run hopeless.

A prompt is never an argument: one argument holds 128 KiB at most, any process can read it, and CLIs read options out of it.
`keep DIR` in a CLI's `setup` makes the place where it writes its own log or transcript a link to `$AGENT_LOG_DIR`, so that
it is there live and after a kill.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from hyperagent_common.errors import BadInput, Fault
from hyperagent_tasks.agents.base import AgentCommand, AgentRole, AgentTask, Dialect
from hyperagent_tasks.agents.stream import CliParser

PROMPT_FILE = "prompt.txt"
PROMPT_DIR = "/in/prompt"
PROMPT_LIMIT = 4 << 20
LOG_DIR = "/logs"
LAUNCH = """prompt=$1; given=${1%/*}; shift
keep() { [ -z "$AGENT_LOG_DIR" ] || [ -e "$1" ] || { mkdir -p "${1%/*}" && ln -s "$AGENT_LOG_DIR" "$1"; }; }
"""
RUN = """
exec "$@" <"$prompt"
"""


class CliAgent:
    """One CLI. A subclass says its program, options, environment, files and setup for a task, and its parser."""

    name: ClassVar[str]
    dialect: ClassVar[Dialect]
    series: ClassVar[str]
    parsed_by: ClassVar[type[CliParser]]
    setup: ClassVar[str] = ""
    environment: ClassVar[Mapping[str, str]] = {}
    prompt_limit: ClassVar[int] = PROMPT_LIMIT

    def __init__(self, *, wrapped: bool = False) -> None:
        self._wrapped = wrapped

    def command(self, task: AgentTask) -> AgentCommand:
        """The command line, environment and files. Raises `BadInput`."""
        _refuse(task, self.prompt_limit)
        model = task.model.partition("/")[2]
        script = f"{LAUNCH}{self.setup.strip()}{RUN}"
        launch = ["sh", "-c", script, self.name, f"{PROMPT_DIR}/{PROMPT_FILE}", *self.program(), *self._options(task, model)]
        files = {PROMPT_FILE: task.prompt.encode("utf-8", "replace"), **self._files(task, model)}
        env = {"AGENT_LOG_DIR": LOG_DIR, **self.environment, **self._env(task, model)}
        return AgentCommand(argv=["ha-agent", *launch] if self._wrapped else launch, env=env, files=files)

    def parser(self, role: AgentRole = "coder") -> CliParser:
        """A new parser for one run."""
        return self.parsed_by(role)

    def probe(self) -> Sequence[str]:
        """argv that prints the CLI's version and exits 0."""
        return [*self.program(), "--version"]

    def program(self) -> list[str]:
        """What runs the CLI."""
        return [self.name]

    def _options(self, task: AgentTask, model: str) -> list[str]:
        raise NotImplementedError

    def _env(self, task: AgentTask, model: str) -> Mapping[str, str]:
        return {}

    def _files(self, task: AgentTask, model: str) -> Mapping[str, bytes]:
        return {}


def _refuse(task: AgentTask, limit: int) -> None:
    """Raise `BadInput` naming everything that would make a run hopeless."""
    provider, slash, model = task.model.partition("/")
    faults = []
    if not (provider and slash and model) or re.search(r"\s", task.model) or model.startswith("-"):
        faults.append(Fault("model", f"{task.model!r} must read provider/model."))
    if not task.prompt.strip():
        faults.append(Fault("prompt", "It is empty."))
    if len(task.prompt) > limit:
        faults.append(Fault("prompt", f"It has {len(task.prompt)} characters; {limit} is the limit."))
    if faults:
        raise BadInput("This agent run cannot be started.", faults=faults, mend="Correct the plan or the settings.")
