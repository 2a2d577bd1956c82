"""A scripted model provider on loopback and a gateway process before it, for tests of what lies between."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hyperagent_common.errors import DependencyDown
from hyperagent_tasks.gateway.client import GatewayClient, new_token
from hyperagent_tasks.gateway.grants import Grant

CANARY = "canary-provider-key-77aa"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
TRIES = 3
Script = Sequence[bytes | float]

SERVE = """
import asyncio, json, sys
from pathlib import Path
from hyperagent_common.settings import Secret
from hyperagent_tasks.gateway.config import GatewayConfig, Provider
from hyperagent_tasks.gateway.purse import Price
from hyperagent_tasks.gateway.server import serve
told = json.loads(sys.argv[1])
made = {n: Provider(n, k, f"{told['base']}/{n}{told['suffix']}", Secret(told["key"]), prices={"m1": Price(2, 10, 0.5)})
        for n, k in told["kinds"].items()}
made["replay"] = Provider("replay", "replay")
times = {"head_timeout": 3.0, "idle_timeout": 2.0, "pause": 0.01, "patience": told["patience"], "beat": 0.5}
asyncio.run(serve(GatewayConfig(Path(told["run_dir"]), made, (Path(told["scenarios"]),), **times)))
"""


def refused(status: int, body: str, *headers: bytes) -> bytes:
    """An error answer with this body."""
    lines = [b"HTTP/1.1 %d No" % status, b"Content-Type: application/json", b"Content-Length: %d" % len(body.encode()), *headers]
    return b"\r\n".join([*lines, b"Connection: close", b"", body.encode()])


def refusal(status: int, message: str, *headers: bytes) -> bytes:
    """An error answer in OpenAI's words."""
    return refused(status, json.dumps({"error": {"message": message}}), *headers)


def halves(first: bytes, second: bytes) -> list[bytes | float]:
    """One answer in two segments."""
    return [first, 0.2, second]


class Upstream:
    """Plays scripts by the first part of the path to whoever asks: bytes are sent, numbers waited (seconds). A list of
    scripts is played one a request, the last for good. `echo` answers 401 with the key."""

    def __init__(self, scripts: Mapping[str, Script | Sequence[Script]]) -> None:
        self.scripts, self.seen = scripts, list[bytes]()
        self.asked: dict[str, int] = {}
        self.now = self.most = 0
        self._lock = threading.Lock()
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
        with connection, suppress(OSError), self._counted():
            connection.settimeout(30)
            asked = _read_request(connection)
            self.seen.append(asked)
            name = asked.split(b"/")[1].decode()
            for part in self._script(name):
                if isinstance(part, bytes):
                    connection.sendall(part)
                else:
                    self._over.wait(part)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Keep `most`: how many were answered at once."""
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            yield
        finally:
            with self._lock:
                self.now -= 1

    def _script(self, name: str) -> Script:
        count = self.asked[name] = self.asked.get(name, 0) + 1
        if name == "echo":
            return [refusal(401, f"Incorrect API key provided: {CANARY}")]
        told = self.scripts[name]
        return told[min(count, len(told)) - 1] if isinstance(told[0], Sequence) and not isinstance(told[0], bytes) else told


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
    """A gateway process before an `Upstream`; without `patience` every answer is given on from its first event. Each
    provider is named as its script; `kinds` says of which kind it is where that is not `openai`."""

    def __init__(
        self, home: Path, upstream: Upstream, patience: float = 0, *, kinds: Mapping[str, str] | None = None, suffix: str = "/v1"
    ) -> None:
        self.home, self.upstream, self.client = home, upstream, GatewayClient(home / "run")
        told = {"run_dir": str(home / "run"), "base": upstream.base, "key": CANARY, "patience": patience, "suffix": suffix}
        told |= {"kinds": kinds or dict.fromkeys([*upstream.scripts, "echo"], "openai"), "scenarios": str(home)}
        self.process = subprocess.Popen([sys.executable, "-c", SERVE, json.dumps(told)], stderr=subprocess.DEVNULL)
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
        said: dict[str, Any] = {"max_requests": 20, "expires_at": expires, "model": "m1", **changes}
        self.client.open(Grant(run, "attempt", sha, "step", "coder", provider, log_path=log, **said))
        return token, run

    def memory(self) -> int:
        """The most memory the gateway has held, in MiB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) >> 10

    def stop(self) -> None:
        """End the gateway."""
        self.process.terminate()
        self.process.wait(15)

    @contextmanager
    def connected(self) -> Iterator[http.client.HTTPConnection]:
        """A connection as an agent has it."""
        host = self.client.base_url(sandbox="process").removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=90)
        try:
            yield connection
        finally:
            connection.close()

    def post(self, token: str, body: bytes, where: str = "", **headers: str) -> tuple[int, str]:
        """One raw request, a chat's where no path below the token is said: status and text; a broken answer is status 0."""
        with self.connected() as connection:
            try:
                target = f"/t/{token}{where}" if where else path(token)
                connection.request("POST", target, body, {"Content-Type": "application/json", **headers})
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
