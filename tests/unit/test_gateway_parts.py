"""The gateway's pure parts: failure classes, the dialect's reading, redaction, scenarios."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hyperagent_common.errors import BadInput, NotFound
from hyperagent_common.settings import Secret
from hyperagent_common.settings_schema import PROVIDER_KINDS
from hyperagent_tasks.gateway import calllog, reach, scenario
from hyperagent_tasks.gateway.answering import TEMPTING
from hyperagent_tasks.gateway.book import Gateway
from hyperagent_tasks.gateway.config import GatewayConfig, Provider
from hyperagent_tasks.gateway.dialects import ALL
from hyperagent_tasks.gateway.dialects.base import Asked, Dialect, Said, ToolCall, Usage
from hyperagent_tasks.gateway.dialects.openai_chat import Chat
from hyperagent_tasks.gateway.failures import classify
from hyperagent_tasks.gateway.grants import MAX_FAILURES, Observed
from hyperagent_tasks.gateway.meter import Meter
from hyperagent_tasks.gateway.purse import Price

BUNDLED = Path(scenario.__file__).parent / "scenarios"


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (None, "ServerDisconnected", "transport"),
        (401, "Incorrect API key", "auth"),
        (402, "pay first", "quota"),
        (429, "insufficient_quota", "quota"),
        (429, "slow down", "rate_limit"),
        (429, "Rate limit reached. Add a payment method at example.com/account/billing", "rate_limit"),
        (400, "maximum context length is 8192 tokens", "context"),
        (404, "no such model", "model_not_found"),
        (504, "the request took too long", "server"),
        (502, "context deadline exceeded, content-length mismatch", "server"),
        (418, "teapot", "other"),
    ],
)
def test_a_failure_has_the_class_a_person_would_give_it(status: int | None, message: str, kind: str) -> None:
    assert classify(status, message) == kind


ODD: list[dict[str, Any]] = [
    {},
    {"messages": 7, "input": 7, "contents": 7, "system": 7, "systemInstruction": 7, "instructions": 7},
    {"messages": ["x", None, {"role": "user", "content": 5}], "contents": ["x", None, {"role": "user", "parts": 5}]},
    {"messages": [{"role": "assistant", "tool_calls": "yes"}, {"role": "tool", "content": [1, {"text": 2}]}]},
    {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": [], "content": {"a": 1}}]}]},
    {"input": [{"type": [], "call_id": {}}, {"type": "function_call_output", "output": {"content": 7}}]},
    {"contents": [{"role": "model", "parts": [{"functionCall": 7}]}, {"parts": [{"functionResponse": 7, "text": 7}]}]},
    {"tools": 7, "generationConfig": 7, "max_tokens": "x", "max_output_tokens": True},
    {"tools": [{"function": "write"}, {"function": {"name": 3}}, 4, {"functionDeclarations": 7}]},
]


@pytest.mark.parametrize("dialect", ALL, ids=lambda d: d.name)
@pytest.mark.parametrize("odd", ODD, ids=json.dumps)
def test_any_json_object_can_be_read(dialect: Dialect, odd: dict[str, Any]) -> None:
    assert dict(dialect.read(odd, {}).tools) == {}
    for read in (dialect.usage(odd, None), dialect.told_error(odd)):
        assert read is None
    assert not dialect.finished(odd)
    assert not dialect.calls(odd)
    assert dialect.prepare(odd, "m") is not odd
    json.dumps(dialect.last(odd))


ODD_USAGE: list[Any] = [7, {"prompt_tokens": "7", "prompt_tokens_details": 3}, {"completion_tokens": -1}, {"input_tokens": 1.5}]


@pytest.mark.parametrize("dialect", ALL, ids=lambda d: d.name)
@pytest.mark.parametrize("usage", [*ODD_USAGE, {"promptTokenCount": None, "thoughtsTokenCount": True}, {}])
def test_an_odd_usage_counts_nothing(dialect: Dialect, usage: Any) -> None:
    assert (dialect.usage({"usage": usage, "usageMetadata": usage}, None) or Usage()) == Usage()


@pytest.mark.parametrize("dialect", ALL, ids=lambda d: d.name)
@pytest.mark.parametrize("finish", ["stop", "length", "tool_calls", "content_filter"])
def test_what_a_dialect_writes_it_reads_as_usage_calls_and_an_end(dialect: Dialect, finish: str) -> None:
    calls = (ToolCall("write", {"a": "é"}), ToolCall("patch", {"input": "*** x"}, custom=True))
    said = Said("m", 3, "I write.", calls if finish == "tool_calls" else (), finish, Usage(100, 20, 40))
    whole = dialect.whole(said)
    assert (dialect.usage(whole, None), dialect.finished(whole), dialect.told_error(whole)) == (Usage(100, 20, 40), True, None)
    meter, blocks = Meter(dialect), []
    for event in dialect.events(said):
        blocks += [(block, event) for block in meter.feed(event.block())]
    assert (meter.usage, meter.ended, meter.failed) == (Usage(100, 20, 40), True, None)
    assert b"".join(block.data for block, _ in blocks) == b"".join(event.block() for event in dialect.events(said))
    first = next((n for n, (block, _) in enumerate(blocks) if block.call), None)
    assert first == next((n for n, (_, event) in enumerate(blocks) if event.call), None)
    assert (first is not None) is (finish == "tool_calls")


@pytest.mark.parametrize("dialect", ALL, ids=lambda d: d.name)
def test_an_error_a_dialect_writes_is_read_as_an_error(dialect: Dialect) -> None:
    meter = Meter(dialect)
    assert list(meter.feed(dialect.error_event("provider failed: cut", "transport").block())) == []
    assert meter.failed is not None
    assert dialect.told_error(dialect.error("no", "auth", 401)) is not None


def test_the_turn_is_counted_from_the_history_so_that_a_retry_does_not_move_it() -> None:
    asked = {"role": "assistant", "tool_calls": [{"id": "a"}]}
    told = {"role": "tool", "tool_call_id": "a", "content": "wrote"}
    body = {"messages": [{"role": "user", "content": "x"}, asked, told, {"role": "assistant", "content": "hm"}]}
    read = Chat().read(body, {})
    assert (read.turn, read.last_tool_result) == (1, "wrote")


HISTORIES: dict[str, dict[str, Any]] = {
    "openai_chat": {
        "messages": [
            {"role": "assistant", "tool_calls": [{"id": "call_1_0"}, {"id": "call_1_1"}]},
            {"role": "tool", "tool_call_id": "call_1_0", "content": "one"},
            {"role": "tool", "tool_call_id": "call_1_1", "content": "wrote"},
        ]
    },
    "openai_responses": {
        "input": [
            {"type": "function_call", "call_id": "call_1_0"},
            {"type": "function_call_output", "call_id": "call_1_0", "output": "one"},
            {"type": "function_call", "call_id": "call_1_1"},
            {"type": "function_call_output", "call_id": "call_1_1", "output": [{"type": "input_text", "text": "wrote"}]},
        ]
    },
    "anthropic_messages": {
        "messages": [
            {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_call_1_0"}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_call_1_0", "content": "one"}]},
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_call_1_1", "content": [{"type": "text", "text": "wrote"}]}
                ],
            },
        ]
    },
    "gemini": {
        "contents": [
            {"role": "model", "parts": [{"functionCall": {"name": "a"}}, {"functionCall": {"name": "b"}}]},
            {"role": "user", "parts": [{"functionResponse": {"response": {"output": "wrote"}}}]},
        ]
    },
}


@pytest.mark.parametrize("dialect", ALL, ids=lambda d: d.name)
def test_two_calls_of_one_answer_are_one_turn(dialect: Dialect) -> None:
    read = dialect.read(HISTORIES[dialect.name], {})
    assert read.turn == 1
    assert "wrote" in read.last_tool_result


@pytest.mark.parametrize(
    ("body", "url"),
    [
        ({"a": [{"type": "image_url", "image_url": {"url": "https://x"}}]}, "https://x"),
        ({"a": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}, None),
        ({"a": {"type": "tool_use", "input": {"type": "url", "url": "https://x"}}}, None),
        ({"a": {"arguments": {"image_url": "https://x"}}}, None),
        ({"input": [{"source": {"type": "url", "url": "gs://x"}}]}, "gs://x"),
        ({"tools": [{"parameters": {"image_url": "https://x"}}], "image_url": 7}, None),
    ],
)
def test_a_url_is_seen_where_a_provider_would_fetch_it(body: dict[str, Any], url: str | None) -> None:
    assert reach.named(body) == url


def test_every_secret_is_cut_from_a_log_line_also_where_json_escapes_it(tmp_path: Path) -> None:
    redactor = calllog.Redactor(['key"with\\quotes', "longer-key-1", "longer-key-1-and-more"])
    calllog.write(tmp_path / "log", redactor, a='key"with\\quotes', b="longer-key-1-and-more and longer-key-1")
    line = json.loads((tmp_path / "log").read_text())
    assert (line["a"], line["b"]) == ("***", "*** and ***")


def test_a_log_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        calllog.write(tmp_path / "log", calllog.Redactor([]), a=1)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("kind", "dialects"),
    [
        ("openai", {"openai_chat", "openai_responses"}),
        ("openai-responses", {"openai_responses"}),
        ("anthropic", {"anthropic_messages"}),
        ("gemini", {"gemini"}),
        ("replay", {dialect.name for dialect in ALL}),
    ],
)
def test_each_kind_of_provider_is_asked_in_its_own_dialects(kind: str, dialects: set[str]) -> None:
    assert {dialect.name for dialect in ALL if Provider("p", kind).speaks(dialect.name)} == dialects
    assert kind in PROVIDER_KINDS


def test_a_configuration_does_not_show_its_keys() -> None:
    config = GatewayConfig(Path("run"), {"p": Provider("p", "openai", "", Secret("canary-1234"))}, ())
    assert "canary-1234" not in repr(config)


def test_the_books_of_a_run_stay_bounded() -> None:
    seen = Observed()
    for _ in range(MAX_FAILURES * 2):
        seen.fail("server", "x" * 10_000)
    assert len(seen.failures) == MAX_FAILURES
    assert len(json.dumps(seen.failures)) < 100_000


@pytest.mark.parametrize("path", sorted(BUNDLED.glob("*.yaml")), ids=lambda path: path.name)
def test_every_bundled_scenario_is_right_and_named_as_its_file(path: Path) -> None:
    assert scenario.load(path)
    assert f"scenario: {path.stem}\n" in path.read_text()


@pytest.mark.parametrize("name", ["../demo", "demo/../demo", "", "nothing"])
def test_a_name_that_is_no_scenario_finds_no_file(name: str) -> None:
    with pytest.raises(NotFound):
        scenario.find((BUNDLED,), name, "mend-add", "coder")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "scenario: x",
        "scenario: x\nscripts: {a: {coder: {turns: []}}}",
        "scenario: x\nscripts: {a: {coder: {turns: [{txt: y}]}}}",
        "scenario: x\nscripts: {a: {coder: {turns: [{finish: done}]}}}",
        "scenario: x\nscripts: {a: {coder: {turns: [{}], faults: [{status: 200}]}}}",
        "a: &a [*a]",
        "x: !!python/object/apply:os.system [id]",
    ],
)
def test_a_wrong_scenario_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(BadInput, match=r"x\.yaml"):
        scenario.load(tmp_path / "x.yaml")


def schema(**properties: str) -> dict[str, Any]:
    """A tool's parameters."""
    return {"type": "object", "properties": {name: {"type": kind} for name, kind in properties.items()}}


