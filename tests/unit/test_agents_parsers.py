"""Recorded streams of Claude Code, Codex CLI and Gemini CLI, each judged as its run must end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperagent_tasks.agents.base import AgentOutcome, EndReason
from hyperagent_tasks.agents.claude import ClaudeParser
from hyperagent_tasks.agents.codex import CodexParser
from hyperagent_tasks.agents.gemini import GeminiParser
from hyperagent_tasks.agents.stream import CliParser
from tests.unit.test_agents_stream import ended

STREAMS = Path(__file__).with_name("streams")
PARSERS: dict[str, type[CliParser]] = {"claude": ClaudeParser, "codex": CodexParser, "gemini": GeminiParser}


def judge(cli: str, name: str, exit_code: int = 0, role: Any = "coder") -> AgentOutcome:
    """The outcome of a recorded stream."""
    parser = PARSERS[cli](role)
    parser.feed((STREAMS / cli / f"{name}.jsonl").read_bytes())
    return parser.outcome(ended(exit_code))


@pytest.mark.parametrize("cli", PARSERS)
def test_a_run_that_went_well_tells_session_text_and_tokens(cli: str) -> None:
    outcome = judge(cli, "edit")
    assert (outcome.reason, outcome.final_text, outcome.tool_calls) == (EndReason.DONE, "Done.", 1)
    assert (outcome.usage.input, outcome.usage.output, outcome.malformed) == (200, 40, 0)
    assert outcome.session_id
    assert judge(cli, "edit", 1).reason is EndReason.CRASHED


@pytest.mark.parametrize(
    ("cli", "name", "exit_code", "reason"),
    [
        ("claude", "401", 1, EndReason.AUTH),
        ("claude", "quota", 1, EndReason.QUOTA),
        ("claude", "budget", 1, EndReason.BUDGET),
        ("claude", "context", 1, EndReason.CONTEXT),
        ("claude", "length", 1, EndReason.CONTEXT),
        ("claude", "filter", 1, EndReason.REFUSED),
        ("claude", "unknown", 0, EndReason.NO_CHANGE),
        ("claude", "empty", 0, EndReason.NO_CHANGE),
        ("claude", "cut", 0, EndReason.DONE),
        ("claude", "500_then_ok", 0, EndReason.DONE),
        ("codex", "401", 1, EndReason.AUTH),
        ("codex", "quota", 1, EndReason.QUOTA),
        ("codex", "429", 1, EndReason.RATE_LIMIT),
        ("codex", "500", 1, EndReason.PROVIDER),
        ("codex", "cut", 1, EndReason.PROVIDER),
        ("codex", "budget", 1, EndReason.BUDGET),
        ("codex", "unknown", 0, EndReason.NO_CHANGE),
        ("codex", "nothing", 0, EndReason.NO_CHANGE),
        ("codex", "forge", 0, EndReason.NO_CHANGE),
        ("gemini", "401", 145, EndReason.AUTH),
        ("gemini", "quota", 173, EndReason.QUOTA),
        ("gemini", "429", 173, EndReason.RATE_LIMIT),
        ("gemini", "500", 244, EndReason.PROVIDER),
        ("gemini", "budget", 144, EndReason.BUDGET),
        ("gemini", "malformed", 1, EndReason.PROVIDER),
        ("gemini", "unknown", 0, EndReason.NO_CHANGE),
        ("gemini", "empty", 0, EndReason.PROVIDER),
    ],
)
def test_a_recorded_stream_ends_for_its_reason(cli: str, name: str, exit_code: int, reason: EndReason) -> None:
    outcome = judge(cli, name, exit_code)
    assert outcome.reason is reason, outcome.sentence
    assert outcome.sentence.endswith(".")
    assert "hap-secret-token" not in outcome.sentence


@pytest.mark.parametrize("cli", PARSERS)
def test_exit_0_without_the_clis_own_word_for_success_is_none(cli: str) -> None:
    lines = (STREAMS / cli / "edit.jsonl").read_bytes().splitlines(keepends=True)
    parser = PARSERS[cli]()
    parser.feed(b"".join(lines[:-1]))
    assert parser.outcome(ended()).reason is EndReason.CRASHED
    assert PARSERS[cli]("verifier").outcome(ended()).reason is EndReason.CRASHED


def test_claudes_error_says_success_and_is_none() -> None:
    end = {"type": "result", "subtype": "success", "is_error": True, "result": "boom", "stop_reason": "end_turn"}
    parser = ClaudeParser()
    parser.feed(json.dumps(end).encode() + b"\n")
    assert parser.outcome(ended()).reason is EndReason.CRASHED


def test_what_a_subagent_says_is_not_the_answer() -> None:
    parser = ClaudeParser("verifier")
    inner = {"type": "text", "text": "approved"}
    said = {"type": "assistant", "parent_tool_use_id": "t1", "message": {"id": "m", "content": [inner]}}
    parser.feed(json.dumps(said).encode() + b"\n")
    assert parser.outcome(ended(1)).final_text == ""


SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["type", "text", "content", "id", "usage", "input_tokens", "message", "status", "error", "stats"]), inner,
        max_size=5,
    ),
    max_leaves=10,
)  # fmt: skip
KINDS = st.sampled_from(
    [
        "assistant",
        "user",
        "system",
        "result",
        "item.completed",
        "turn.completed",
        "turn.failed",
        "error",
        "init",
        "message",
        "tool_use",
    ]
)
KEYS = ["message", "item", "usage", "error", "stats", "session_id", "subtype", "is_error", "content", "status", "tool_id", "role"]


@pytest.mark.parametrize("cli", PARSERS)
@given(lines=st.lists(st.fixed_dictionaries({"type": KINDS}, optional=dict.fromkeys(KEYS, SHAPES)), max_size=4))
@settings(max_examples=100, deadline=None)
def test_any_json_of_any_shape_is_taken(cli: str, lines: list[dict[str, Any]]) -> None:
    parser = PARSERS[cli]()
    for line in lines:
        parser.feed(json.dumps(line).encode() + b"\n")
    outcome = parser.outcome(ended())
    outcome.sentence.encode()
    assert not outcome.ok or outcome.tool_calls
