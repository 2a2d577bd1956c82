"""Projects on their host: registered from a local repository or a Radicle id, changed only where the change holds."""

from __future__ import annotations

import logging
import os
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from hyperagent_common import db, projects
from hyperagent_common.errors import (
    BadInput,
    Conflict,
    DependencyDown,
    Diverged,
    Fault,
    HyperagentError,
    KeyLocked,
    NotReady,
    NotRegistered,
    Transient,
)
from hyperagent_common.forge_models import ProjectChange
from hyperagent_common.models import Project
from hyperagent_common.states import ProjectState
from hyperagent_tasks import handover
from hyperagent_tasks.gitgate import Relation, canonical, open_source, relation
from hyperagent_tasks.parts import Parts, instance
from hyperagent_tasks.places import is_remote, place

log = logging.getLogger(__name__)
FETCH_SECONDS = 18.0


def register(parts: Parts, project_id: str, *, last: bool = True) -> None:
    """Register a project and write how it went. A fault that may pass goes on to Celery, unless this is the `last` try."""
    url = parts.settings.db_url
    with db.transaction(url, reading=True) as session:
        project = session.get(Project, project_id)
    if project is None or project.removed_at is not None or project.state == ProjectState.READY:
        return
    try:
        rid, branch, head = _register(parts, project)
        handover.keep_default(parts, project_id, project.name, head, project.head)
        _ready(parts, project, rid, branch)
    except HyperagentError as error:
        passing = isinstance(error, Transient) and not isinstance(error, DependencyDown) and not last
        state = ProjectState.REGISTERING if passing else ProjectState.FAILED
        _write(url, project, state=state, faults=[fault(error), *map(_plain, error.faults)])
        if passing:
            raise


def _register(parts: Parts, project: Project) -> tuple[str, str, str]:
    """Radicle id, default branch and its commit."""
    parts.forge.check()
    if is_remote(project.source):
        return _from_network(parts, project.name, project.source, project.default_branch)
    path = place(parts, project.source)
    branch = project.default_branch or open_source(path).default_branch
    head = parts.gitgate.refresh(project.name, str(path), branch)
    if project.rid:
        return _to_remote(parts, project.name, project.rid, branch, head), branch, head
    registered = parts.forge.register(
        parts.gitgate.trusted(project.name),
        name=project.name,
        description=" ".join(project.description.split()) or project.name,
        default_branch=branch,
    )
    return registered.rid, branch, head


def _from_network(parts: Parts, name: str, rid: str, branch: str) -> tuple[str, str, str]:
    """A repository that peers have, at its canonical head."""
    found = parts.forge.fetch(rid, seconds=FETCH_SECONDS)
    if not branch and not found.head:
        told = (
            f"The repository {rid} has no canonical head of {found.default_branch}: it has no commits, or its delegates disagree."
        )
        raise BadInput(
            told, faults=[Fault("source", told)], mend="Push its default branch as a delegate, or name another branch."
        )
    wanted = branch or found.default_branch
    return rid, wanted, parts.gitgate.refresh(name, str(parts.forge.storage(rid)), wanted)


def _to_remote(parts: Parts, name: str, rid: str, branch: str, head: str) -> str:
    """The remote is here, and holds the same history as the default branch. Raises `BadInput`."""
    theirs = parts.forge.fetch(rid, seconds=FETCH_SECONDS).head
    if theirs and parts.forge.name == "radicle":
        how = relation(parts.gitgate.trusted(name), head, parts.forge.storage(rid), theirs)
        if how in (Relation.UNRELATED, Relation.DIVERGED):
            raise _apart(f"{branch} of the project {name}", rid, how)
    return rid


def _apart(what: str, rid: str, how: Relation) -> BadInput:
    told = "has another history than" if how is Relation.UNRELATED else "and the default branch have diverged:"
    message = f"The remote {rid} {told} {what}."
    return BadInput(
        message, faults=[Fault("remote", message)], mend="Choose the remote this repository came from, or merge them."
    )


