"""The live log of an attempt: agent events on a bounded Redis stream, for watching only. The artifact is the record."""

from __future__ import annotations

import json
import logging
from typing import Any

import redis

from hyperagent_common import queue
from hyperagent_tasks.agents.base import AgentEvent

log = logging.getLogger(__name__)
MAX_ENTRIES = 5000
KEEP_SECONDS = 86400
MAX_TEXT = 8192


def stream_key(attempt_id: str) -> str:
    """The Redis key of an attempt's live log."""
    return f"hyperagent:log:{attempt_id}"


class LiveLog:
    """Writes agent events to Redis. Redis being away costs the live view, never the step: it is said once."""

    def __init__(self, broker: str, attempt_id: str) -> None:
        self._client = queue.client(broker, seconds=2)
        self._key = stream_key(attempt_id)
        self._down = False

    def write(self, event: AgentEvent) -> None:
        """Append one event."""
        if self._down:
            return
        data = {key: value[:MAX_TEXT] if isinstance(value, str) else value for key, value in event.data.items()}
        text = json.dumps(data, default=str)
        fields: dict[Any, Any] = {"kind": event.kind, "data": text if len(text) <= 16 * MAX_TEXT else '{"truncated": true}'}
        try:
            self._client.xadd(self._key, fields, maxlen=MAX_ENTRIES, approximate=True)
        except redis.RedisError as error:
            self._down = True
            log.warning("live_log.down", extra={"error": str(error)})

    def close(self) -> None:
        """Let the stream expire."""
        try:
            if not self._down:
                self._client.expire(self._key, KEEP_SECONDS)
        except redis.RedisError as error:
            log.warning("live_log.down", extra={"error": str(error)})
        finally:
            self._client.close()
