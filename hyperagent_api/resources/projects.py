"""Projects: register a repository, read what is registered."""

from __future__ import annotations

import time
from typing import Any

import flask
from flask.views import MethodView
from flask_smorest import Blueprint
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from hyperagent_api import bodies, project_bodies
from hyperagent_api.app import orm
from hyperagent_api.schemas import ProjectSchema
from hyperagent_common import db, projects, queue
from hyperagent_common.errors import BadInput, Conflict, Fault, HyperagentError, NotFound, NotReady
from hyperagent_common.ids import new_id
from hyperagent_common.models import Project
from hyperagent_common.settings import Settings
from hyperagent_common.states import ProjectState

blueprint = Blueprint("projects", __name__, url_prefix="/api/v1/projects", description="Repositories workflows work on")
PROPERTIES = {
    "description": {"type": "string", "maxLength": 255, "description": "At most 255 bytes of UTF-8"},
    "default_branch": {"type": "string", "maxLength": 255},
    "remote": {"type": "string", "pattern": "^rad:(//)?z", "description": "The Radicle id that patches go to"},
    "settings": {"type": "object"},
}
BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["name", "source"],
                "additionalProperties": False,
                "properties": {
                    "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_.-]{0,62}$"},
                    "source": {
                        "type": "string",
                        "pattern": "^(/|rad:)",
                        "description": "A path on the worker's host, or rad:z...",
                    },
                    "path": {"type": "string", "pattern": "^/", "deprecated": True},
                    **PROPERTIES,
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
        return orm.session.scalars(select(Project).where(Project.removed_at.is_(None)).order_by(Project.name)).all()

    @blueprint.doc(requestBody=BODY)
    @blueprint.response(201, ProjectSchema)
    @blueprint.alt_response(200, schema=ProjectSchema, description="It was registered already")
    @blueprint.alt_response(202, schema=ProjectSchema, description="No worker has answered yet")
    @blueprint.alt_response(409, description="The name or the repository is taken by another project")
    @blueprint.alt_response(422, description="A fault in the request or in the repository; nothing is stored")
    @blueprint.alt_response(503, description="The forge is not in order, each reason named; nothing is stored")
    def post(self) -> Any:
        """Register a project from a local repository or a Radicle id, and wait for the worker's word."""
        asked = project_bodies.to_register(bodies.mapping())
        settings: Settings = flask.current_app.extensions["settings"]
        try:
            project, fresh = _opened(settings, asked)
        except IntegrityError:  # the same name at the same time: the other request has made it
            project, fresh = _opened(settings, asked)
        if not fresh:
            return project, 200
        return _wait(settings, project)


@blueprint.route("/<name>", methods=["GET"])
@blueprint.response(200, ProjectSchema)
@blueprint.alt_response(404, description="No such project")
def read(name: str) -> Any:
    """Read a project."""
    return answered(name)


def answered(name: str) -> Any:
    """A project with its version as ETag. Raises `NotFound`."""
    orm.session.expire_all()
    found = orm.session.scalar(select(Project).where(Project.name == name, Project.removed_at.is_(None)))
    if found is None:
        raise NotFound(f"There is no project {name!r}.", mend="Register it: `hyperagent project add NAME PATH`.")
    return found, 200, {"ETag": f'"{found.version}"'}


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
    removed = found is not None and found.removed_at is not None
    past = found is not None and projects.began(found)
    if found is not None and (past or found.state == ProjectState.REGISTERING) and found.source != asked["source"]:
        raise _other_source(found)
    if found is not None and found.state == ProjectState.READY and not removed:
        _same(found, asked)
        return found, False
    _free(session, asked)
    if found is None:
        found = Project(id=new_id(), name=asked["name"], created_at=db.now(session))
        session.add(found)
    found.source, found.state, found.faults = asked["source"], ProjectState.REGISTERING, []
    found.description, found.default_branch = asked.get("description", ""), asked.get("default_branch", "")
    found.settings, found.rid, found.removed_at = (
        asked.get("settings", {}),
        asked["remote"] or (found.rid if past else None),
        None,
    )
    session.flush()
    projects.mark_triggers(session, found)
    return found, True


def _same(found: Project, asked: dict[str, Any]) -> None:
    """What is asked for is what the registered project has; what is left out is not asked for. Raises `Conflict`."""
    has = {"remote": found.rid, "default_branch": found.default_branch, "description": found.description}
    wanted = {**{key: asked.get(key) for key in has}, **asked.get("settings", {})}
    apart = [key for key, value in wanted.items() if value not in (None, "") and value != {**found.settings, **has}.get(key)]
    if apart:
        mend = f"`hyperagent project set {found.name} {' '.join(f'{key}=...' for key in apart)}` changes it."
        raise Conflict(f"The project {found.name!r} is registered with another {', '.join(apart)}.", mend=mend)


def _other_source(found: Project) -> Conflict:
    """The refusal of a name that belongs to another source."""
    if found.removed_at is not None:
        return Conflict(
            f"The project {found.name!r} was registered from {found.source} and is removed.", mend="Use another name."
        )
    if projects.began(found):
        return Conflict(f"The project {found.name!r} is registered from {found.source}.", mend="Use another name.")
    mend = f"Wait for that, or `hyperagent project remove {found.name}`, or use another name."
    return Conflict(f"The project {found.name!r} is being registered from {found.source}.", mend=mend)


def _free(session: Session, asked: dict[str, Any]) -> None:
    """No other project has this repository; the worker looks once more when it has registered it. Raises `Conflict`."""
    same = (Project.source == asked["source"]) | (Project.rid == (asked["remote"] or asked["source"]))
    query = select(Project).where(same, Project.removed_at.is_(None), Project.name != asked["name"])
    other = session.scalars(query.where(Project.state == ProjectState.READY).limit(1)).first()
    if other is not None:
        raise projects.taken(other, asked["source"])


def _wait(settings: Settings, asked: Project) -> tuple[Project, int]:
    deadline = time.monotonic() + flask.current_app.config["REGISTER_WAIT_SECONDS"]
    while True:
        with db.transaction(settings.db_url, reading=True) as session:
            project = session.get(Project, asked.id)
        if project is None or project.source != asked.source:
            raise BadInput("The project cannot be registered; another request was told why.", mend="Send it again.")
        if project.state == ProjectState.READY:
            return project, 201
        if project.state == ProjectState.FAILED:
            _remove(settings, asked)
            raise refusal(f"The project {project.name!r} cannot be registered.", project.faults)
        if time.monotonic() > deadline:
            return project, 202
        time.sleep(0.1)


def refusal(message: str, faults: list[dict[str, Any]]) -> HyperagentError:
    """What a worker said as the error that fits it."""
    kinds: dict[str, type[HyperagentError]] = {"not-ready": NotReady, "conflict": Conflict}
    kind = next((kinds[entry["type"]] for entry in faults if entry.get("type") in kinds), BadInput)
    return kind(message, faults=[Fault(entry["field"], entry["message"]) for entry in faults])


def _remove(settings: Settings, asked: Project) -> None:
    """Nothing stays of a registration that failed; a project with a past is only out of use again."""
    with db.transaction(settings.db_url) as session:
        failed = (Project.id == asked.id, Project.source == asked.source, Project.state == ProjectState.FAILED)
        project = session.scalar(select(Project).where(*failed).with_for_update())
        if project is not None:
            projects.forget(session, project)