PRINTF = "printf %s 'it'\"'\"'s' > a.py"


@pytest.mark.parametrize(
    ("tools", "name", "arguments"),
    [
        ({"write": {}, "bash": {}}, "write", {"filePath": "/ws/a.py", "content": "it's"}),
        ({"write_file": {}}, "write_file", {"file_path": "/ws/a.py", "content": "it's"}),
        ({"Write": {}}, "Write", {"file_path": "/ws/a.py", "content": "it's"}),
        ({"bash": {}}, "bash", {"command": PRINTF}),
        (
            {"Bash": schema(command="string", description="string"), "Write": {}},
            "Bash",
            {"command": PRINTF, "description": "scripted"},
        ),
        ({"exec_command": schema(cmd="string", workdir="string")}, "exec_command", {"cmd": PRINTF}),
        ({"shell": schema(command="array")}, "shell", {"command": ["bash", "-lc", PRINTF]}),
    ],
)
def test_a_canonical_write_becomes_a_call_of_what_the_client_offers(
    tools: dict[str, Any], name: str, arguments: dict[str, Any]
) -> None:
    asked = Asked("m", True, 0, tools, "", "", "/ws")
    call = scenario.resolve({"op": "write", "path": "a.py", "content": "it's"}, asked)
    assert (call.name, dict(call.args)) == (name, arguments)


def test_a_budget_in_dollars_needs_a_price_of_the_replay_provider_too(tmp_path: Path) -> None:
    free, priced = Provider("replay", "replay"), Provider("priced", "replay", prices={"demo": Price(1.0, 2.0)})
    gateway = Gateway(GatewayConfig(tmp_path, {"replay": free, "priced": priced}, (BUNDLED,)))
    assert gateway.fault("replay", "demo") is None
    assert "replay/demo has no price" in (gateway.fault("replay", "demo", priced=True) or "")
    assert gateway.fault("priced", "demo", priced=True) is None


@pytest.mark.parametrize(
    "word", ["429", "500", "502", "503", "504", "rate_limit", "Too many requests", "overloaded", "try again"]
)
def test_no_words_that_make_opencode_ask_again_reach_it(word: str) -> None:
    assert TEMPTING.search(f"maximum context length is 6{word}0 tokens")
