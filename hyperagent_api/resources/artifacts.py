"""Artifacts: download what a workflow stored."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import flask
from flask_smorest import Blueprint

from hyperagent_api.app import orm
from hyperagent_common.errors import NotFound
from hyperagent_common.models import Artifact

blueprint = Blueprint("artifacts", __name__, url_prefix="/api/v1/artifacts", description="Stored files")


@blueprint.route("/<artifact_id>")
@blueprint.response(200, {"type": "string", "format": "binary"}, content_type="application/octet-stream")
@blueprint.alt_response(404, description="No such artifact")
def download(artifact_id: str) -> flask.Response:
    """Download a file, always as an attachment: what an agent wrote is never shown as a page."""
    row = orm.session.get(Artifact, artifact_id)
    if row is None:
        raise NotFound(f"There is no artifact {artifact_id!r}.")
    chunks = begun(row)
    last = row.name.rsplit("/", 1)[-1].encode("ascii", "replace").decode()
    name = "".join(c if c.isprintable() and c not in '"\\' else "_" for c in last)
    response = flask.Response(chunks, mimetype="application/octet-stream")
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    response.headers["Content-Length"] = str(row.size)
    response.headers["Digest"] = f"sha-256={row.sha256}"
    return response


def begun(row: Artifact) -> Iterator[bytes]:
    """A stored file in chunks, the first of them read: one that is missing or away is a refusal, not a cut answer.

    Raises `NotFound`, `DependencyDown`. The database is let go before: storage may be slow.
    """
    orm.session.remove()
    chunks = flask.current_app.extensions["storage"].stream(row.key)
    return itertools.chain((next(chunks, b""),), chunks)
