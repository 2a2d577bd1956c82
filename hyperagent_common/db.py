"""The database: engine, sessions, the database's own clock, and messages that are sent only after a commit."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from importlib import resources
from typing import Any

from sqlalchemy import Engine, ExceptionContext, create_engine, event, func, inspect, literal_column, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker

from hyperagent_common import forge_models, patch_models, upkeep_models
from hyperagent_common.errors import DependencyDown, NotReady, OtherVersion
from hyperagent_common.models import Base

log = logging.getLogger(__name__)
_AFTER_COMMIT = "hyperagent.after_commit"
TABLES = (forge_models, patch_models, upkeep_models)
"""Modules with tables besides `models`: imported, so that `Base.metadata` knows all."""

IDLE_SECONDS = 30
"""A transaction whose process stands still this long (a frozen host, one that was unplugged) is rolled back: its locks would
hold up every other worker. No transaction of ours waits for anything but the database."""
POSTGRES = {
    "connect_timeout": 5,
    "client_encoding": "utf8",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": IDLE_SECONDS * 1000,
    "options": f"-c idle_in_transaction_session_timeout={IDLE_SECONDS}s -c lock_timeout={IDLE_SECONDS + 15}s"
    " -c default_transaction_isolation=read\\ committed",
}
"""How we connect: a server that is gone, a lock that is never let go, are errors in bounded time and not a wait; and each
statement sees what was committed before it, whatever the server's own default is."""
POOL = {"pool_size": 5, "max_overflow": 25}
"""Connections of a process: the API reads and writes with up to 64 threads, each for a moment."""

READ_ONLY = "25006"
"""PostgreSQL's code for a write in a transaction that may only read."""


@lru_cache(maxsize=8)
def engine(url: str) -> Engine:
    """The process's engine for `url`: SQLite in WAL with immediate transactions, PostgreSQL by psycopg 3."""
    if url.startswith("postgres"):
        made = create_engine(driver_url(url), pool_pre_ping=True, connect_args=POSTGRES, **POOL)
        event.listen(made, "handle_error", _distrust)
        return made
    made = create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})
    event.listen(made, "connect", _sqlite_connect)
    event.listen(made, "begin", _sqlite_begin)
    return made


def _distrust(context: ExceptionContext) -> None:
    """A connection whose ping fails is made anew, whatever the driver says of it: where the server ends in the middle of the
    ping, psycopg tells of its own state and not of the server. So is one to a server that takes no writes: it answers every
    ping, but it is a standby, and the primary is elsewhere now."""
    if context.is_pre_ping or getattr(context.original_exception, "sqlstate", None) == READ_ONLY:
        context.is_disconnect = True


def driver_url(url: str) -> str:
    """The URL with our driver named: psycopg 3 for PostgreSQL."""
    return "postgresql+psycopg://" + url.split("://", 1)[1] if url.startswith("postgres") else url


def _sqlite_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves, so that a read-then-write cannot deadlock
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _sqlite_begin(connection: Any) -> None:
    reading = connection.get_execution_options().get("reading")
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


@lru_cache(maxsize=16)
def _maker(url: str, reading: bool) -> sessionmaker[Session]:
    bind = engine(url).execution_options(reading=True) if reading else engine(url)
    return sessionmaker(bind, expire_on_commit=False)


@contextlib.contextmanager
def transaction(url: str, *, reading: bool = False) -> Iterator[Session]:
    """One transaction: commits at the end, rolls back on any error, then sends what `after_commit` hung on it.

    `reading=True` promises to write nothing, so that on SQLite readers do not wait for the writer.
    Raises `DependencyDown` where the database does not answer.
    """
    session = _maker(url, reading)()
    try:
        with session.begin():
            yield session
    except PoolTimeout as error:
        raise used_up() from error
    except DBAPIError as error:
        if is_away(error):
            raise DependencyDown(f"The database does not answer: {error.orig}") from error
        raise
    finally:
        session.close()
    _send(session.info.pop(_AFTER_COMMIT, []))


def used_up() -> DependencyDown:
    """What is told where no connection came free in time."""
    return DependencyDown("Every connection to the database is in use.", mend="Ask again.")


def is_away(error: DBAPIError) -> bool:
    """Whether a driver's error says that the database does not answer, whatever the driver calls it."""
    return isinstance(error, OperationalError) or error.connection_invalidated


def after_commit(session: Session, send: Callable[[], object], *, local: bool = False) -> None:
    """Call `send` once the session's transaction is committed; never if it is not. What is `local` needs no broker."""
    session.info.setdefault(_AFTER_COMMIT, []).append((send, local))


def _send(sends: list[tuple[Callable[[], object], bool]]) -> None:
    """A failed send is no error: the row says what should move, the reconciler sends it again.

    A broker that failed one is not asked for the others: each would hold up the caller as long.
    """
    failed, left = "", 0
    for send, local in sends:
        if failed and not local:
            left += 1
            continue
        try:
            send()
        except Exception as error:
            failed, left = f"{type(error).__name__}: {error}", left + 1
    if failed:
        log.warning("message.unsent", extra={"error": failed, "left": left})


def now(session: Session) -> datetime:
    """The database's clock, the only one leases are measured by."""
    if session.get_bind().dialect.name == "sqlite":
        raw = session.scalar(select(func.strftime("%Y-%m-%d %H:%M:%f", "now")))
        return datetime.strptime(str(raw), "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC)
    moment: datetime = session.execute(select(literal_column("clock_timestamp()"))).scalar_one()
    return moment.astimezone(UTC)


def upgrade(url: str) -> None:
    """Bring the schema to the newest version. Raises `DependencyDown`."""
    from alembic import command

    try:
        command.upgrade(alembic_config(url), "head")
    except OperationalError as error:
        raise DependencyDown(f"The database does not answer: {error.orig}") from error


def alembic_config(url: str) -> Any:
    """Alembic's configuration for our migrations; holds the URL as an attribute, never in a file."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(resources.files("hyperagent_common") / "migrations"))
    config.attributes["url"] = url
    return config


@lru_cache(maxsize=1)
def _head() -> str | None:
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(alembic_config("")).get_current_head()


def require_schema(session: Session) -> None:
    """Raise `OtherVersion` where the schema is not this code's."""
    found = session.scalar(text("SELECT version_num FROM alembic_version"))
    if found != _head():
        mend = "Stop this host, and start it again with the version the others run."
        raise OtherVersion(f"The database schema is at {found or 'nothing'}, this program's is {_head()}.", mend=mend)


def check(url: str) -> None:
    """Raise `DependencyDown` or `NotReady` where the database is away or its schema is not ours."""
    head = _head()
    try:
        with engine(url).connect() as connection:
            names = set(inspect(connection).get_table_names())
            found = connection.scalar(text("SELECT version_num FROM alembic_version")) if names else None
    except DBAPIError as error:
        raise DependencyDown(f"The database does not answer: {error.orig}", mend="Start it, or mend database_url.") from error
    if found != head or not set(Base.metadata.tables) <= names:
        raise NotReady(f"The database schema is at {found or 'nothing'}, not {head}.", mend="Run `hyperagent db upgrade`.")
