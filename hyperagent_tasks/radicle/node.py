"""The control socket of the Radicle node: one JSON line in, one out. Reaching it is full control."""

from __future__ import annotations

import json
import socket
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
