"""The observed call log: one JSON line for each model request of an agent run, without any key or token."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hyperagent_tasks.gateway.grants import Observed

MAX_TEXT = 64 << 10


class Redactor:
    """Replaces every known secret by `***`."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = sorted({s for s in secrets if len(s) >= 4}, key=len, reverse=True)

    def clean(self, text: str) -> str:
        """The text without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "***").replace(json.dumps(secret)[1:-1], "***")
        return text

    def scrub(self, data: bytes) -> bytes:
        """The bytes without secrets that stand in them as they are."""
        for secret in self._secrets:
            data = data.replace(secret.encode(), b"***")
        return data


def write(path: Path, redactor: Redactor, **entry: Any) -> None:
    """Append one line; the file is readable by its owner only."""
    entry = {"at": datetime.now(UTC).isoformat(), **entry}
    line = redactor.clean(json.dumps(entry, default=str, ensure_ascii=False))
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    try:
        os.write(handle, line.encode("utf-8", "replace") + b"\n")
    finally:
        os.close(handle)


def summed(path: Path, agent_run: str) -> Observed:
    """What a run's lines tell of it: its requests and tokens, where the gateway's own books are gone."""
    seen, costs = Observed(), []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the gateway was killed within this line
        if entry.get("agent_run") == agent_run:
            used = entry["tokens"]
            seen.requests = max(seen.requests, entry["number"])
            seen.input, seen.output = seen.input + used["input"], seen.output + used["output"]
            seen.cached += used["cached"]
            costs.append(entry["cost"])
    seen.cost = None if None in costs or not costs else float(sum(costs))
    return seen


def digest(data: bytes) -> str:
    """sha256 (hex)."""
    return hashlib.sha256(data).hexdigest()


def bounded(text: str) -> str:
    """At most `MAX_TEXT` characters of it, the cut said."""
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + f"... ({len(text) - MAX_TEXT} more)"
