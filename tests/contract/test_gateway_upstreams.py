"""The gateway between a hostile agent and a provider that misbehaves byte by byte, on loopback sockets."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperagent_common.errors import DependencyDown
from tests.providers import CANARY, HEAD, TRIES, Rig, Upstream, events, halves, refusal, request, until

JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n"
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"hello"}}]}\n\n'
END = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":3}}'
WHOLE = HEAD + TEXT + END + b"\n\ndata: [DONE]\n\n"

QUOTA = refusal(429, "You exceeded your current quota: insufficient_quota")
SCRIPTS: dict[str, list[bytes | float]] = {
    "good": [WHOLE],
    "silent": [30.0],
    "stalls": [HEAD + TEXT, 30.0],
    "cut": [HEAD + TEXT],
    "cut-in-a-line": [HEAD + TEXT + b'data: {"choices":[{"ind'],
    "garbage-line": [HEAD + TEXT + b'data: {"oops": \n\n' + END + b"\n\ndata: [DONE]\n\n"],
    "cut-json": [JSON_HEAD + b'{"choices": [{"message": {"con'],
    "garbage-json": [JSON_HEAD.replace(b"500", b"9") + b"<html>no>"],
    "not-http": [b"\x00\x01\x02 garbage\r\n\r\n"],
    "huge-error": [b"HTTP/1.1 500 No\r\nConnection: close\r\n\r\n" + b"x" * (8 << 20)],
    "moved": [b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"],
    "split-quota": halves(QUOTA[:-30], QUOTA[-30:]),
    "error-in-stream": [HEAD + b'data: {"error":{"message":"Rate limit reached","code":429}}\n\ndata: [DONE]\n\n'],
    "limited": [refusal(429, "Rate limit reached for requests", b"Retry-After: 0")],
    "down": [refusal(503, "The server is overloaded or unavailable, try again later")],
    "late": [refusal(429, "slow down", b"Retry-After: 86400")],
    "slow": [HEAD, *([TEXT, 0.3] * 40), END + b"\n\n"],
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """A provider that misbehaves."""
    made = Upstream(SCRIPTS)
    yield made
    made.close()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Rig]:
    """A gateway before it."""
    made = Rig(tmp_path_factory.mktemp("g"), upstream)
    yield made
    made.process.terminate()
    made.process.wait(15)


def test_the_provider_sees_its_key_and_nothing_of_the_agents_headers(rig: Rig) -> None:
    token, _ = rig.grant("good")
    stolen = {"Authorization": f"Bearer {token}", "x-api-key": token, "Cookie": "a=b", "X-Forwarded-For": "1.2.3.4"}
    assert rig.post(token, request(), **stolen)[0] == 200
    head, _, body = rig.upstream.seen[-1].partition(b"\r\n\r\n")
    assert f"Authorization: Bearer {CANARY}".encode() in head
    assert token.encode() not in head + body
    for name in (b"cookie", b"x-forwarded-for", b"x-api-key"):
        assert name not in head.lower()
    assert json.loads(body)["stream_options"] == {"include_usage": True}


def test_a_whole_stream_passes_byte_for_byte_and_is_metered(rig: Rig) -> None:
    status, text, seen = rig.ask("good")
    assert (status, text.encode()) == (200, WHOLE.removeprefix(HEAD))
    assert (seen.input, seen.output, seen.requests, seen.failures) == (7, 3, 1, [])


@pytest.mark.parametrize("name", ["silent", "not-http", "huge-error"])
def test_a_provider_that_never_answers_properly_is_given_up_in_bounded_time(rig: Rig, name: str) -> None:
    began = time.monotonic()
    status, text, seen = rig.ask(name)
    assert (status, seen.retries) == (400, TRIES - 1)
    assert "provider failed" in text
    assert len(text) < 2000
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("name", ["stalls", "cut"])
def test_a_stream_that_stops_ends_for_the_agent_in_an_error_event(rig: Rig, name: str) -> None:
    status, text, seen = rig.ask(name)
    assert status == 200
    assert "provider failed" in events(text)[-1]["error"]["message"]
    assert seen.last_failure == "transport"


def test_a_gateway_told_to_stop_is_gone_in_seconds_though_a_request_is_under_way(tmp_path: Path, upstream: Upstream) -> None:
    rig = Rig(tmp_path, upstream)
    token, _ = rig.grant("slow")
    asking = threading.Thread(target=rig.post, args=(token, request()))
    asking.start()
    assert until(lambda: rig.client.health()["grants"] == 1)
    time.sleep(0.5)
    began = time.monotonic()
    rig.process.terminate()
    assert rig.process.wait(60) == 0
    assert time.monotonic() - began < 30
    asking.join(10)


def test_sockets_left_by_a_killed_gateway_are_taken_over(tmp_path: Path, upstream: Upstream) -> None:
    first = Rig(tmp_path, upstream)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait(10)
    with pytest.raises(DependencyDown, match="does not answer"):
        first.client.health()
    second = Rig(tmp_path, upstream)
    assert second.ask("good")[0] == 200
    second.process.terminate()
    assert second.process.wait(15) == 0
