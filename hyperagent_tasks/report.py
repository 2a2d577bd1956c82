"""What this host says of its forge: node, identities, peers, and how each of its projects stands, every fault with its mend."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from hyperagent_common import db
from hyperagent_common.errors import HyperagentError
from hyperagent_common.forge_models import ForgeHost
from hyperagent_common.models import Project
from hyperagent_common.states import ProjectState
from hyperagent_tasks.gitgate import Relation, relation
from hyperagent_tasks.parts import Parts, instance
from hyperagent_tasks.places import place
from hyperagent_tasks.radicle.base import RepositoryStanding, Standing

NO_NODE = Standing("", None)


def write(parts: Parts) -> dict[str, Any]:
    """Look, and write down what was seen; returns it. Raises `DependencyDown` where the database is away."""
    url, mine = parts.settings.db_url, instance(parts.settings)
    with db.transaction(url, reading=True) as session:
        began = db.now(session)
        wanted = (Project.publisher == mine, Project.state == ProjectState.READY, Project.removed_at.is_(None))
        projects = session.scalars(select(Project).where(*wanted).order_by(Project.id)).all()
    said = look(parts, projects)
    with db.transaction(url) as session:
        row = session.get(ForgeHost, mine, with_for_update=True)
        if row is None:
            row = ForgeHost(id=mine, host=socket.gethostname())
            session.add(row)
        if row.reported_at is None or row.reported_at <= began:  # a slower look at the same host never hides a newer one
            row.host, row.reported_at, row.report = socket.gethostname(), began, said
    return said


def look(parts: Parts, projects: Sequence[Project]) -> dict[str, Any]:
    """The report on this host's forge and on these projects; what is wrong is said in it."""
    problems: list[dict[str, Any]] = []
    standing = NO_NODE
    try:
        forge = parts.forge
    except HyperagentError as error:
        return {"forge": None, "node": {"running": False}, "problems": [problem(error)], "projects": {}}
    try:
        forge.check()
        standing = forge.standing([p.rid for p in projects if p.rid and p.forge == forge.name])
    except HyperagentError as error:
        problems.append(problem(error))
    if standing is not NO_NODE and forge.name == "radicle" and not any(s["connected"] for s in standing.sessions):
        mend = "Name peers in HYPERAGENT_RADICLE_CONNECT, and see that they run."
        problems.append(told("The Radicle node is connected to no peer: nothing reaches anybody.", mend, blocking=False))
    since = datetime.fromtimestamp(standing.since, UTC).isoformat() if standing.since else None
    return {
        "forge": forge.name,
        "node": {
            "running": standing is not NO_NODE,
            "nid": standing.nid or None,
            "since": since,
            "version": forge.version(),
        },
        "identities": [asdict(identity) for identity in forge.identities()],
        "peers": [dict(s) for s in standing.sessions],
        "problems": problems,
        "projects": {p.id: _project(parts, p, standing) for p in projects},
    }


def problem(error: HyperagentError) -> dict[str, Any]:
    """An error as a problem that keeps workflows from starting."""
    return told(error.message, error.mend)


def told(message: str, mend: str, *, blocking: bool = True) -> dict[str, Any]:
    """One thing that is wrong, and what to do."""
    return {"message": message, "mend": mend, "blocking": blocking}


def _project(parts: Parts, project: Project, standing: Standing) -> dict[str, Any]:
    """How one project stands: `reachable` says that its repository is on the node and can be published to."""
    found = standing.repositories.get(project.rid or "")
    said: dict[str, Any] = {"rid": project.rid, "registered": None, "reachable": False, "problems": []}
    if project.forge != parts.forge.name:
        mend = "Set HYPERAGENT_FORGE to what it was registered with, or register it under another name."
        said["problems"] = [told(f"It is registered on {project.forge}; this host uses {parts.forge.name}.", mend)]
        return said
    if found is None:
        return said  # the node does not answer, which the host's own problems say
    problems = _repository(project, found)
    source = None
    if found.registered and not problems:
        source, apart = _source(parts, project, found)
        problems += apart
    synced = sum(1 for seed in found.seeds if seed.status == "synced")
    return {
        "rid": project.rid,
        "registered": found.registered,
        "reachable": found.registered and not any(p["blocking"] for p in problems),
        "remote_branch": found.default_branch,
        "head": found.head or None,
        "source_head": source,
        "seeds": [asdict(seed) for seed in found.seeds],
        "synced": synced,
        "problems": problems,
    }


def _repository(project: Project, found: RepositoryStanding) -> list[dict[str, Any]]:
    if not found.registered:
        mend = f"Put it back into the Radicle home (`rad seed {project.rid}`), or remove the project and register it again."
        return [told(f"The repository {project.rid} is not in this host's storage any more.", mend)]
    if found.error:
        return [told(f"The repository {project.rid} cannot be read: {found.error}", "Look at it with `rad inspect`.")]
    if not found.head:
        mend = "Let its delegates push the same commit."
        return [told(f"The remote has no canonical head of {found.default_branch}.", mend, blocking=False)]
    return []


def _source(parts: Parts, project: Project, found: RepositoryStanding) -> tuple[str | None, list[dict[str, Any]]]:
    """The default branch as the source has it, and whether it and the remote have grown apart."""
    try:
        head = parts.gitgate.refresh(project.name, str(place(parts, project.source)), project.default_branch)
        if parts.forge.name != "radicle":
            return head, []
        how = relation(parts.gitgate.trusted(project.name), head, parts.forge.storage(found.rid), found.head)
    except HyperagentError as error:
        return None, [problem(error)]
    branch = project.default_branch
    if how in (Relation.DIVERGED, Relation.UNRELATED):
        mend = f"Merge {found.default_branch} of the remote into the source (or the other way round) and push it."
        return head, [told(f"{branch} of {project.source} and {found.default_branch} of {found.rid} have diverged.", mend)]
    if how is Relation.BEHIND:
        told_so = f"{branch} of {project.source} is behind {found.default_branch} of {found.rid}."
        return head, [told(told_so, "Pull there: workflows begin where the source is.", blocking=False)]
    return head, []
