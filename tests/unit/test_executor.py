"""Commands in the Radicle container, of an engine that is played: all they print comes, and none holds its caller for ever."""

from __future__ import annotations

import json
import socketserver
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from hyperagent_common.errors import PushTimedOut
from hyperagent_tasks.radicle import executor
from hyperagent_tasks.radicle.executor import ContainerExecutor, Done

OUT = b"x" * 100_000 + b"\n"


class Played(BaseHTTPRequestHandler):
    """Answers what one exec asks; where the server is `frozen`, the command never ends."""

    protocol_version = "HTTP/1.1"

    def _say(self, **said: object) -> None:
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        """Version, and how the command ended."""
        self._say(ExitCode=3) if "/exec/" in self.path else self._say(ApiVersion="1.44")

    def do_POST(self) -> None:
        """Create the exec, and start it."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.path.endswith("/start"):
            self._say(Id="e")
            return
        self.wfile.write(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
        time.sleep(0.1)  # what comes with the head would be lost to the client's buffer, as with a real engine
        for kind, data in ((1, OUT), (2, b"no"), (1, b"last")):
            self.wfile.write(struct.pack(">BxxxL", kind, len(data)) + data)
        self.server.ended.wait(60 if self.server.frozen else 0)  # type: ignore[attr-defined]
        self.close_connection = True

    def address_string(self) -> str:
        """A Unix socket has none."""
        return "unix"

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socketserver.ThreadingUnixStreamServer]:
    """The played engine, at DOCKER_HOST."""
    path = tmp_path / "e.sock"
    with socketserver.ThreadingUnixStreamServer(str(path), Played) as server:
        server.ended, server.frozen = threading.Event(), False  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        yield server
        server.ended.set()  # type: ignore[attr-defined]
        server.shutdown()
        thread.join(60)


@pytest.fixture
def radicle(tmp_path: Path, engine: object) -> Iterator[ContainerExecutor]:
    """The executor."""
    made = ContainerExecutor(instance="i", image="r", home=tmp_path, repos=tmp_path, network="none", passphrase="")
    yield made
    made._client.close()


def test_all_that_a_command_printed_comes_apart_with_its_exit_code(radicle: ContainerExecutor) -> None:
    assert radicle.call(["rad"]) == Done(3, (OUT + b"last").decode(), "no")


def test_a_command_of_an_engine_that_stands_still_is_left_in_time(
    radicle: ContainerExecutor, engine: socketserver.ThreadingUnixStreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.frozen = True  # type: ignore[attr-defined]
    monkeypatch.setattr(executor, "LONGEST_SECONDS", 0.5)
    with pytest.raises(PushTimedOut, match="did not end in time"):
        radicle.call(["rad"])
