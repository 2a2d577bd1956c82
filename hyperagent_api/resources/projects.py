"""Projects: register a repository, read what is registered."""

from __future__ import annotations

import re
import time
from typing import Any

import flask
from flask.views import MethodView
from flask_smorest import Blueprint
from marshmallow import ValidationError, fields, validate
from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from hyperagent_api import bodies
from hyperagent_api.app import orm
from hyperagent_api.schemas import ProjectSchema
from hyperagent_common import choices, db, queue, settings_schema
from hyperagent_common.errors import BadInput, Conflict, Fault, NotFound
from hyperagent_common.ids import new_id
from hyperagent_common.models import Project
from hyperagent_common.settings import Settings
from hyperagent_common.states import ProjectState

blueprint = Blueprint("projects", __name__, url_prefix="/api/v1/projects", description="Repositories workflows work on")
FIELDS = ("name", "path", "description", "default_branch", "settings")
SETTINGS: dict[str, tuple[fields.Field[Any], str]] = {
    "agent_provider": (settings_schema.SCHEMA.fields["agent_provider"], "must be auto, opencode or mock"),
    "checks": (fields.List(fields.String(validate=validate.Length(1, 4096))), "must be a list of non-empty strings"),
}
BRANCH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+-]{0,254}\Z")
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}\Z")
BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["name", "path"],
                "additionalProperties": False,
                "properties": {
                    "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_.-]{0,62}$"},
                    "path": {"type": "string", "pattern": "^/"},
                    "description": {"type": "string", "maxLength": 255},
                    "default_branch": {"type": "string", "maxLength": 255},
                    "settings": {"type": "object"},
                },
            }
        }
    },
}


@blueprint.route("")
class Projects(MethodView):
    """All projects."""

    @blueprint.response(200, ProjectSchema(many=True))
    def get(self) -> Any:
        """List the projects by name."""
        return orm.session.scalars(select(Project).order_by(Project.name)).all()

    @blueprint.doc(requestBody=BODY)
    @blueprint.response(201, ProjectSchema)
    @blueprint.alt_response(200, schema=ProjectSchema, description="It was registered already")
    @blueprint.alt_response(202, schema=ProjectSchema, description="No worker has answered yet")
    @blueprint.alt_response(422, description="A fault in the request or in the repository; nothing is stored")
    def post(self) -> Any:
        """Register a project and wait for the worker's word."""
        asked = _read(bodies.mapping())
        settings: Settings = flask.current_app.extensions["settings"]
        try:
            project, fresh = _opened(settings, asked)
        except IntegrityError:  # the same name at the same time: the other request has made it
            project, fresh = _opened(settings, asked)
        if not fresh:
            return project, 200
        return _wait(settings, project.id)


@blueprint.route("/<name>")
class OneProject(MethodView):
    """One project."""

    @blueprint.response(200, ProjectSchema)
    @blueprint.alt_response(404, description="No such project")
    def get(self, name: str) -> Any:
        """Read a project."""
        found = orm.session.scalar(select(Project).where(Project.name == name))
        if found is None:
            raise NotFound(f"There is no project {name!r}.", mend="Register it: `hyperagent project add NAME PATH`.")
        return found


def _read(body: dict[str, Any]) -> dict[str, Any]:
    faults = bodies.unknown(body, FIELDS)
    name, path = body.get("name"), body.get("path")
    if not isinstance(name, str) or not NAME.match(name):
        faults.append(Fault("name", "must be 1 to 63 of a-z 0-9 _ . - and start with a letter or digit"))
    if not isinstance(path, str) or not path.startswith("/") or len(path) > 4096 or not path.isprintable():
        faults.append(Fault("path", "must be the absolute path of a git repository on the worker's host"))
    for key in ("description", "default_branch"):
        if not isinstance(body.get(key, ""), str) or len(body.get(key, "")) > 255:
            faults.append(Fault(key, "must be a string of at most 255 characters"))
    branch = body.get("default_branch")
    if isinstance(branch, str) and branch and (not BRANCH.match(branch) or ".." in branch):
        faults.append(Fault("default_branch", f"{branch!r} cannot name a branch"))
    given = body.get("settings", {})
    if not isinstance(given, dict):
        faults.append(Fault("settings", "must be a mapping"))
    else:
        faults += [fault for key, value in given.items() if (fault := _setting(key, value))]
    if faults:
        raise BadInput("The project is wrong.", faults=faults, mend="Mend every field named and send it again.")
    return body


def _setting(key: str, value: Any) -> Fault | None:
    if key not in SETTINGS and key not in choices.KEYS:
        return Fault(f"settings.{key}", f"unknown field; known are {', '.join(dict.fromkeys([*SETTINGS, *choices.KEYS]))}")
    if key not in SETTINGS:
        return next(iter(choices.faults({key: value}, "settings.", prompts=True)), None)
    field, told = SETTINGS[key]
    try:
        field.deserialize(value)
    except ValidationError:
        return Fault(f"settings.{key}", told)
    return None


def _opened(settings: Settings, asked: dict[str, Any]) -> tuple[Project, bool]:
    with db.transaction(settings.db_url) as session:
        project, fresh = _open(session, asked)
        if fresh:
            app = flask.current_app.extensions["queue"]
            db.after_commit(session, lambda: queue.signature(app, queue.REGISTER, project.id).apply_async())
    return project, fresh


def _open(session: Session, asked: dict[str, Any]) -> tuple[Project, bool]:
    """The project's row and whether a worker must be asked."""
    found = session.scalar(select(Project).where(Project.name == asked["name"]).with_for_update())
    if found is not None and found.state == ProjectState.READY:
        if found.source != asked["path"]:
            raise Conflict(f"The project {found.name!r} is registered from {found.source}.", mend="Use another name.")
        return found, False
    if found is None:
        found = Project(id=new_id(), name=asked["name"], created_at=db.now(session))
        session.add(found)
    found.source, found.state, found.faults = asked["path"], ProjectState.REGISTERING, []
    found.description, found.default_branch = asked.get("description", ""), asked.get("default_branch", "")
    found.settings = asked.get("settings", {})
    return found, True


def _wait(settings: Settings, project_id: str) -> tuple[Project, int]:
    deadline = time.monotonic() + flask.current_app.config["REGISTER_WAIT_SECONDS"]
    while True:
        with db.transaction(settings.db_url, reading=True) as session:
            project = session.get(Project, project_id)
        if project is None:
            raise BadInput("The project cannot be registered; another request was told why.", mend="Send it again.")
        if project.state == ProjectState.READY:
            return project, 201
        if project.state == ProjectState.FAILED:
            _remove(settings, project_id)
            faults = [Fault(entry["field"], entry["message"]) for entry in project.faults]
            raise BadInput(f"The project {project.name!r} cannot be registered.", faults=faults)
        if time.monotonic() > deadline:
            return project, 202
        time.sleep(0.1)


def _remove(settings: Settings, project_id: str) -> None:
    with db.transaction(settings.db_url) as session:
        session.execute(delete(Project).where(Project.id == project_id, Project.state == ProjectState.FAILED))
