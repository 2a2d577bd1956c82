"""The gateway between a hostile agent and a provider that misbehaves byte by byte, on loopback sockets."""

from __future__ import annotations

import hashlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hyperagent_common.errors import DependencyDown
from hyperagent_tasks.gateway.client import GatewayClient, new_token
from hyperagent_tasks.gateway.grants import Grant

CANARY = "canary-provider-key-77aa"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n"
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"hello"}}]}\n\n'
END = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":3}}'
WHOLE = HEAD + TEXT + END + b"\n\ndata: [DONE]\n\n"
TRIES = 3

SERVE = """
import asyncio, sys
from pathlib import Path
from hyperagent_common.settings import Secret
from hyperagent_tasks.gateway.config import GatewayConfig, Provider
from hyperagent_tasks.gateway.server import serve
run_dir, base, key, patience, *names = sys.argv[1:]
made = {n: Provider(n, "openai", f"{base}/{n}/v1", Secret(key)) for n in names}
times = {"head_timeout": 1.0, "idle_timeout": 1.0, "pause": 0.01, "patience": float(patience)}
asyncio.run(serve(GatewayConfig(Path(run_dir), made, (), **times)))
"""


def refusal(status: int, message: str, *headers: bytes) -> bytes:
    """An error answer."""
    body = json.dumps({"error": {"message": message}}).encode()
    lines = [b"HTTP/1.1 %d No" % status, b"Content-Type: application/json", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"Connection: close", b"", body])


def halves(first: bytes, second: bytes) -> list[bytes | float]:
    """One answer in two segments."""
    return [first, 0.2, second]


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


class Upstream:
    """Plays `SCRIPTS` to whoever asks: bytes are sent, numbers waited (seconds). `echo` answers 401 with the key."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.base = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._over = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Stop."""
        self._over.set()
        self._socket.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._play, args=(connection,), daemon=True).start()

    def _play(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(30)
            asked = _read_request(connection)
            self.seen.append(asked)
            name = asked.split(b"/")[1].decode()
            told = [refusal(401, f"Incorrect API key provided: {CANARY}")] if name == "echo" else SCRIPTS[name]
            for part in told:
                if isinstance(part, bytes):
                    connection.sendall(part)
                else:
                    self._over.wait(part)


def _read_request(connection: socket.socket) -> bytes:
    asked = b""
    while b"\r\n\r\n" not in asked:
        asked += connection.recv(65536)
    head, _, body = asked.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


class Rig:
    """A gateway process before an `Upstream`; without `patience` every answer is given on from its first event."""

    def __init__(self, home: Path, upstream: Upstream, patience: float = 0) -> None:
        self.home, self.upstream, self.client = home, upstream, GatewayClient(home / "run")
        names = [*SCRIPTS, "echo"]
        argv = [sys.executable, "-c", SERVE, str(home / "run"), upstream.base, CANARY, str(patience), *names]
        self.process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        for _ in range(200):
            with suppress(DependencyDown):
                self.client.health()
                return
            assert self.process.poll() is None, "the gateway did not start"
            time.sleep(0.05)

    def grant(self, provider: str, **changes: Any) -> tuple[str, str]:
        """A token in force and the id of its agent run."""
        token = new_token()
        run, sha = f"run-{token[-8:]}", hashlib.sha256(token.encode()).hexdigest()
        expires, log = datetime.now(UTC) + timedelta(minutes=5), str(self.home / f"{run}.jsonl")
        said: dict[str, Any] = {"max_requests": 20, "expires_at": expires, **changes}
        self.client.open(Grant(run, "attempt", sha, "step", "coder", provider, "m1", log_path=log, **said))
        return token, run

    @contextmanager
    def connected(self) -> Iterator[http.client.HTTPConnection]:
        """A connection as an agent has it."""
        host = self.client.base_url(sandbox="process").removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=20)
        try:
            yield connection
        finally:
            connection.close()

    def post(self, token: str, body: bytes, **headers: str) -> tuple[int, str]:
        """One raw request: status and text; a broken answer is status 0."""
        with self.connected() as connection:
            try:
                connection.request("POST", path(token), body, {"Content-Type": "application/json", **headers})
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
            except (http.client.HTTPException, OSError) as error:
                return 0, type(error).__name__

    def ask(self, provider: str, *, stream: bool = True, **grant: Any) -> tuple[int, str, Any]:
        """One request under a grant of its own: status, text, what was observed."""
        token, run = self.grant(provider, **grant)
        status, text = self.post(token, request(stream=stream))
        return status, text, self.client.close(run)


def path(token: str) -> str:
    """The path of a chat request."""
    return f"/t/{token}/v1/chat/completions"


def request(**more: Any) -> bytes:
    """A chat request's body."""
    return json.dumps({"model": "m1", "stream": True, "messages": [{"role": "user", "content": "x"}], **more}).encode()


def events(text: str) -> list[Any]:
    """The JSON events of a stream, which must all be whole."""
    told = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
    return [json.loads(each) for each in told if each != "[DONE]"]


def until(true: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether it became true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """A provider that misbehaves."""
    made = Upstream()
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
    assert time.monotonic() - began < 8


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
    assert rig.process.wait(15) == 0
    assert time.monotonic() - began < 7
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