def _ready(parts: Parts, asked: Project, rid: str, branch: str) -> None:
    """The project is registered, unless another one is, for the same repository, or it asks for something else by now."""
    with db.transaction(parts.settings.db_url) as session:
        same = or_(Project.id.in_([asked.id, *_alike(session, parts, asked)]), Project.source == asked.source, Project.rid == rid)
        rows = {row.id: row for row in session.scalars(select(Project).where(same).order_by(Project.id).with_for_update())}
        project = rows.pop(asked.id, None)
        if project is None or project.source != asked.source:
            log.info("project.replaced", extra={"project": asked.name, "source": asked.source})
            return
        for other in rows.values():
            if other.state == ProjectState.READY and other.removed_at is None:
                raise projects.taken(other, project.source)
        project.state, project.faults, project.rid, project.default_branch = ProjectState.READY, [], rid, branch
        project.forge, project.publisher = parts.forge.name, instance(parts.settings)


def _alike(session: Session, parts: Parts, asked: Project) -> list[str]:
    """Ids of projects whose source is the same directory of this host, reached by another path."""
    if is_remote(asked.source):
        return []
    here = or_(Project.publisher == instance(parts.settings), Project.publisher.is_(None))
    query = select(Project.id, Project.source).where(here, Project.source.startswith("/"), Project.removed_at.is_(None))
    return [i for i, source in session.execute(query) if os.path.realpath(source) == os.path.realpath(asked.source)]


def change(parts: Parts, change_id: str) -> None:
    """Verify what was asked of a project and apply it, whole or not at all, and once however often the message comes."""
    url = parts.settings.db_url
    with db.transaction(url, reading=True) as session:
        asked = session.get(ProjectChange, change_id)
        project = None if asked is None else session.get_one(Project, asked.project_id)
    if asked is None or project is None or asked.state != "asked":
        return
    try:
        head = _verified(parts, project, asked.values)
        with db.transaction(url) as session:
            row = session.get_one(ProjectChange, change_id, with_for_update=True)
            if row.state != "asked":
                return
            projects.apply(session, asked.project_id, asked.version, asked.values)
            row.state = "done"
    except HyperagentError as error:
        with db.transaction(url) as session:
            row = session.get_one(ProjectChange, change_id, with_for_update=True)
            if row.state == "asked":
                row.state, row.faults = "failed", [fault(error), *map(_plain, error.faults)]
        return
    handover.keep_default(parts, project.id, project.name, head, project.head)


def _verified(parts: Parts, project: Project, values: dict[str, Any]) -> str:
    """The default branch's commit under these values, its remote looked at. Raises `HyperagentError`."""
    parts.forge.check()
    branch, rid = values.get("default_branch") or project.default_branch, values.get("remote") or project.rid
    head = parts.gitgate.refresh(project.name, str(place(parts, project.source)), branch)
    if rid:
        _to_remote(parts, project.name, rid, branch, head)
    return head


def orderly(parts: Parts, rid: str, name: str, branch: str, head: str) -> None:
    """The project's repository is on this host's forge and its `branch` has the history of `head`, before anything is spent.

    Radicle's storage is looked at from here: a call into its container would cost each step as much as a container does.
    Raises `NotRegistered`, `Diverged`.
    """
    real = parts.forge.name == "radicle"
    if not ((parts.forge.storage(rid) / "objects").is_dir() if real else parts.forge.registration(rid)):
        mend = "Put it back into the Radicle home, or register the project again."
        raise NotRegistered(f"The repository {rid} of {name} is not on this host's forge any more.", mend=mend)
    theirs = canonical(parts.forge.storage(rid), branch) if real else None
    if theirs is None:
        return
    how = relation(parts.gitgate.trusted(name), head, parts.forge.storage(rid), theirs)
    if how in (Relation.UNRELATED, Relation.DIVERGED):
        apart = _apart(f"the default branch of {name}", rid, how)
        raise Diverged(apart.message, mend=apart.mend)


def fault(error: HyperagentError) -> dict[str, str]:
    """An error as a fault of a row; its `type` tells the API how to answer."""
    field = "repository" if isinstance(error, BadInput) else error.type
    away = isinstance(error, (DependencyDown, NotReady, KeyLocked))
    kind = "not-ready" if away else "conflict" if isinstance(error, Conflict) else ""
    return {"field": field, "message": error.sentence, **({"type": kind} if kind else {})}


def _plain(entry: object) -> dict[str, str]:
    return {"field": getattr(entry, "field", "repository"), "message": getattr(entry, "message", str(entry))}


def _write(url: str, asked: Project, **values: object) -> None:
    """Write to a project's row, unless it asks for something else by now."""
    with db.transaction(url) as session:
        mine = (Project.id == asked.id, Project.source == asked.source)
        project = session.scalar(select(Project).where(*mine).with_for_update())
        for name, value in values.items() if project else ():
            setattr(project, name, value)
