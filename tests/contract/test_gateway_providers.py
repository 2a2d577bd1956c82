"""Providers of every dialect behind the gateway: their own words, whole and broken, as they send them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperagent_tasks.gateway.grants import Observed
from tests.providers import CANARY, TRIES, Rig, Upstream, until
from tests.shapes import GOOD, KEY_HEADER, KINDS, PATHS, REFUSALS, scripts
from tests.wire import DIALECTS, HEADERS, Wire


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """Providers of all dialects."""
    made = Upstream({name: script for dialect in DIALECTS for name, script in scripts(dialect).items()})
    yield made
    made.close()


def _kinds(upstream: Upstream) -> dict[str, str]:
    return {name: next(KINDS[d] for d in DIALECTS if name.startswith(d)) for name in upstream.scripts}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Rig]:
    """A gateway that holds answers back, as it does by default."""
    made = Rig(tmp_path_factory.mktemp("g"), upstream, 20, kinds=_kinds(upstream), suffix="")
    yield made
    made.stop()


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Rig]:
    """A gateway whose patience is over: text is given on at once."""
    made = Rig(tmp_path_factory.mktemp("h"), upstream, 0, kinds=_kinds(upstream), suffix="")
    yield made
    made.stop()


def ask(rig: Rig, dialect: str, name: str, **grant: Any) -> tuple[int, str, Observed]:
    """One request to a provider of a dialect under a grant of its own."""
    token, run = rig.grant(f"{dialect}-{name}", **grant)
    wire = Wire(dialect)
    rig.upstream.asked.pop(f"{dialect}-{name}", None)
    status, text = rig.post(token, json.dumps(wire.body()).encode(), wire.path, **HEADERS[dialect])
    return status, text, rig.client.close(run)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", ["good", "split", "no-last-newline"])
def test_a_stream_passes_byte_for_byte_and_is_metered(rig: Rig, dialect: str, name: str) -> None:
    status, text, seen = ask(rig, dialect, name)
    assert (status, text.rstrip()) == (200, b"".join(GOOD[dialect]).decode().rstrip())
    assert (seen.input, seen.output, seen.cached, seen.estimated, seen.failures) == (900, 50, 400, 0, [])
    assert seen.cost == pytest.approx((500 * 2 + 400 * 0.5 + 50 * 10) / 1e6)
    assert seen.answered == {f"{dialect}-{name}/m1": 1}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_answer_that_has_ended_is_not_waited_for_any_longer(rig: Rig, dialect: str) -> None:
    status, text, seen = ask(rig, dialect, "lingers")
    assert (status, text, seen.failures) == (200, b"".join(GOOD[dialect]).decode(), [])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_providers_key_is_added_in_its_own_header_and_the_agents_headers_stay_here(rig: Rig, dialect: str) -> None:
    ask(rig, dialect, "good")
    head, _, body = rig.upstream.seen[-1].partition(b"\r\n\r\n")
    told = head.decode().lower()
    assert head.split(b" ")[1].decode() == f"/{dialect}-good{PATHS[dialect]}"
    assert KEY_HEADER[dialect] in told
    assert told.count(CANARY) == 1
    for word in ("phantom", "cookie"):
        assert word not in told
    for word in ("anthropic-version: 2023-06-01", "anthropic-beta: context-1m"):
        assert (word in told) is (dialect == "anthropic_messages")
    assert "phantom" not in body.decode()


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", ["cut-once", "garbage-once", "bytes-once", "error-once", "empty-once"])
def test_an_answer_that_breaks_is_asked_for_again_and_the_agent_sees_one_whole_answer(rig: Rig, dialect: str, name: str) -> None:
    status, text, seen = ask(rig, dialect, name)
    assert (status, text) == (200, b"".join(GOOD[dialect]).decode())
    assert (seen.requests, seen.retries, len(seen.failures)) == (1, 1, 1)
    assert (seen.failures[0]["class"] in ("transport", "server"), seen.last_failure) == (True, None)
    assert seen.input >= 900  # the broken answer was paid too


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", ["cut", "error"])
def test_an_answer_that_breaks_each_time_ends_in_a_plain_refusal(rig: Rig, dialect: str, name: str) -> None:
    status, text, seen = ask(rig, dialect, name)
    assert (status, seen.retries) == (400, TRIES - 1)
    assert json.loads(text)["error"]["message"].startswith("provider failed")
    assert seen.answered == {}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", ["cut", "stalls-late"])
def test_after_text_was_given_a_break_ends_in_an_error_event_and_no_tool_call_is_given(
    hasty: Rig, dialect: str, name: str
) -> None:
    status, text, seen = ask(hasty, dialect, name)
    assert (status, "touch x" in text, "llo" in text) == (200, False, True)
    last = json.loads(text.rstrip().rpartition("data: ")[2])
    assert "provider failed" in json.dumps(last)
    assert seen.last_failure == "transport"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_while_a_call_waits_for_its_answers_end_the_agent_sees_that_it_is_under_way(hasty: Rig, dialect: str) -> None:
    status, text, _ = ask(hasty, dialect, "pauses")
    assert (status, "\n\n\n" in text) == (200, True)
    assert [line for line in text.split("\n") if line.strip()] == [
        line for line in b"".join(GOOD[dialect]).decode().split("\n") if line.strip()
    ]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_agent_that_goes_away_ends_its_request_at_the_provider_and_what_was_paid_is_booked(rig: Rig, dialect: str) -> None:
    token, run = rig.grant(f"{dialect}-begins")
    wire = Wire(dialect)
    with rig.connected() as connection:
        connection.request("POST", f"/t/{token}{wire.path}", json.dumps(wire.body()))
        assert until(lambda: f"{dialect}-begins" in rig.upstream.asked, 60)
    assert until(lambda: rig.client.observed(run).statuses != {}, 60)
    seen = rig.client.close(run)
    assert (seen.statuses, seen.failures, seen.input > 0) == ({"None": 1}, [], True)


@pytest.mark.parametrize(("dialect", "kind"), [(d, kind) for d in DIALECTS for kind, _, _ in REFUSALS[d]])
def test_a_refusal_in_the_providers_own_words_has_its_class(rig: Rig, dialect: str, kind: str) -> None:
    status, text, seen = ask(rig, dialect, kind)
    assert (seen.last_failure, 400 <= status < 429) == (kind, True)
    assert json.loads(text)["error"]["message"].startswith("provider failed")
    assert seen.retries == (TRIES - 1 if kind in ("rate_limit", "server") else 0)
    assert (seen.input, seen.output, seen.estimated) == (0, 0, 0)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", ["key-in-stream", "endless-line"])
def test_a_hostile_stream_tells_no_key_and_fills_no_memory(rig: Rig, hasty: Rig, dialect: str, name: str) -> None:
    for gateway in (rig, hasty):
        status, text, seen = ask(gateway, dialect, name)
        assert status == 400
        assert CANARY not in text + json.dumps(seen.failures)
        assert len(text) < 2000


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_answer_without_end_is_given_up_and_fills_no_memory(rig: Rig, dialect: str) -> None:
    before = rig.memory()
    status, text, seen = ask(rig, dialect, "endless")
    assert (status, "provider failed" in text, seen.last_failure) == (400, True, "transport")
    assert rig.memory() - before < 256


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_cli_of_another_dialect_than_its_provider_is_told_so(rig: Rig, dialect: str) -> None:
    other = "gemini" if dialect != "gemini" else "anthropic_messages"
    fault = rig.client.fault(f"{other}-good", "m1", dialect)
    assert fault is not None
    assert "speaks" in fault
    assert rig.client.fault(f"{dialect}-good", "m1", dialect) is None
    token, run = rig.grant(f"{other}-good")
    wire = Wire(dialect)
    asked = len(rig.upstream.seen)
    status, text = rig.post(token, json.dumps(wire.body()).encode(), wire.path)
    assert (status, "does not speak" in text, len(rig.upstream.seen)) == (400, True, asked)
    assert rig.client.close(run).requests == 0


HOSTED: dict[str, dict[str, Any]] = {
    "openai_chat": {
        "tools": [{"type": "web_search"}, {"type": "function", "function": {"name": "mine"}}],
        "web_search_options": {},
    },
    "openai_responses": {
        "tools": [
            {"type": "mcp", "server_url": "https://evil.test"},
            {"type": "web_search"},
            {"type": "function", "name": "mine"},
        ],
        "previous_response_id": "resp_1",
        "store": True,
    },
    "anthropic_messages": {
        "tools": [{"type": "web_fetch_20250910", "name": "web_fetch"}, {"name": "mine"}, {"type": ["x"]}],
        "mcp_servers": [{"url": "https://evil.test"}],
    },
    "gemini": {
        "tools": [{"urlContext": {}, "functionDeclarations": [{"name": "mine"}]}, {"googleSearch": {}}],
        "cachedContent": "cachedContents/1",
    },
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_sandbox_without_network_gets_none_through_the_providers_own_tools(rig: Rig, dialect: str) -> None:
    token, _ = rig.grant(f"{dialect}-good")
    wire = Wire(dialect, more=HOSTED[dialect])
    assert rig.post(token, json.dumps(wire.body()).encode(), wire.path)[0] == 200
    body = rig.upstream.seen[-1].partition(b"\r\n\r\n")[2].decode()
    assert "mine" in body
    for word in (
        "evil.test",
        "web_search",
        "web_fetch",
        "urlContext",
        "googleSearch",
        "cachedContents/1",
        "resp_1",
        '"store": true',
    ):
        assert word not in body


REMOTE: dict[str, dict[str, Any]] = {
    "openai_chat": {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://evil.test/?x"}}]}]
    },
    "openai_responses": {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://evil.test/?x"}]}]},
    "anthropic_messages": {
        "messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://evil.test/?x"}}]}]
    },
    "gemini": {"contents": [{"role": "user", "parts": [{"fileData": {"fileUri": "http://evil.test/?x"}}]}]},
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_provider_is_not_made_to_fetch_a_url_for_the_agent(rig: Rig, dialect: str) -> None:
    token, _ = rig.grant(f"{dialect}-good")
    asked = len(rig.upstream.seen)
    wire = Wire(dialect, more=REMOTE[dialect])
    status, text = rig.post(token, json.dumps(wire.body()).encode(), wire.path)
    assert (status, "no network" in text, len(rig.upstream.seen)) == (400, True, asked)
    inline = json.loads(json.dumps(REMOTE[dialect]).replace("http://evil.test/?x", "data:image/png;base64,AA=="))
    if dialect.startswith("openai"):
        wire = Wire(dialect, more=inline)
        assert rig.post(token, json.dumps(wire.body()).encode(), wire.path)[0] == 200


def test_an_openai_provider_is_asked_in_both_of_its_dialects(rig: Rig) -> None:
    for dialect in ("openai_chat", "openai_responses"):
        assert rig.client.fault("openai_chat-good", "m1", dialect) is None


def test_no_log_holds_a_key(rig: Rig) -> None:
    for path in Path(rig.home).glob("run-*.jsonl"):
        assert CANARY not in path.read_text()
