"""However many follow, the API goes on answering: streams are counted, and each gives its place back."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from hyperagent_api import serve, stream
from tests.unit.test_api_edges import app, client, submit

__all__ = ["app", "client"]


def test_streams_leave_threads_for_everything_else(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_free", threading.BoundedSemaphore(2))
    paths = [f"/api/v1/workflows/{submit(client).json['id']}/stream", "/api/health/workflows/stream"]
    opened = [client.get(path) for path in paths]
    assert [answer.status_code for answer in opened] == [200, 200]
    for path in paths:
        refused = client.get(path)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
        assert (refused.content_type, "event streams are open" in refused.json["title"]) == ("application/problem+json", True)
    assert client.get("/healthz").status_code == 200
    opened.pop().close()
    again = client.get(paths[0])
    assert again.status_code == 200
    for answer in (*opened, again):
        answer.close()


def test_a_stream_that_was_never_begun_gives_its_place_back(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_free", threading.BoundedSemaphore(1))
    for _ in range(3):
        with client.head("/api/health/workflows/stream") as answer:
            assert answer.status_code == 200


def test_there_are_more_threads_than_streams() -> None:
    assert serve.THREADS - stream.MOST >= 16
