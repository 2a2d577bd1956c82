"""The API and its database: one engine for reads and writes, and what a caller is told where it fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import flask
import psycopg
import pytest
from sqlalchemy import QueuePool, event, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from hyperagent_api.app import orm
from hyperagent_common import db
from tests.unit.test_api_edges import app, client, submit
from tests.unit.test_api_letters import letter

__all__ = ["app", "client", "letter"]


def url(app: flask.Flask) -> str:
    """The application's database."""
    made: str = app.extensions["settings"].db_url
    return made


@pytest.fixture
def used_up(app: flask.Flask) -> Iterator[None]:
    """Every connection of the process is in use, and nobody waits long for one."""
    pool = db.engine(url(app)).pool
    assert isinstance(pool, QueuePool)
    pool._timeout = 0.05
    held = [db.engine(url(app)).connect() for _ in range(pool.size() + pool._max_overflow)]
    yield
    for connection in held:
        connection.close()


def test_reads_are_protected_as_writes_are(app: flask.Flask) -> None:
    with app.app_context():
        assert orm.engine.pool is db.engine(url(app)).pool
        if orm.engine.dialect.name == "postgresql":
            assert orm.session.scalar(text("SHOW lock_timeout")) == "45s"
            assert orm.session.scalar(text("SHOW idle_in_transaction_session_timeout")) == "30s"


def test_a_reader_on_sqlite_does_not_wait_for_a_writer(app: flask.Flask, client: Any) -> None:
    with db.transaction(url(app)) as session:
        session.execute(text("UPDATE project SET description = 'x'"))
        assert client.get("/api/v1/projects").json[0]["description"] == ""
    assert client.get("/api/v1/projects").json[0]["description"] == "x"


@pytest.mark.usefixtures("used_up")
def test_connections_that_are_used_up_are_503_on_reads_and_writes(client: Any) -> None:
    for answer in (client.get("/api/v1/projects"), submit(client)):
        assert (answer.status_code, answer.json["title"]) == (503, "Every connection to the database is in use.")


@pytest.mark.parametrize("app", ["postgres"], indirect=True)  # SQLite is a file, which nobody pings
def test_a_ping_that_raises_anything_is_a_new_connection(app: flask.Flask, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.get("/api/v1/projects").status_code == 200

    def broken(*_: Any) -> bool:
        raise psycopg.ProgrammingError("can't change 'autocommit' now")

    with monkeypatch.context() as patched:
        patched.setattr(db.engine(url(app)).dialect, "do_ping", broken)
        assert client.get("/api/v1/projects").status_code == 200


def test_a_connection_that_ended_in_a_read_is_503_whatever_the_driver_calls_it(app: flask.Flask, client: Any) -> None:
    engine = db.engine(url(app))

    def ended(context: Any) -> None:
        context.is_disconnect = True

    def broken(*_: Any) -> None:
        raise engine.dialect.loaded_dbapi.ProgrammingError("the connection is closed")

    event.listen(engine, "handle_error", ended)
    event.listen(engine, "before_cursor_execute", broken)
    try:
        with app.app_context(), pytest.raises(ProgrammingError):
            orm.session.scalar(text("SELECT 1"))
        assert client.get("/api/v1/projects").status_code == 503
    finally:
        event.remove(engine, "handle_error", ended)
        event.remove(engine, "before_cursor_execute", broken)


@contextlib.contextmanager
def away_after_a_commit(app: flask.Flask) -> Iterator[None]:
    """From the first commit on, the database does not answer."""
    engine, committed = db.engine(url(app)), []

    def commit(_: Any) -> None:
        committed.append(True)

    def begin(_: Any) -> None:
        if committed:
            raise OperationalError("BEGIN", {}, Exception("away"))

    event.listen(engine, "commit", commit)
    event.listen(engine, "begin", begin)
    try:
        yield
    finally:
        event.remove(engine, "commit", commit)
        event.remove(engine, "begin", begin)


def test_what_is_committed_is_answered_without_the_database(app: flask.Flask, client: Any, letter: dict[str, Any]) -> None:
    path = f"/api/v1/workflows/{letter['workflow_id']}"
    with away_after_a_commit(app):
        assert client.post(f"{path}/retry").json["state"] == "running"
    with away_after_a_commit(app):
        assert client.post(f"{path}/pause").headers["ETag"] == f'"{letter["workflow_version"] + 2}"'
    with away_after_a_commit(app):
        made = submit(client)
        assert (made.status_code, [step["key"] for step in made.json["steps"]]) == (202, ["a"])
        assert client.get("/api/v1/workflows").status_code == 503
    with away_after_a_commit(app):
        assert client.patch("/api/v1/projects/p", json={"description": "new"}).json["description"] == "new"


@pytest.mark.parametrize("action", ["replay", "discard"])
def test_a_letter_that_is_closed_is_answered_without_the_database(
    app: flask.Flask, client: Any, letter: dict[str, Any], action: str
) -> None:
    with away_after_a_commit(app):
        told = client.post(f"/api/v1/dead-letters/{letter['id']}/{action}")
    assert (told.status_code, told.json["resolution"], told.json["step"]) == (200, f"{action}ed", "a")
