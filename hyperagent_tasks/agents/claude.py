"""The adapter of Claude Code 2.1: one headless run in its own stream-json, with no key but the phantom token.

Nothing of the repository is configuration: no setting sources, no MCP servers, no hooks, no CLAUDE.md (`--safe-mode`). Every
model alias is the one model of the grant: Claude Code would ask a small model for titles and summaries by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hyperagent_tasks.agents.base import AgentEvent, AgentTask, EndReason
from hyperagent_tasks.agents.cli import CliAgent
from hyperagent_tasks.agents.jsonl import clean
from hyperagent_tasks.agents.stream import CliParser, count, mapping, money
from hyperagent_tasks.runners.base import RunnerResult

TIMEOUT_MS = 600_000
ALIASES = ("OPUS", "SONNET", "HAIKU")
READING = ("Bash", "Read")
WRITING = ("Edit", "Write", "NotebookEdit")
"""The only tools it has: none that reaches out by way of the provider, waits for a person or outlives the run."""
SYNTHETIC = "<synthetic>"
ERRORS = {
    "authentication_failed": "auth",
    "model_not_found": "model_not_found",
    "rate_limit": "rate_limit",
    "server_error": "server",
    "connection_failed": "transport",
    "max_output_tokens": "context",
    "prompt_too_long": "context",
    "refusal": "content_filter",
}
"""Claude Code's words for errors in those of `classify.CODES`."""
LIMITS = {"error_max_turns", "error_max_budget_usd"}

ENVIRONMENT = {
    "CLAUDE_CODE_DISABLE_EXPERIMENTAL_BETAS": "1",  # after a 400 it would ask again without each of them
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
    "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",
    "CLAUDE_CODE_MAX_RETRIES": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "API_TIMEOUT_MS": str(TIMEOUT_MS),
    "IS_SANDBOX": "1",  # without it root may not skip permissions; it is the truth
}


class ClaudeParser(CliParser):
    """Reads one run of Claude Code. An error's `result` says `"subtype":"success"` too: `is_error` decides."""

    _result: dict[str, object] | None = None

    def _take(self, line: dict[str, object]) -> Iterator[AgentEvent]:
        yield from self._see_session(line.get("session_id"))
        kind, message = line.get("type"), mapping(line.get("message"))
        if line.get("parent_tool_use_id"):  # a subagent talks to the agent, not to us
            return
        if kind == "assistant" and message.get("model") != SYNTHETIC:
            self._failure = None  # it went on after its error
            yield from self._take_answer(message)
        elif kind == "user":
            yield from self._take_results(message)
        elif kind == "system" and line.get("subtype") == "api_retry":
            yield self._take_error(line.get("error"), line.get("error_status"), "it asks again")
        elif kind == "result":
            yield from self._take_end(line)

    def _take_answer(self, message: dict[str, object]) -> Iterator[AgentEvent]:
        for part in _parts(message):
            if part.get("type") == "text":
                yield self._see_text(part.get("text"), message.get("id"))
            elif part.get("type") == "tool_use":
                self._see_call(part.get("id"), part.get("name"), part.get("input"))

    def _take_results(self, message: dict[str, object]) -> Iterator[AgentEvent]:
        for part in _parts(message):
            if part.get("type") == "tool_result":
                yield self._see_tool(part.get("tool_use_id"), part.get("is_error") is not True, part.get("content"))

    def _take_error(self, error: object, status: object, told: object) -> AgentEvent:
        word = clean(error, 64)
        return self._see_error(word or "error", told, count(status) or None, ERRORS.get(word, ""))

    def _take_end(self, line: dict[str, object]) -> Iterator[AgentEvent]:
        self._result = line
        usage = mapping(line.get("usage"))
        self._cached = count(usage.get("cache_read_input_tokens"))
        self._input = count(usage.get("input_tokens")) + self._cached + count(usage.get("cache_creation_input_tokens"))
        self._output, self._cost = count(usage.get("output_tokens")), money(line.get("total_cost_usd"))
        self._requests = count(line.get("num_turns"))
        stop = clean(line.get("stop_reason"), 64)
        yield self._see_usage(stop)
        self._failure = None
        if line.get("is_error") is not False:
            word = stop if stop in ERRORS else line.get("api_error") or line.get("terminal_reason")
            yield self._take_error(word, line.get("api_error_status"), line.get("result"))

    def _unfinished(self, result: RunnerResult) -> tuple[EndReason, str] | None:
        end = self._result
        if end is None:
            return EndReason.CRASHED, "The agent exited with 0 without saying how it ended."
        if end.get("subtype") in LIMITS:
            return EndReason.BUDGET, f"The agent stopped at a limit of its own: {clean(end.get('subtype'), 64)}."
        if end.get("stop_reason") == "max_tokens":
            return EndReason.CONTEXT, "The model's last answer was cut off at its output limit."
        if end.get("stop_reason") != "end_turn":
            stopped = clean(end.get("stop_reason"), 64) or "none"
            return EndReason.PROVIDER, f"The model's last answer broke off (stop reason: {stopped})."
        return None


class ClaudeAgent(CliAgent):
    """Claude Code."""

    name = "claude"
    dialect = "anthropic_messages"
    series = "2.1"
    parsed_by = ClaudeParser
    environment = ENVIRONMENT
    setup = 'keep "$HOME/.claude/projects"'

    def _options(self, task: AgentTask, model: str) -> list[str]:
        tools = (*READING, *WRITING) if task.role == "coder" else READING
        plain = ["--safe-mode", "--setting-sources", "", "--strict-mcp-config", "--tools", ",".join(tools)]
        stream = ["-p", "--output-format", "stream-json", "--verbose", "--dangerously-skip-permissions"]
        return [*stream, *plain, "--model", model]

    def _env(self, task: AgentTask, model: str) -> Mapping[str, str]:
        aliases = {f"ANTHROPIC_DEFAULT_{alias}_MODEL": model for alias in ALIASES}
        mine = {"ANTHROPIC_SMALL_FAST_MODEL": model, "CLAUDE_CODE_SUBAGENT_MODEL": model, **aliases}
        return {"ANTHROPIC_BASE_URL": task.base_url, "ANTHROPIC_API_KEY": task.token, **mine}


def _parts(message: dict[str, object]) -> list[dict[str, object]]:
    content = message.get("content")
    return [mapping(part) for part in content] if isinstance(content, list) else []
