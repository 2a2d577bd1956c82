"""Reads of the API go through Flask-SQLAlchemy's session; writes, which may send messages, through `db.transaction`.

Flask-SQLAlchemy adopts the common metadata and the process's one engine, marked as reading: a request that only looks
never waits for SQLite's writer and can never write (a flush is refused). What writes opens `db.transaction`, which sends
its messages after its own commit, so no message can leave before its row is there.
"""

from __future__ import annotations

from typing import Any, NoReturn

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, event

from hyperagent_common import db
from hyperagent_common.models import Base


class ReadingSQLAlchemy(SQLAlchemy):
    """Flask-SQLAlchemy on the engine that the rest of the process uses."""

    def _make_engine(self, bind_key: str | None, options: dict[str, Any], app: Flask) -> Engine:
        made: Engine = db.engine(app.config["SQLALCHEMY_DATABASE_URI"]).execution_options(reading=True)
        return made


reads = ReadingSQLAlchemy(metadata=Base.metadata, session_options={"autoflush": False})


def _refuse(*_: object) -> NoReturn:
    raise RuntimeError("the API's reading session was asked to write; use db.transaction")


event.listen(reads.session, "before_flush", _refuse)
