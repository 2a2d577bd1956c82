"""The control socket of the Radicle node: one JSON line in, one out. Reaching it is full control."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hyperagent_common.errors import NodeDown

MAX_ANSWER = 16 << 20
SOCKET_LIMIT = 107
MEND = "Start it: `hyperagent up` (or `hyperagent down` and `up` where it runs without its node)."


def socket_path(home: Path) -> Path:
    """Where the node of this home listens."""
    return home / "node" / "control.sock"


def ask(home: Path, command: str, *, timeout: float = 2.0, **fields: object) -> Any:
    """One question to the node of `home`. Raises `NodeDown` where it does not answer in `timeout` seconds."""
    try:
        with socket.socket(socket.AF_UNIX) as wire:
            wire.settimeout(timeout)
            wire.connect(str(socket_path(home)))
            wire.sendall(json.dumps({"command": command, **fields}).encode() + b"\n")
            answer = json.loads(wire.makefile("rb").readline(MAX_ANSWER))
    except (OSError, ValueError) as error:
        raise NodeDown(f"The Radicle node of {home} does not answer.", mend=MEND) from error
    if isinstance(answer, dict) and "error" in answer:
        raise NodeDown(f"The Radicle node refused {command}: {answer['error']}", mend=MEND)
    return answer


def peers(home: Path) -> int:
    """How many peers the node talks to now."""
    sessions = ask(home, "sessions")
    states = [entry.get("state") for entry in sessions if isinstance(entry, dict)]
    return sum(1 for state in states if isinstance(state, dict) and "connected" in state)


@contextmanager
def subscribed(home: Path, longest: int) -> Iterator[Iterator[dict[str, Any]]]:
    """The node's events from now on, one `{}` a second where nothing happens. Raises `NodeDown` when the node goes away."""
    with socket.socket(socket.AF_UNIX) as wire:
        try:
            wire.settimeout(2.0)
            wire.connect(str(socket_path(home)))
            wire.sendall(b'{"command":"subscribe"}\n')
            wire.settimeout(1.0)
        except OSError as error:
            raise NodeDown(f"The Radicle node of {home} does not answer.", mend=MEND) from error
        yield _events(wire, home, longest)


def _events(wire: socket.socket, home: Path, longest: int) -> Iterator[dict[str, Any]]:
    buffer = b""
    while True:
        try:
            data = wire.recv(65536)
        except TimeoutError:
            yield {}
            continue
        except OSError as error:
            raise NodeDown(f"The Radicle node of {home} hung up.", mend=MEND) from error
        *lines, buffer = (buffer + data).split(b"\n")
        if not data or len(buffer) > longest:
            raise NodeDown(f"The Radicle node of {home} hung up, or said more in one line than {longest} bytes.", mend=MEND)
        yield from filter(None, map(_event, lines))


def _event(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
