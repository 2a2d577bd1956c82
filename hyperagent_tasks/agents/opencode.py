"""The adapter of opencode 1.18: one headless run, driven through the gateway, with no key but the phantom token.

`opencode run` would wrap a prompt argument that holds a space in quotes and escape the quotes in it; on standard input it
arrives as it is. Its log lies below its data directory; its database stays in the sandbox's own memory.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hyperagent_tasks.agents.base import AgentEvent, AgentTask, EndReason
from hyperagent_tasks.agents.cli import LOG_DIR, CliAgent
from hyperagent_tasks.agents.jsonl import clean
from hyperagent_tasks.agents.stream import CliParser, count, error_code, mapping, money
from hyperagent_tasks.runners.base import RunnerResult

PROVIDER = "gateway"
TITLE_LIMIT = 80
HEADER_TIMEOUT_MS = 600_000
CHUNK_TIMEOUT_MS = 300_000
READ_ONLY: Mapping[str, Mapping[str, str]] = {"coder": {}, "planner": {"edit": "deny"}, "verifier": {"edit": "deny"}}

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


class OpencodeParser(CliParser):
    """Reads one run of opencode (or of its mock)."""

    _stop: str | None = None

    def _take(self, line: dict[str, object]) -> Iterator[AgentEvent]:
        yield from self._see_session(line.get("sessionID"), mock=line.get("mock") is True)
        kind, part = line.get("type"), mapping(line.get("part"))
        if kind == "text":
            yield self._see_text(part.get("text"), part.get("messageID"))
        elif kind == "tool_use":
            yield self._take_tool(part)
        elif kind == "step_finish":
            yield self._take_step(part)
        elif kind == "error":
            yield self._take_error(mapping(line.get("error")))

    def _take_tool(self, part: dict[str, object]) -> AgentEvent:
        state, name = mapping(part.get("state")), clean(part.get("tool"), 128)
        ok = state.get("status") == "completed" and name != "invalid"
        told = state.get("output") or state.get("error")
        return self._see_tool(part.get("callID"), ok, told if isinstance(told, str) else "", name, state.get("input"))

    def _take_step(self, part: dict[str, object]) -> AgentEvent:
        self._stop = clean(part.get("reason"), 64)
        if self._stop in {"stop", "tool-calls"}:
            self._failure = None  # the session went on after its error
        tokens = mapping(part.get("tokens"))
        cached = count(mapping(tokens.get("cache")).get("read"))
        self._requests += 1
        self._cached += cached
        self._input += count(tokens.get("input")) + cached
        self._output += count(tokens.get("output")) + count(tokens.get("reasoning"))
        self._cost += money(part.get("cost"))
        return self._see_usage(self._stop)

    def _take_error(self, error: dict[str, object]) -> AgentEvent:
        name, data = clean(error.get("name"), 128), mapping(error.get("data"))
        status = count(data.get("statusCode")) or None
        return self._see_error(name, data.get("message"), status, error_code(data.get("responseBody")), name)

    def _unfinished(self, result: RunnerResult) -> tuple[EndReason, str] | None:
        """The CLI says 0, but its last answer did not end by itself."""
        if self._stop == "stop":
            return None
        if self._denied or "auto-reject" in result.stderr_tail:
            return EndReason.REFUSED, "The agent stopped because a permission it asked for was refused."
        if self._stop is None:
            return EndReason.NO_CHANGE, "The agent exited with 0 without a single answer from its model."
        if self._stop == "length":
            return EndReason.CONTEXT, "The model's last answer was cut off at its output limit."
        if self._stop == "content-filter":
            return EndReason.REFUSED, "The provider's content filter stopped the model's answer."
        if self._stop == "tool-calls":
            return EndReason.CRASHED, "The agent exited with 0 in the middle of its work, after a tool call."
        return EndReason.PROVIDER, f"The model's last answer broke off (finish reason: {self._stop or 'none'})."


class OpencodeAgent(CliAgent):
    """opencode."""

    name = "opencode"
    dialect = "openai_chat"
    series = "1.18"
    parsed_by = OpencodeParser
    environment = ENVIRONMENT
    setup = 'keep "${XDG_DATA_HOME:-$HOME/.local/share}/opencode/log"'

    def __init__(self, *, wrapped: bool = False, limits: ModelLimits | None = None) -> None:
        super().__init__(wrapped=wrapped)
        self._limits = limits or ModelLimits()

    def _options(self, task: AgentTask, model: str) -> list[str]:
        return ["run", "--format", "json", "--title", ascii_title(task.title), "-m", f"{PROVIDER}/{model}"]

    def _env(self, task: AgentTask, model: str) -> Mapping[str, str]:
        return {"OPENCODE_CONFIG_CONTENT": json.dumps(self._config(task, model))}

    def _config(self, task: AgentTask, model: str) -> Mapping[str, object]:
        limits = {"context": self._limits.context, "output": self._limits.output}
        return {
            "autoupdate": False,
            "share": "disabled",
            "snapshot": False,
            "compaction": {"auto": False},
            # no "ask" anywhere: it would end a headless run with exit code 0 and nothing done
            "permission": {"*": "allow", "question": "deny", "external_directory": "deny", **READ_ONLY[task.role]},
            "model": f"{PROVIDER}/{model}",
            "small_model": f"{PROVIDER}/{model}",
            "enabled_providers": [PROVIDER],
            "provider": {
                PROVIDER: {
                    "npm": "@ai-sdk/openai-compatible",
                    "options": {
                        "baseURL": f"{task.base_url}/v1",
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
