"""What every request must pass before a resource sees it: Host name, token, media type; and headers of every answer."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from flask import Flask, Response, request

from hyperagent_api.context import context
from hyperagent_api.problems import Unauthorised, WrongHost, WrongMedia
from hyperagent_common.settings import Settings

OPEN = frozenset({"/healthz", "/readyz"})
JSON_MEDIA = ("application/json",)
YAML_MEDIA = ("application/yaml", "application/x-yaml", "text/yaml")
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def register(app: Flask) -> None:
    """Check every request, mark every answer."""
    app.before_request(_check)
    app.after_request(_mark)


def _check() -> None:
    settings = context().settings
    if settings.api_token:
        _token(settings)
    else:
        _host(settings)
    media = (*JSON_MEDIA, *YAML_MEDIA)
    if request.method in ("POST", "PUT", "PATCH") and request.mimetype not in media:
        raise WrongMedia(
            f"The media type {request.mimetype or 'of the body is missing; it'!s} is not taken.",
            mend=f"Send Content-Type: {JSON_MEDIA[0]} or {YAML_MEDIA[0]}.",
        )


def _host(settings: Settings) -> None:
    """Without a token only loopback names are answered, else any web page could reach us by DNS rebinding."""
    asked = _name(request.environ.get("HTTP_HOST", ""))
    if asked not in LOOPBACK | {settings.api_host, _name(urlsplit(settings.url).netloc)}:
        raise WrongHost(
            f"This server does not answer to the Host name {asked[:200]!r}.",
            mend="Use the address in HYPERAGENT_API_URL, or set it to the name you use.",
        )


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _token(settings: Settings) -> None:
    if request.path in OPEN:
        return
    kind, _, given = request.headers.get("Authorization", "").partition(" ")
    wanted = settings.api_token.reveal().encode()
    if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("utf-8", "replace"), wanted):
        raise Unauthorised(mend="Send Authorization: Bearer with the token of HYPERAGENT_API_TOKEN.")


def _mark(answer: Response) -> Response:
    for name, value in HEADERS.items():
        answer.headers.setdefault(name, value)
    return answer
