"""Every dialect at the gateway's replay: requests as the CLIs make them, over a socket."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.test_gateway import Served, start
from tests.wire import DIALECTS, HEADERS, Wire

TURNS = [
    {"text": "I write.", "calls": [{"op": "write", "path": "a.py", "content": "x"}], "usage": {"cached": 60}},
    {"text": "Done.", "expect": {"tool_result_contains": "done"}},
]
FAULTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "limited": {"status": 429, "attempts": 1, "message": "rate limit", "headers": {"Retry-After": "7"}},
    "dropped": {"drop": True, "attempts": 1},
    "cut": {"cut_after": 99, "attempts": 1},
    "garbage": {"malformed": 0, "attempts": 1},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway with a scenario for each fault; `cut-N` cuts after N events."""
    path = tmp_path_factory.mktemp("scenarios")
    faults = {**FAULTS, **{f"cut-{n}": {"cut_after": n, "attempts": 1} for n in range(1, 7)}}
    for name, fault in faults.items():
        script = {"turns": TURNS, "faults": [fault] if fault else []}
        (path / f"{name}.yaml").write_text(yaml.safe_dump({"scenario": name, "scripts": {"*": {"*": script}}}))
    yield from start(tmp_path_factory.mktemp("g"), path, {})


def ask(served: Served, token: str, wire: Wire, rounds: int = 0, *, path: str | None = None) -> tuple[int, str]:
    """One request: status and text; a broken connection is status 0 with what came."""
    host = served.client.base_url(sandbox="process").removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=30)
    try:
        headers = {"Content-Type": "application/json", **HEADERS[wire.dialect]}
        connection.request("POST", f"/t/{token}{path or wire.path}", json.dumps(wire.body(rounds)), headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except http.client.IncompleteRead as error:
        return 0, error.partial.decode()
    except (http.client.HTTPException, OSError):
        return 0, ""
    finally:
        connection.close()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_script_is_played_in_every_dialect(served: Served, dialect: str, stream: bool) -> None:
    wire = Wire(dialect, model="plain", stream=stream)
    token, grant = served.grant(model="plain")
    status, text = ask(served, token, wire)
    assert (status, "filePath" in text, "I write." in text) == (200, True, True)
    status, text = ask(served, token, wire, 1)
    assert (status, "filePath" in text, "Done." in text) == (200, False, True)
    seen = served.client.close(grant.agent_run_id)
    assert (seen.requests, seen.input, seen.output, seen.cached, seen.failures) == (2, 200, 40, 60, [])
    lines = [json.loads(line) for line in Path(grant.log_path).read_text().splitlines()]
    assert [(line["dialect"], line["turn"]) for line in lines] == [(dialect, 0), (dialect, 1)]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_script_that_is_over_is_refused_in_the_dialects_own_words(served: Served, dialect: str) -> None:
    token, grant = served.grant(model="plain")
    status, text = ask(served, token, Wire(dialect, model="plain"), 2)
    assert (status, "no turn 2" in json.loads(text)["error"]["message"]) == (400, True)
    assert served.client.close(grant.agent_run_id).last_failure == "scenario"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_side_request_is_answered_without_moving_the_script(served: Served, dialect: str) -> None:
    token, _ = served.grant(model="plain")
    status, text = ask(served, token, Wire(dialect, model="plain", tools=()))
    assert (status, "Scripted title" in text) == (200, True)


@pytest.mark.parametrize(("dialect", "path"), [("anthropic_messages", "/v1/messages/count_tokens?beta=true"), ("gemini", None)])
def test_tokens_are_counted_without_a_request_to_any_model(served: Served, dialect: str, path: str | None) -> None:
    token, grant = served.grant(model="plain")
    status, text = ask(served, token, Wire(dialect, model="plain"), path=path or "/v1beta/models/plain:countTokens")
    assert status == 200
    assert next(iter(json.loads(text).values())) > 10
    assert served.client.close(grant.agent_run_id).requests == 0


@pytest.mark.parametrize("dialect", DIALECTS)
def test_another_model_than_the_grants_is_refused(served: Served, dialect: str) -> None:
    token, _ = served.grant(model="plain")
    for name in ("another", "..%2Fplain", "plain%3AgenerateContent"):
        assert ask(served, token, Wire(dialect, model=name))[0] == 404
    assert ask(served, token, replace(Wire(dialect, model="plain"), tools=()))[0] == 200


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_scripted_refusal_keeps_its_status_and_headers(served: Served, dialect: str) -> None:
    token, grant = served.grant(model="limited")
    assert [ask(served, token, Wire(dialect, model="limited"))[0] for _ in range(2)] == [429, 200]
    seen = served.client.close(grant.agent_run_id)
    assert ([failure["class"] for failure in seen.failures], seen.last_failure) == (["rate_limit"], None)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", ["dropped", *(f"cut-{n}" for n in range(1, 7))])
def test_a_broken_answer_never_holds_a_tool_call_wherever_it_breaks(served: Served, dialect: str, name: str) -> None:
    """A CLI executes a call as soon as it is whole, and once more when it has asked again."""
    token, grant = served.grant(model=name)
    wire = Wire(dialect, model=name)
    status, text = ask(served, token, wire)
    assert status == 0 or (status == 200 and name != "dropped")  # a dialect with few events is not cut at all
    assert ("filePath" in text) is (status == 200)
    assert "filePath" in (text if status == 200 else ask(served, token, wire)[1])
    seen = served.client.close(grant.agent_run_id)
    assert ([failure["class"] for failure in seen.failures], seen.last_failure) == (["transport"] * (status == 0), None)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_malformed_event_reaches_the_cli_as_it_is(served: Served, dialect: str) -> None:
    token, _ = served.grant(model="garbage")
    assert 'data: {"oops": \n' in ask(served, token, Wire(dialect, model="garbage"))[1]


def test_the_probes_of_the_clis_are_answered(served: Served) -> None:
    token, _ = served.grant(model="plain")
    host = served.client.base_url(sandbox="process").removeprefix("http://")
    probes = [
        ("HEAD", ""),
        ("HEAD", "/"),
        ("HEAD", "/v1/messages"),
        ("GET", "/v1/models?client_version=0"),
        ("GET", "/v1beta/models"),
    ]
    for method, path in [*probes, ("GET", "/v1/models/plain"), ("GET", "/v1beta/models/plain?x=y")]:
        connection = http.client.HTTPConnection(host, timeout=30)
        connection.request(method, f"/t/{token}{path}")
        answer = connection.getresponse()
        assert answer.status == 200, path
        assert method == "HEAD" or "plain" in answer.read().decode()
        connection.close()
