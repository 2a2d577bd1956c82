"""Every refusal as application/problem+json (RFC 9457): one sentence, and every fault with its field."""

from __future__ import annotations

import logging
from typing import Any

import flask
from sqlalchemy.exc import DBAPIError, TimeoutError
from werkzeug.exceptions import HTTPException

from hyperagent_common import db
from hyperagent_common.errors import HyperagentError

log = logging.getLogger(__name__)
TYPES = "https://hyperagent.dev/problems/"


def problem(status: int, kind: str, title: str, *, faults: Any = (), mend: str = "", **more: Any) -> flask.Response:
    """A problem document as a response."""
    body: dict[str, Any] = {"type": TYPES + kind, "title": title, "status": status, **more}
    listed = [f if isinstance(f, dict) else {"field": f.field, "message": f.message} for f in faults]
    if listed:
        body["errors"] = listed
    if mend:
        body["mend"] = mend
    response = flask.jsonify(body)
    response.status_code, response.content_type = status, "application/problem+json"
    return response


def install(app: flask.Flask) -> None:
    """Answer every error of the application as a problem."""
    app.register_error_handler(HyperagentError, _ours)
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(DBAPIError, _database)
    app.register_error_handler(TimeoutError, _used_up)
    app.register_error_handler(Exception, _unforeseen)


def _database(error: DBAPIError) -> flask.Response:
    if not db.is_away(error):
        return _unforeseen(error)
    log.warning("database.down", extra={"error": str(error.orig)})
    return problem(503, "dependency-down", "The database does not answer.", mend="Start it, or mend HYPERAGENT_DATABASE_URL.")


def _used_up(error: TimeoutError) -> flask.Response:
    log.warning("database.connections_used_up", extra={"error": str(error)})
    return _ours(db.used_up())


def _ours(error: HyperagentError) -> flask.Response:
    return problem(error.status, error.type, error.message, faults=error.faults, mend=error.mend)


def _http(error: HTTPException) -> flask.Response:
    status = error.code or 500
    if status < 400:
        return error.get_response()  # type: ignore[return-value]
    if status == 413:
        limit = flask.current_app.config["MAX_CONTENT_LENGTH"]
        told = f"The body is larger than {limit} bytes."
        return problem(413, "body-too-large", told, mend="Send less, or raise HYPERAGENT_API_BODY_LIMIT.")
    kind = (error.name or "error").lower().replace(" ", "-")
    response = problem(status, kind, error.description or error.name)
    if status == 405 and getattr(error, "valid_methods", None):
        response.headers["Allow"] = ", ".join(error.valid_methods)  # type: ignore[attr-defined]
    return response


def _unforeseen(error: Exception) -> flask.Response:
    log.error("request.failed", exc_info=error, extra={"path": flask.request.path})
    return problem(500, "internal", "HyperAgent itself failed; the API's log says where.")
