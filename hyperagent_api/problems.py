"""Errors as RFC 9457 problems: one shape for every fault, in the API's answers and in the CLI's `--json` mode."""

from __future__ import annotations

import http
import logging
import uuid
from typing import Any

from flask import Flask, Response, json, request
from flask_smorest import Api
from marshmallow import Schema, fields
from sqlalchemy.exc import DBAPIError, OperationalError
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from hyperagent_common.errors import BadInput, DependencyDown, Fault, HyperagentError, Refused, Transient

log = logging.getLogger(__name__)
MEDIA = "application/problem+json"
TYPE = "urn:hyperagent:problem:"
RETRY_AFTER = "5"


class Malformed(BadInput):
    """The body cannot be read."""

    status = 400
    type = "malformed"


class TooLarge(BadInput):
    """The body is too large."""

    status = 413
    type = "too-large"


class WrongMedia(BadInput):
    """The body has a media type that is not taken."""

    status = 415
    type = "wrong-media-type"


class Unauthorised(Refused):
    """The bearer token is missing or wrong."""

    status = 401
    type = "unauthorised"


class WrongHost(Refused):
    """This server does not answer to that Host name."""

    status = 421
    type = "wrong-host"


class FaultView(Schema):
    """One thing that is wrong."""

    field = fields.String(required=True)
    message = fields.String(required=True)


class Problem(Schema):
    """RFC 9457 problem details, with every fault in `errors` and the next thing to do in `mend`."""

    type = fields.String(required=True)
    title = fields.String(required=True)
    status = fields.Integer(required=True)
    detail = fields.String(required=True)
    instance = fields.String(required=True)
    errors = fields.List(fields.Nested(FaultView), required=True)
    mend = fields.String(required=True)
    trace_id = fields.String(required=True)


def document(error: HyperagentError, *, instance: str = "", trace_id: str = "") -> dict[str, Any]:
    """An error as problem details."""
    return {
        "type": TYPE + error.type,
        "title": (type(error).__doc__ or "").strip().rstrip("."),
        "status": error.status,
        "detail": error.message,
        "instance": instance,
        "errors": [{"field": fault.field, "message": fault.message} for fault in error.faults],
        "mend": error.mend,
        "trace_id": trace_id,
    }


def answer(body: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    """Problem details as a response."""
    return Response(json.dumps(body), status=body["status"], mimetype=MEDIA, headers=headers)


def _ours(error: HyperagentError) -> Response:
    trace_id = uuid.uuid4().hex
    headers: dict[str, str] = {}
    if isinstance(error, Unauthorised):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Transient):
        headers["Retry-After"] = RETRY_AFTER
    if error.status >= 500:
        log.warning("api.problem", extra={"problem": error.type, "detail": error.sentence, "trace_id": trace_id})
    return answer(document(error, instance=request.path, trace_id=trace_id), headers)


def _database(error: DBAPIError) -> Response:
    if not (isinstance(error, OperationalError) or error.connection_invalidated):
        return _unforeseen(error)
    return _ours(DependencyDown("The database does not answer.", mend="Start it; `hyperagent doctor` tells more."))


def _unforeseen(error: BaseException) -> Response:
    trace_id = uuid.uuid4().hex
    log.error("api.failed", exc_info=error, extra={"trace_id": trace_id, "path": request.path})
    return _plain(500, f"Something went wrong here; the log has it under trace id {trace_id}.", trace_id=trace_id)


def _plain(code: int, detail: str, *, errors: list[Fault] | None = None, trace_id: str = "") -> Response:
    status = http.HTTPStatus(code)
    body = document(HyperagentError(detail, faults=errors or []), instance=request.path, trace_id=trace_id)
    kind = status.phrase.lower().replace(" ", "-").replace("'", "")
    return answer({**body, "type": TYPE + kind, "title": status.phrase, "status": code})


def _http(error: HTTPException) -> Response:
    """What Flask, Werkzeug and webargs refuse."""
    if isinstance(error, RequestEntityTooLarge):
        return _ours(too_large())
    if error.code is None or error.code >= 500:
        return _unforeseen(getattr(error, "original_exception", None) or error)
    messages = (getattr(error, "data", None) or {}).get("messages", {})
    if messages:
        return _ours(BadInput("The request is wrong.", faults=flat(messages.get("query", messages))))
    made = _plain(error.code, _SAID.get(error.code, error.description or error.name), trace_id=uuid.uuid4().hex)
    for name, value in error.get_headers(request.environ):
        if name.lower() == "allow":
            made.headers[name] = value
    return made


_SAID = {404: "There is nothing at this address.", 405: "This address does not take that method."}


def too_large(limit: int | None = None) -> TooLarge:
    """The answer to a body over the limit (bytes)."""
    most = limit if limit is not None else request.max_content_length
    return TooLarge(
        f"The body is larger than {most} bytes, the most that is taken.",
        mend="Send less, or raise HYPERAGENT_API_BODY_LIMIT.",
    )


def flat(messages: Any, path: str = "") -> list[Fault]:
    """marshmallow's messages as faults with dotted paths."""
    if isinstance(messages, dict):
        return [f for key, value in messages.items() for f in flat(value, f"{path}.{key}" if path else str(key))]
    if isinstance(messages, list):
        return [f for message in messages for f in flat(message, path)]
    return [Fault(path, str(messages))]


class ProblemApi(Api):
    """flask-smorest whose errors are problems, in what it answers and in what its specification says."""

    ERROR_SCHEMA = Problem

    def handle_http_exception(self, error: HTTPException) -> Response:
        """One place for every refusal that is not ours."""
        return _http(error)

    def _register_responses(self) -> None:
        self.DEFAULT_RESPONSE_CONTENT_TYPE = MEDIA
        super()._register_responses()
        del self.DEFAULT_RESPONSE_CONTENT_TYPE


def register(app: Flask) -> None:
    """Answer our own errors and the database's as problems."""
    app.register_error_handler(HyperagentError, _ours)
    app.register_error_handler(DBAPIError, _database)
