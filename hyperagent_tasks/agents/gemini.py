"""The adapter of Gemini CLI 0.61: one headless run in its own stream-json, with no key but the phantom token.

A folder must be trusted for tools to run unasked, and a trusted folder's `.gemini/settings.json` is read. What a repository
must not change is therefore in the runner image's system settings, which win over it (`images/runner/gemini-settings.json`):
Gemini CLI believes such a file only where root owns it and every directory above.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import ClassVar

from hyperagent_tasks.agents.base import AgentEvent, AgentTask, EndReason
from hyperagent_tasks.agents.cli import CliAgent
from hyperagent_tasks.agents.jsonl import clean
from hyperagent_tasks.agents.stream import CliParser, count, mapping
from hyperagent_tasks.runners.base import RunnerResult

SETTINGS_FILE = "settings.json"
ADVICE = "Please wait and try again later."
CODE = re.compile(r'"code": ?(\d{3})\b')
AWAY = ("google_web_search", "web_fetch")
"""Tools that reach out by way of the provider."""
WRITING = ("write_file", "replace")


class GeminiParser(CliParser):
    """Reads one run of Gemini CLI; `result` says how it ended."""

    _status: str | None = None
    _message = 0

    def _take(self, line: dict[str, object]) -> Iterator[AgentEvent]:
        kind = line.get("type")
        if kind == "init":
            yield from self._see_session(line.get("session_id"))
        elif kind == "message" and line.get("role") == "assistant":
            yield self._see_text(line.get("content"), str(self._message))
        elif kind == "tool_use":
            self._message += 1  # text comes in pieces without a number; a tool call ends a message
            self._see_call(line.get("tool_id"), line.get("tool_name"), line.get("parameters"))
        elif kind == "tool_result":
            told = line.get("output") or mapping(line.get("error")).get("message") or ""
            yield self._see_tool(line.get("tool_id"), line.get("status") == "success", told)
        elif kind == "error" and line.get("severity") != "warning":
            yield self._take_error(line.get("message"))
        elif kind == "result":
            yield from self._take_end(line)

    def _take_error(self, message: object) -> AgentEvent:
        """Advice about quotas, which every 429 gets, is cut off: it says nothing of this one."""
        told, advised, _ = clean(message, 64 << 10).partition(ADVICE)
        found = CODE.search(told)
        return self._see_error("error", told.strip(), int(found[1]) if found else 429 if advised else None)

    def _take_end(self, line: dict[str, object]) -> Iterator[AgentEvent]:
        self._status = clean(line.get("status"), 64)
        stats = mapping(line.get("stats"))
        self._input, self._output = count(stats.get("input_tokens")), count(stats.get("output_tokens"))
        self._cached = count(stats.get("cached"))
        yield self._see_usage(self._status)
        error = mapping(line.get("error"))
        if self._status == "success":
            self._failure = None
        elif error or self._failure is None:
            yield self._take_error(error.get("message") or "it ended with an error and did not say which")

    def _unfinished(self, result: RunnerResult) -> tuple[EndReason, str] | None:
        if self._status == "success":
            return None
        return EndReason.CRASHED, "The agent exited with 0 without saying how it ended."


class GeminiAgent(CliAgent):
    """Gemini CLI."""

    name = "gemini"
    dialect = "gemini"
    series = "0.61"
    parsed_by = GeminiParser
    environment: ClassVar[Mapping[str, str]] = {
        "GEMINI_CLI_NO_RELAUNCH": "true",
        "NO_COLOR": "1",
    }
    setup = 'mkdir -p "$HOME/.gemini"; cp "$given/settings.json" "$HOME/.gemini/"; keep "$HOME/.gemini/tmp"'

    def _options(self, task: AgentTask, model: str) -> list[str]:
        return ["-o", "stream-json", "--approval-mode", "yolo", "--skip-trust", "-e", "none", "-m", model]

    def _env(self, task: AgentTask, model: str) -> Mapping[str, str]:
        return {"GEMINI_API_KEY": task.token, "GOOGLE_GEMINI_BASE_URL": task.base_url}

    def _files(self, task: AgentTask, model: str) -> Mapping[str, bytes]:
        refused = [*AWAY, *(() if task.role == "coder" else WRITING)]
        settings = {
            "security": {"auth": {"selectedType": "gemini-api-key"}},
            "privacy": {"usageStatisticsEnabled": False},
            "telemetry": {"enabled": False},
            "general": {"enableAutoUpdate": False, "maxAttempts": 2, "retryFetchErrors": False},
            "tools": {"exclude": refused},
        }
        return {SETTINGS_FILE: json.dumps(settings).encode()}
