"""The adapter of opencode 1.18: one headless run, driven through the gateway, with no key but the phantom token.

The prompt is a file on the CLI's standard input and never an argument: `opencode run` wraps an argument that holds a
space in quotes and escapes the quotes in it, an argument may hold 128 KiB at most, and any process can read it.
opencode writes its log below its data directory; `LAUNCH` makes that place a link to `$OPENCODE_LOG_DIR` before it
starts, so that the log is there live and after a kill, while its database stays in the sandbox's own memory.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hyperagent_common.errors import BadInput, Fault
from hyperagent_tasks.agents.base import AgentCommand, AgentRole, AgentTask
from hyperagent_tasks.agents.stream import OpencodeParser

PROVIDER = "gateway"
PROMPT_FILE = "prompt.txt"
PROMPT_DIR = "/in/prompt"
PROMPT_LIMIT = 4 << 20
TITLE_LIMIT = 80
LOG_DIR = "/logs"
HEADER_TIMEOUT_MS = 600_000
CHUNK_TIMEOUT_MS = 300_000

LAUNCH = """prompt=$1; shift
data=${XDG_DATA_HOME:-$HOME/.local/share}/opencode
[ -z "$OPENCODE_LOG_DIR" ] || [ -e "$data/log" ] || { mkdir -p "$data" && ln -s "$OPENCODE_LOG_DIR" "$data/log"; }
exec "$@" <"$prompt"
"""

ENVIRONMENT = {
    "OPENCODE_LOG_DIR": LOG_DIR,
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "OPENCODE_DISABLE_PROJECT_CONFIG": "1",
    "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    "OPENCODE_DISABLE_EXTERNAL_SKILLS": "1",
    "OPENCODE_DISABLE_CLAUDE_CODE": "1",
    "OPENCODE_DISABLE_SHARE": "1",
    "OPENCODE_EXPERIMENTAL_DISABLE_FILEWATCHER": "1",
    "npm_config_registry": "http://127.0.0.1:1",
}


@dataclass(frozen=True)
class ModelLimits:
    """What opencode may assume of a model, in tokens; the gateway keeps the budget."""

    context: int = 200_000
    output: int = 16_384


class OpencodeAgent:
    """opencode, run once for one `AgentTask`. `wrapped`: under `ha-agent`, which links the sandbox to the gateway."""

    name = "opencode"

    def __init__(self, *, wrapped: bool = False, limits: ModelLimits | None = None) -> None:
        self._wrapped = wrapped
        self._limits = limits or ModelLimits()

    def command(self, task: AgentTask) -> AgentCommand:
        """The command line, environment and prompt file. Raises `BadInput`."""
        _refuse(task)
        _, _, model = task.model.partition("/")
        run = ["run", "--format", "json", "--title", ascii_title(task.title), "-m", f"{PROVIDER}/{model}"]
        launch = ["sh", "-c", LAUNCH, self.name, f"{PROMPT_DIR}/{PROMPT_FILE}", *self._program(), *run]
        env = {**ENVIRONMENT, "OPENCODE_CONFIG_CONTENT": json.dumps(self._config(task, model))}
        prompt = {PROMPT_FILE: task.prompt.encode("utf-8", "replace")}
        return AgentCommand(argv=["ha-agent", *launch] if self._wrapped else launch, env=env, files=prompt)

    def parser(self, role: AgentRole = "coder") -> OpencodeParser:
        """A new parser for one run."""
        return OpencodeParser(role)

    def probe(self) -> Sequence[str]:
        """argv that prints the CLI's version and exits 0."""
        return [*self._program(), "--version"]

    def _program(self) -> list[str]:
        return ["opencode"]

    def _config(self, task: AgentTask, model: str) -> Mapping[str, object]:
        limits = {"context": self._limits.context, "output": self._limits.output}
        return {
            "autoupdate": False,
            "share": "disabled",
            "snapshot": False,
            "compaction": {"auto": False},
            # no "ask" anywhere: it would end a headless run with exit code 0 and nothing done
            "permission": {"*": "allow", "question": "deny", "external_directory": "deny"},
            "model": f"{PROVIDER}/{model}",
            "small_model": f"{PROVIDER}/{model}",
            "enabled_providers": [PROVIDER],
            "provider": {
                PROVIDER: {
                    "npm": "@ai-sdk/openai-compatible",
                    "options": {
                        "baseURL": task.base_url,
                        "apiKey": task.token,
                        "headerTimeout": HEADER_TIMEOUT_MS,
                        "chunkTimeout": CHUNK_TIMEOUT_MS,
                    },
                    "models": {model: {"name": model, "limit": limits}},
                }
            },
        }


def ascii_title(title: str) -> str:
    """`title` as plain ASCII on one line that no option parser mistakes for an option."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    words = " ".join(re.sub(r"[^\w .,:;#+()/-]", " ", plain).split())
    return words.lstrip("-.,:;#+()/ ")[:TITLE_LIMIT].strip() or "step"


def _refuse(task: AgentTask) -> None:
    """Raise `BadInput` naming everything that would make a run hopeless."""
    provider, slash, model = task.model.partition("/")
    faults = []
    if not (provider and slash and model) or re.search(r"\s", task.model):
        faults.append(Fault("model", f"{task.model!r} must read provider/model."))
    if not task.prompt.strip():
        faults.append(Fault("prompt", "It is empty."))
    if len(task.prompt) > PROMPT_LIMIT:
        faults.append(Fault("prompt", f"It has {len(task.prompt)} characters; {PROMPT_LIMIT} is the limit."))
    if faults:
        raise BadInput("This agent run cannot be started.", faults=faults, mend="Correct the plan or the settings.")
