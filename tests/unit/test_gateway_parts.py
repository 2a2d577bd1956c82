"""The gateway's pure parts: failure classes, the dialect's reading, redaction, scenarios."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hyperagent_common.errors import BadInput, NotFound
from hyperagent_common.settings import Secret
from hyperagent_tasks.gateway import calllog, scenario
from hyperagent_tasks.gateway.config import GatewayConfig, Provider
from hyperagent_tasks.gateway.dialects import openai_chat as chat
from hyperagent_tasks.gateway.grants import MAX_FAILURES, Observed, classify

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


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"messages": 7},
        {"messages": ["x", None, {"role": "user", "content": 5}]},
        {"messages": [{"role": "assistant", "tool_calls": "yes"}, {"role": "tool", "content": [1, {"text": 2}]}]},
        {"tools": 7},
        {"tools": [{"function": "write"}, {"function": {"name": 3}}, 4]},
    ],
    ids=json.dumps,
)
def test_any_json_object_can_be_read(odd: dict[str, Any]) -> None:
    assert chat.read(odd).tools == frozenset()


@pytest.mark.parametrize("usage", [7, {"prompt_tokens": "7", "prompt_tokens_details": 3}, {"completion_tokens": -1}])
def test_an_odd_usage_counts_nothing(usage: Any) -> None:
    assert (chat.usage({"usage": usage}) or chat.Usage()) == chat.Usage()


def test_the_turn_is_counted_from_the_history_so_that_a_retry_does_not_move_it() -> None:
    asked = {"role": "assistant", "tool_calls": [{"id": "a"}]}
    told = {"role": "tool", "tool_call_id": "a", "content": "wrote"}
    body = {"messages": [{"role": "user", "content": "x"}, asked, told, {"role": "assistant", "content": "hm"}]}
    assert (chat.read(body).turn, chat.read(body).last_tool_result) == (1, "wrote")


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


@pytest.mark.parametrize(
    ("tools", "name", "arguments"),
    [
        ({"write", "bash"}, "write", {"filePath": "/ws/a.py", "content": "it's"}),
        ({"write_file"}, "write_file", {"file_path": "/ws/a.py", "content": "it's"}),
        ({"bash"}, "bash", {"command": "printf %s 'it'\"'\"'s' > a.py", "description": "scripted"}),
    ],
)
def test_a_canonical_write_becomes_a_call_of_what_the_client_offers(
    tools: set[str], name: str, arguments: dict[str, Any]
) -> None:
    asked = chat.Asked("m", True, 0, frozenset(tools), "", "", "/ws")
    assert scenario.resolve({"op": "write", "path": "a.py", "content": "it's"}, asked) == (name, arguments)
