"""However many follow, the API goes on answering: streams are counted, and each gives its place back."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import flask
import pytest

from hyperagent_api import serve, stream
from hyperagent_common import db, events
from hyperagent_common.events import EventKind
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


@pytest.mark.parametrize("quiet", [True, False])
def test_who_comes_back_to_a_stream_of_health_is_told_what_happened_meanwhile(app: flask.Flask, client: Any, quiet: bool) -> None:
    path = "/api/health/workflows/stream"
    if not quiet:
        submit(client)
    with client.get(path) as answer:
        heard = b"".join(itertools.islice(answer.response, 2)).decode()
    assert "event: health" in heard
    with db.transaction(app.extensions["settings"].db_url) as session:
        missed = events.record(session, EventKind.STEP_RESENT)
    with client.get(path, headers={"Last-Event-ID": heard.partition("id: ")[2].partition("\n")[0]}) as answer:
        told = b"".join(itertools.islice(answer.response, 3)).decode()
    assert told.count("event: step.") == 1
    assert f"id: {missed.id}\nevent: step.resent" in told


def test_there_are_more_threads_than_streams() -> None:
    assert serve.THREADS - stream.MOST >= 16
