"""Projects in the database: changed under a version, removed where nothing runs, one repository under one name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from hyperagent_common import db
from hyperagent_common.errors import Conflict, NotFound
from hyperagent_common.forge_models import TriggerMark
from hyperagent_common.models import Project, Workflow
from hyperagent_common.states import ProjectState, WorkflowState

HARD = ("default_branch", "remote")
"""What the project's host must verify before it is changed."""


def locked(session: Session, name: str) -> Project:
    """The project, its row locked: no workflow is submitted to it meanwhile. Raises `NotFound`."""
    query = select(Project).where(Project.name == name, Project.removed_at.is_(None)).with_for_update()
    found = session.scalar(query.execution_options(populate_existing=True))
    if found is None:
        raise NotFound(f"There is no project {name!r}.", mend="`hyperagent project list` shows them.")
    return found


def taken(other: Project, source: str) -> Conflict:
    """The refusal of a repository that another project has."""
    mend = f"Use the project {other.name!r}, or remove it first: `hyperagent project remove {other.name}`."
    return Conflict(f"The repository {source} is registered already, as the project {other.name!r} ({other.rid}).", mend=mend)


def moving(session: Session, project: Project) -> list[str]:
    """Ids of the project's workflows that have not ended, at most three."""
    open_states = (WorkflowState.RUNNING, WorkflowState.PAUSED)
    query = select(Workflow.id).where(Workflow.project_id == project.id, Workflow.state.in_(open_states))
    return list(session.scalars(query.order_by(Workflow.id).limit(3)))


def check(session: Session, project: Project, version: int | None, values: Mapping[str, Any]) -> None:
    """Raise `Conflict` where the project is at another version, not ready, or busy with what is to change."""
    if project.state != ProjectState.READY:
        raise Conflict(f"The project {project.name!r} is {project.state}.", mend="Register it first.")
    if version is not None and project.version != version:
        mend = f"Look at it again, then send version {project.version}."
        raise Conflict(f"The project {project.name!r} is at version {project.version}, not {version}.", mend=mend)
    busy = moving(session, project) if set(values) & set(HARD) else []
    if busy:
        mend = "Wait for them, or cancel them: `hyperagent cancel ID`."
        raise Conflict(f"Workflows of {project.name!r} have not ended: {', '.join(busy)}.", mend=mend)


def apply(session: Session, project_id: str, version: int | None, values: Mapping[str, Any]) -> Project:
    """Change a project: `description`, `default_branch`, `remote`, and `settings` key by key (null takes one away)."""
    query = select(Project).where(Project.id == project_id).with_for_update().execution_options(populate_existing=True)
    project = session.scalars(query).one()
    check(session, project, version, values)
    project.description = values.get("description", project.description)
    project.default_branch = values.get("default_branch", project.default_branch)
    project.rid = values.get("remote", project.rid)
    given = {**project.settings, **values.get("settings", {})}
    project.settings = {key: value for key, value in given.items() if value is not None}
    project.version += 1
    mark_triggers(session, project)
    return project


def mark_triggers(session: Session, project: Project) -> None:
    """From when on events count: since the project got its first trigger; a project without triggers has no mark."""
    mark = session.get(TriggerMark, project.id)
    if project.settings.get("triggers") and mark is None:
        session.add(TriggerMark(project_id=project.id, since=db.now(session), seen=None))
    elif not project.settings.get("triggers") and mark is not None:
        session.execute(delete(TriggerMark).where(TriggerMark.project_id == project.id))


def remove(session: Session, name: str, version: int | None) -> None:
    """Take a project out of use; its workflows, patches and repository stay. One that never was `ready` is forgotten, and
    its name is free again. Raises `NotFound`, `Conflict`."""
    project = locked(session, name)
    if version is not None and project.version != version:
        raise Conflict(f"The project {name!r} is at version {project.version}, not {version}.", mend="Look at it again.")
    busy = moving(session, project)
    if busy:
        mend = "Wait for them, or cancel them: `hyperagent cancel ID`."
        raise Conflict(f"The project {name!r} cannot be removed: workflows run ({', '.join(busy)}).", mend=mend)
    forget(session, project)


def began(project: Project) -> bool:
    """Whether the project ever was `ready`: it may have workflows, and its name stands for its source."""
    return project.state == ProjectState.READY or project.publisher is not None


def forget(session: Session, project: Project) -> None:
    """Nothing stays of a project that never was ready; one with a past is only out of use."""
    session.execute(delete(TriggerMark).where(TriggerMark.project_id == project.id))
    if began(project):
        project.removed_at, project.version, project.state = db.now(session), project.version + 1, ProjectState.READY
    else:
        session.delete(project)
