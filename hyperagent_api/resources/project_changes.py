"""What becomes of projects: changed, removed, and what their triggers did."""

from __future__ import annotations

import time
from typing import Any

import flask
from flask_smorest import Blueprint
from sqlalchemy import select
from sqlalchemy.orm import Session

from hyperagent_api import bodies, project_bodies
from hyperagent_api.app import orm
from hyperagent_api.resources.projects import PROPERTIES, answered, refusal
from hyperagent_api.resources.workflows import page_limit
from hyperagent_api.schemas import ProjectSchema, TriggerEventSchema, answer
from hyperagent_common import db, projects, queue
from hyperagent_common.errors import BadInput, Fault
from hyperagent_common.forge_models import ProjectChange, TriggerEvent
from hyperagent_common.ids import new_id
from hyperagent_common.models import Project
from hyperagent_common.settings import Settings

blueprint = Blueprint("project_changes", __name__, url_prefix="/api/v1/projects", description="What becomes of projects")
VERSION = {"type": "integer", "description": "Refuse where the project is at another version; If-Match says the same"}
BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"type": "object", "additionalProperties": False, "properties": {**PROPERTIES, "version": VERSION}}
        }
    },
}


@blueprint.route("/<name>", methods=["PATCH"])
@blueprint.doc(requestBody=BODY)
@blueprint.response(200, ProjectSchema)
@blueprint.alt_response(202, schema=ProjectSchema, description="Its host has not answered yet; the project is as it was")
@blueprint.alt_response(404, description="No such project")
@blueprint.alt_response(409, description="Workflows run, or the version is stale; nothing changed")
@blueprint.alt_response(422, description="A fault in the change, or its host found one; nothing changed")
@blueprint.alt_response(503, description="The forge is not in order; nothing changed")
def change(name: str) -> Any:
    """Change a project; `settings` is merged key by key, and null takes a key away."""
    body = bodies.mapping()
    values, version = project_bodies.to_change(body), version_of(body)
    settings: Settings = flask.current_app.extensions["settings"]
    orm.session.remove()
    with db.transaction(settings.db_url) as session:
        project = projects.locked(session, name)
        asked = _asked(session, project, version, values)
        told = answer(ProjectSchema, project, 200 if asked is None else 202, ETag=f'"{project.version}"')
    if asked is None or not _applied(settings, asked, name):
        return told
    return answered(name)


@blueprint.route("/<name>", methods=["DELETE"])
@blueprint.response(204)
@blueprint.alt_response(404, description="No such project")
@blueprint.alt_response(409, description="Workflows run, or the version is stale; nothing changed")
def remove(name: str) -> Any:
    """Take a project out of use; its workflows, patches and repository stay."""
    settings: Settings = flask.current_app.extensions["settings"]
    orm.session.remove()
    with db.transaction(settings.db_url) as session:
        projects.remove(session, name, version_of({}))


@blueprint.route("/<name>/triggers", methods=["GET"])
@blueprint.response(200, TriggerEventSchema(many=True))
@blueprint.alt_response(404, description="No such project")
def fired(name: str) -> Any:
    """What comments and pushes started or did not, the newest first; `outcome`, `after` (an id) and `limit` page."""
    found, _, _ = answered(name)
    asked = flask.request.args
    query = select(TriggerEvent).where(TriggerEvent.project_id == found.id).order_by(TriggerEvent.id.desc())
    if "outcome" in asked:
        if asked["outcome"] not in ("fired", "refused", "passed", "before"):
            raise BadInput("The query is wrong.", faults=[Fault("outcome", "must be fired, refused, passed or before")])
        query = query.where(TriggerEvent.outcome == asked["outcome"])
    if "after" in asked:
        query = query.where(TriggerEvent.id < asked["after"])
    return orm.session.scalars(query.limit(page_limit())).all()


def version_of(body: dict[str, Any]) -> int | None:
    """The version of the body, or of If-Match. Raises `BadInput`."""
    version, faults = bodies.version(body)
    if faults:
        raise BadInput("The change is wrong.", faults=faults)
    return version


def _asked(session: Session, project: Project, version: int | None, values: dict[str, Any]) -> str | None:
    """Apply what needs no host; else the id of the change that the project's host is asked for."""
    same = {"default_branch": project.default_branch, "remote": project.rid}
    values = {key: value for key, value in values.items() if key not in same or same[key] != value}
    projects.check(session, project, version, values)
    if not set(values) & set(projects.HARD):
        projects.apply(session, project.id, version, values)
        return None
    asked = ProjectChange(id=new_id(), project_id=project.id, version=project.version, values=values, created_at=db.now(session))
    session.add(asked)
    app, change_id = flask.current_app.extensions["queue"], asked.id
    message = queue.at_publisher(app, queue.CHANGE, change_id, project.publisher)
    db.after_commit(session, lambda: message.apply_async())
    return change_id


def _applied(settings: Settings, change_id: str, name: str) -> bool:
    """Wait for the host's word. Raises what it found wrong; False where it has not answered."""
    deadline = time.monotonic() + flask.current_app.config["REGISTER_WAIT_SECONDS"]
    while time.monotonic() < deadline:
        with db.transaction(settings.db_url, reading=True) as session:
            asked = session.get_one(ProjectChange, change_id)
        if asked.state == "failed":
            raise refusal(f"The project {name!r} cannot be changed like that.", asked.faults)
        if asked.state == "done":
            return True
        time.sleep(0.1)
    return False
