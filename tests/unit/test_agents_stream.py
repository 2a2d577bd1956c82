"""opencode's stream to one outcome, on streams recorded from opencode 1.18.33 and on what should never be printed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperagent_tasks.agents.base import AgentOutcome, EndReason
from hyperagent_tasks.agents.jsonl import LINE_LIMIT, JsonLines
from hyperagent_tasks.agents.opencode import OpencodeParser
from hyperagent_tasks.runners.base import Ended, RunnerResult

STREAMS = Path(__file__).with_name("streams")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
STOP: dict[str, Any] = {"type": "step_finish", "part": {"reason": "stop", "tokens": {}}}
REJECTED = "\x1b[93m! \x1b[0mpermission requested: bash (echo a); auto-rejecting\n"


def ended(exit_code: int | None = 0, how: Ended = "exited", stderr: str = "") -> RunnerResult:
    """A runner's result."""
    return RunnerResult(how, exit_code, NOW, NOW, stderr_tail=stderr)


def judge(name: str, result: RunnerResult, *, changed: bool | None = None) -> AgentOutcome:
    """The outcome of a recorded stream."""
    parser = OpencodeParser()
    parser.feed((STREAMS / f"{name}.jsonl").read_bytes())
    return parser.outcome(result, changed=changed)


def parse(*lines: object, role: str = "coder", result: RunnerResult | None = None) -> AgentOutcome:
    """The outcome of lines made here."""
    parser = OpencodeParser(role)  # type: ignore[arg-type]
    for line in lines:
        parser.feed(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
    return parser.outcome(result or ended())


@pytest.mark.parametrize(
    ("name", "exit_code", "reason", "says"),
    [
        ("edit", 0, EndReason.DONE, "finished after 1 tool calls"),
        ("429_then_ok", 0, EndReason.DONE, "finished"),
        ("cut_once", 0, EndReason.DONE, "finished"),
        ("subagent", 0, EndReason.DONE, "finished"),
        ("nothing", 0, EndReason.NO_CHANGE, "used no tool"),
        ("empty", 0, EndReason.NO_CHANGE, "used no tool"),
        ("unknown_tool", 0, EndReason.NO_CHANGE, "tool calls failed"),
        ("bad_arguments", 0, EndReason.NO_CHANGE, "tool calls failed"),
        ("denied", 0, EndReason.REFUSED, "not permitted"),
        ("401", 1, EndReason.AUTH, "refused the key (HTTP 401): scripted fault 401."),
        ("402", 1, EndReason.QUOTA, "no quota left (HTTP 402)"),
        ("404", 1, EndReason.MODEL_NOT_FOUND, "does not have this model"),
        ("budget", 1, EndReason.BUDGET, "budget of this agent run is spent"),
        ("context", 1, EndReason.CONTEXT, "no longer fits"),
        ("malformed", 1, EndReason.PROVIDER, "JSON parsing failed"),
        ("filter", 1, EndReason.REFUSED, "content filter"),
        ("length", 0, EndReason.CONTEXT, "output limit"),
        ("cut", 0, EndReason.PROVIDER, "broke off (finish reason: unknown)"),
    ],
)
def test_a_recorded_stream_ends_for_its_reason(name: str, exit_code: int, reason: EndReason, says: str) -> None:
    outcome = judge(name, ended(exit_code))
    assert (outcome.reason, outcome.malformed) == (reason, 0)
    assert says in outcome.sentence
    assert "hap-secret-token" not in outcome.sentence


def test_usage_text_and_session_are_summed_over_the_steps() -> None:
    outcome = judge("edit", ended())
    assert (outcome.usage.input, outcome.usage.output, outcome.usage.requests) == (200, 40, 2)
    assert outcome.usage.cost == pytest.approx(0.00028)
    assert (outcome.final_text, outcome.session_id, outcome.tool_calls) == ("Done.", "ses_0000", 1)


def test_cached_tokens_are_part_of_the_input() -> None:
    tokens = {"input": 10, "output": 5, "reasoning": 2, "cache": {"read": 90, "write": 0}}
    usage = parse({"type": "step_finish", "part": {"reason": "stop", "tokens": tokens}}).usage
    assert (usage.input, usage.cached, usage.output, usage.cost) == (100, 90, 7, None)


def test_exit_0_after_a_rejected_permission_is_a_refusal() -> None:
    assert judge("rejected", ended(stderr=REJECTED)).reason is EndReason.REFUSED


def test_exit_0_with_an_unchanged_tree_is_no_success() -> None:
    assert judge("edit", ended(), changed=False).reason is EndReason.NO_CHANGE
    assert judge("edit", ended(), changed=True).reason is EndReason.DONE


def test_exit_0_without_a_word_is_no_success() -> None:
    outcome = parse()
    assert outcome.reason is EndReason.NO_CHANGE
    assert "without a single answer" in outcome.sentence


def test_exit_0_in_the_middle_of_the_work_is_no_success() -> None:
    assert parse({"type": "step_finish", "part": {"reason": "tool-calls"}}).reason is EndReason.CRASHED


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("timeout", EndReason.TIMED_OUT),
        ("idle", EndReason.TIMED_OUT),
        ("cancelled", EndReason.CANCELLED),
        ("oom", EndReason.CRASHED),
        ("disk", EndReason.CRASHED),
        ("output", EndReason.CRASHED),
    ],
)
def test_what_the_runner_did_decides_over_what_the_stream_says(how: Ended, reason: EndReason) -> None:
    assert judge("edit", ended(0, how)).reason is reason
    assert judge("killed_in_tool", ended(None, how)).reason is reason


