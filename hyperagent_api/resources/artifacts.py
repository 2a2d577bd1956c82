"""Artifacts: download what a workflow stored."""

from __future__ import annotations

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
    storage = flask.current_app.extensions["storage"]
    chunks = storage.stream(row.key)
    first = next(chunks, b"")  # so that a missing file is a 404, not a cut stream

    def body() -> object:
        yield first
        yield from chunks

    last = row.name.rsplit("/", 1)[-1].encode("ascii", "replace").decode()
    name = "".join(c if c.isprintable() and c not in '"\\' else "_" for c in last)
    response = flask.Response(body(), mimetype="application/octet-stream")  # type: ignore[arg-type]
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    response.headers["Content-Length"] = str(row.size)
    response.headers["Digest"] = f"sha-256={row.sha256}"
    return response
