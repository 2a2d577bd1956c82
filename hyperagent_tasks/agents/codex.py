"""The adapter of Codex CLI 0.169: one headless run of `codex exec --json`, with no key but the phantom token.

Its own sandbox is off: it cannot be nested in ours (Landlock and user namespaces are not there), and ours is the boundary. It
answers to no `Retry-After` of its own: the gateway retries.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import ClassVar

from hyperagent_tasks.agents.base import AgentEvent, AgentTask, EndReason
from hyperagent_tasks.agents.cli import CliAgent
from hyperagent_tasks.agents.jsonl import clean
from hyperagent_tasks.agents.stream import CliParser, count, error_code, mapping
from hyperagent_tasks.runners.base import RunnerResult

IDLE_MS = 600_000
STATUS = re.compile(r"status:? (\d{3})\b")
TOOLS = {"command_execution", "file_change", "mcp_tool_call", "collab_tool_call", "web_search"}
CONFIG = """\
model = {model}
model_provider = "gateway"
approval_policy = "never"
sandbox_mode = "danger-full-access"
web_search = "disabled"
check_for_update_on_startup = false
project_doc_max_bytes = 0

[analytics]
enabled = false

[feedback]
enabled = false

[history]
persistence = "none"

[projects."/workspace"]
trust_level = "untrusted"

[model_providers.gateway]
name = "gateway"
base_url = {base_url}
env_key = "GATEWAY_TOKEN"
wire_api = "responses"
request_max_retries = 1
stream_max_retries = 1
stream_idle_timeout_ms = {idle}
"""


class CodexParser(CliParser):
    """Reads one run of Codex. `turn.completed` is its word for success, `turn.failed` for anything else."""

    _completed = False

    def _take(self, line: dict[str, object]) -> Iterator[AgentEvent]:
        kind, item = line.get("type"), mapping(line.get("item"))
        if kind == "thread.started":
            yield from self._see_session(line.get("thread_id"))
        elif kind == "item.completed":
            yield from self._take_item(item)
        elif kind == "turn.completed":
            yield self._take_end(mapping(line.get("usage")))
        elif kind == "error":
            yield self._take_error(line.get("message"))
        elif kind == "turn.failed":
            self._completed = False
            yield self._take_error(mapping(line.get("error")).get("message"))

    def _take_item(self, item: dict[str, object]) -> Iterator[AgentEvent]:
        kind = item.get("type")
        if kind == "agent_message":
            yield self._see_text(item.get("text"), item.get("id"))
        elif kind in TOOLS:
            ok = item.get("status") == "completed"
            asked = item.get("command") or item.get("changes") or item.get("arguments")
            yield self._see_tool(item.get("id"), ok, item.get("aggregated_output") or "", kind, asked)

    def _take_error(self, message: object) -> AgentEvent:
        """The message of a provider's JSON answer where it is one; else Codex' own sentence with the status in it."""
        told = clean(message, 64 << 10)
        found = STATUS.search(told)
        status = int(found[1]) if found else 400 if told.startswith("{") else None
        return self._see_error("error", _said(told), status, error_code(told))

    def _take_end(self, usage: dict[str, object]) -> AgentEvent:
        self._completed, self._failure = True, None
        self._requests += 1
        self._input += count(usage.get("input_tokens"))
        self._cached += count(usage.get("cached_input_tokens"))
        self._output += count(usage.get("output_tokens"))
        return self._see_usage("completed")

    def _unfinished(self, result: RunnerResult) -> tuple[EndReason, str] | None:
        if self._completed:
            return None
        return EndReason.CRASHED, "The agent exited with 0 without saying that its turn was completed."


class CodexAgent(CliAgent):
    """Codex CLI."""

    name = "codex"
    dialect = "openai_responses"
    series = "0.169"
    parsed_by = CodexParser
    prompt_limit = 1 << 20
    environment: ClassVar[Mapping[str, str]] = {"RUST_LOG": "error"}
    setup = 'mkdir -p "$HOME/.codex"; cp "$given/config.toml" "$HOME/.codex/"; keep "$HOME/.codex/sessions"'

    def _options(self, task: AgentTask, model: str) -> list[str]:
        free = "--dangerously-bypass-approvals-and-sandbox"
        return ["exec", "--json", "--skip-git-repo-check", "--ignore-rules", free, "-m", model, "-"]

    def _env(self, task: AgentTask, model: str) -> Mapping[str, str]:
        return {"GATEWAY_TOKEN": task.token}

    def _files(self, task: AgentTask, model: str) -> Mapping[str, bytes]:
        base_url = json.dumps(f"{task.base_url}/v1")
        return {"config.toml": CONFIG.format(model=json.dumps(model), base_url=base_url, idle=IDLE_MS).encode()}


def _said(body: str) -> str:
    """The message within a provider's JSON answer, else the answer itself."""
    try:
        told = mapping(mapping(json.loads(body)).get("error")).get("message")
    except (ValueError, RecursionError):
        told = None
    return told if isinstance(told, str) else body