def test_an_error_that_the_session_recovered_from_is_no_failure() -> None:
    error = {"type": "error", "error": {"name": "APIError", "data": {"statusCode": 500, "message": "boom"}}}
    tool = {"type": "tool_use", "part": {"tool": "write", "state": {"status": "completed"}}}
    assert parse(error, tool, STOP).reason is EndReason.DONE
    assert parse(tool, STOP, error, result=ended(1)).reason is EndReason.PROVIDER
    assert parse(tool, STOP, error).reason is EndReason.PROVIDER


def test_a_bad_exit_code_is_told_with_the_last_words_on_stderr() -> None:
    outcome = parse(result=ended(1, stderr="noise\n\x1b[91mError: \x1b[0mYou must provide a message\n"))
    assert outcome.reason is EndReason.CRASHED
    assert outcome.sentence == "The agent CLI exited with 1: Error: You must provide a message."
    assert "never reported an exit code" in parse(result=ended(None)).sentence
    assert judge("edit", ended(137)).reason is EndReason.CRASHED


def test_a_verifier_may_just_answer_but_not_be_silent() -> None:
    text = {"type": "text", "part": {"messageID": "m", "text": "VERDICT: PASS"}}
    assert parse(text, STOP, role="verifier").ok
    assert parse(STOP, role="verifier").reason is EndReason.NO_CHANGE


def test_events_say_what_happened_as_it_comes() -> None:
    parser = OpencodeParser()
    data = (STREAMS / "edit.jsonl").read_bytes()
    events = [event for i in range(0, len(data), 7) for event in parser.feed(data[i : i + 7])]
    assert [e.kind for e in events] == ["session", "text", "tool", "usage", "text", "usage"]
    assert events[0].data == {"session_id": "ses_0000", "mock": False}
    assert events[2].data["ok"] is True
    assert "hello.txt" in str(events[2].data["input"])


def test_garbage_is_counted_and_harms_nothing() -> None:
    deep = b'{"type":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    garbage = [b"\x00\xff\xfe\n", b"[1]\n", b"null\n", b'{"type": \n', deep, b'{"n": ' + b"9" * 5000 + b"}\n"]
    outcome = parse(*garbage, b'{"type":"step_finish","part":{"reason":"stop","cost":NaN,"tokens":{"input":1e999}}}\n')
    assert outcome.malformed == len(garbage)
    assert (outcome.usage.input, outcome.usage.cost) == (0, None)


def test_text_is_fit_for_a_database() -> None:
    text = {"type": "text", "part": {"messageID": "m", "text": "a\x00b\x1b[2J\ud800c\n"}}
    final = parse(text, STOP).final_text
    assert "\x00" not in final
    assert "\x1b" not in final
    assert final.encode().startswith(b"a")


def test_a_line_over_the_limit_is_dropped_and_the_next_is_read() -> None:
    lines = JsonLines(limit=100)
    assert list(lines.feed(b"x" * 60)) == []
    assert list(lines.feed(b"x" * 60)) == []
    assert list(lines.feed(b'x\n{"a": 1}\n{"b"')) == [{"a": 1}]
    assert list(lines.feed(b": 2}")) == []
    assert list(lines.finish()) == [{"b": 2}]
    assert lines.malformed == 1


def test_an_endless_line_is_not_kept() -> None:
    lines = JsonLines()
    for _ in range(LINE_LIMIT // (1 << 20) + 3):
        list(lines.feed(b"x" * (1 << 20)))
    assert lines._size == 0
    assert list(lines.feed(b'\n{"a": 1}\n')) == [{"a": 1}]


SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["type", "part", "error", "data", "state", "tokens", "cache", "reason", "cost", "sessionID", "text", "input"]
    ), inner, max_size=5),
    max_leaves=12,
)  # fmt: skip
KINDS = st.sampled_from(["text", "tool_use", "step_finish", "error", "step_start"])


@given(st.lists(st.fixed_dictionaries({"type": KINDS, "part": SHAPES, "error": SHAPES, "sessionID": SHAPES}), max_size=4))
@settings(max_examples=150, deadline=None)
def test_any_json_of_any_shape_is_taken(lines: list[dict[str, Any]]) -> None:
    outcome = parse(*lines)
    assert outcome.events == len(lines)
    outcome.sentence.encode()
