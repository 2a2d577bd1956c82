"""The Flask application: thin, every request parsed, authorised, one call, answered."""

from __future__ import annotations

import hmac
import ipaddress
from typing import Any

import flask
from celery import Celery
from flask_smorest import Api
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine

from hyperagent_api import problems
from hyperagent_common import __version__, db, queue
from hyperagent_common.models import Base
from hyperagent_common.settings import Settings
from hyperagent_common.storage import Storage, open_storage


class _Reads(SQLAlchemy):
    """Flask-SQLAlchemy's session on the process's own engine, so that what holds for writes (timeouts, pings) holds for reads."""

    def _make_engine(self, bind_key: str | None, options: dict[str, Any], app: flask.Flask) -> Engine:
        settings: Settings = app.extensions["settings"]
        return db.engine(settings.db_url).execution_options(reading=True)


orm = _Reads(metadata=Base.metadata, disable_autonaming=True)
"""Reads go through its session; writes go through `db.transaction`, which sends only after the commit. Both take connections
of one pool: `orm.session.remove()` comes before a transaction, and before whatever waits. On SQLite the session reads
one snapshot until then."""
OPEN_PATHS = ("/healthz", "/readyz")


def create_app(settings: Settings, *, celery: Celery | None = None, storage: Storage | None = None) -> flask.Flask:
    """The application for these settings; `celery` and `storage` may be given by tests."""
    app = flask.Flask(__name__)
    app.config.update(
        MAX_CONTENT_LENGTH=settings.api_body_limit,
        SQLALCHEMY_DATABASE_URI=db.driver_url(settings.db_url),
        API_TITLE="HyperAgent",
        API_VERSION=__version__,
        OPENAPI_VERSION="3.1.0",
        OPENAPI_URL_PREFIX="/api/v1",
        OPENAPI_JSON_PATH="openapi.json",
        REGISTER_WAIT_SECONDS=25.0,
    )
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.extensions["settings"] = settings
    app.extensions["queue"] = celery or queue.make(settings)
    app.extensions["storage"] = storage or open_storage(settings.storage)
    orm.init_app(app)
    _register(app)
    problems.install(app)
    app.before_request(_authorise)
    app.after_request(_headers)
    return app


def _register(app: flask.Flask) -> None:
    from hyperagent_api.resources import (
        actions,
        artifacts,
        drafts,
        forge_health,
        health,
        logs,
        project_changes,
        projects,
        workflows,
    )

    api = Api(app)
    for resource in (projects, project_changes, drafts, workflows, logs, actions, artifacts, health, forge_health):
        api.register_blueprint(resource.blueprint)


def _authorise() -> flask.Response | None:
    """A bearer token where one is set; without one, only requests addressed to loopback (no DNS rebinding)."""
    settings: Settings = flask.current_app.extensions["settings"]
    if "\x00" in flask.request.path or any("\x00" in value for value in flask.request.args.values()):
        return problems.problem(400, "malformed", "The address holds a NUL, which is not text.")
    if settings.api_token and flask.request.path not in OPEN_PATHS:
        given = flask.request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), settings.api_token.reveal().encode()):
            mend = "Send Authorization: Bearer with the token of HYPERAGENT_API_TOKEN."
            refused = problems.problem(401, "unauthorised", "A token is needed.", mend=mend)
            refused.headers["WWW-Authenticate"] = "Bearer"
            return refused
    if not settings.api_token and not _loopback(flask.request.host):
        return problems.problem(403, "forbidden-host", f"This API does not answer for {flask.request.host!r}.")
    return None


def _loopback(host: str) -> bool:
    name = host.rsplit(":", 1)[0].strip("[]") if not host.endswith("]") else host.strip("[]")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _headers(response: Any) -> Any:
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Cache-Control", "no-store")
    return response
