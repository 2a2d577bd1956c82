"""Health of the forge: node, identities and peers of each host, and how each project stands. Every figure says how old it is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import flask
from flask_smorest import Blueprint
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from hyperagent_api.app import orm
from hyperagent_common import db, forge_state
from hyperagent_common.errors import BadInput, Fault
from hyperagent_common.forge_models import ForgeHost
from hyperagent_common.models import Patch, PatchEvent, Project, Workflow
from hyperagent_common.settings import Settings
from hyperagent_common.states import ProjectState

blueprint = Blueprint("forge_health", __name__, description="How the forge is")
WAIT_SECONDS = 4.0
PUSHES = ("opened", "revised", "found")
"""Events of a patch that are a push; the others are reviews, and news of peers."""
FORGOTTEN = timedelta(days=1)
"""A host that has said nothing for so long is shown only where a project needs it."""


@blueprint.route("/api/health/radicle")
@blueprint.response(200, {"type": "object"})
def radicle() -> Any:
    """Node, identities, peers and projects; hosts are asked anew and waited for (at most 4 s) unless `refresh=false`."""
    settings: Settings = flask.current_app.extensions["settings"]
    refresh = flask.request.args.get("refresh", "true")
    if refresh not in ("true", "false"):
        raise BadInput("The query is wrong.", faults=[Fault("refresh", "must be true or false")])
    orm.session.remove()
    if refresh == "true":
        ask(settings)
    with db.transaction(settings.db_url, reading=True) as session:
        return flask.jsonify(_standing(session, settings))


def ask(settings: Settings, *, host: str | None = None, seconds: float = WAIT_SECONDS) -> None:
    """Ask every live host, or this one, for a report, and wait until all have given it or the time is over."""
    with db.transaction(settings.db_url) as session:
        moment = db.now(session)
        alive = [ForgeHost.reported_at > moment - forge_state.patience(settings), *([ForgeHost.id == host] if host else [])]
        asked = session.scalars(update(ForgeHost).where(*alive).values(asked_at=moment).returning(ForgeHost.id)).all()
    deadline = time.monotonic() + seconds
    while asked and time.monotonic() < deadline:
        with db.transaction(settings.db_url, reading=True) as session:
            late = select(ForgeHost.id).where(ForgeHost.id.in_(asked), ForgeHost.reported_at < moment)
            asked = session.scalars(late).all()
        time.sleep(0.1 if asked else 0)


def _standing(session: Session, settings: Settings) -> dict[str, Any]:
    now = db.now(session)
    rows = {row.id: row for row in session.scalars(select(ForgeHost).order_by(ForgeHost.host, ForgeHost.id))}
    projects = session.scalars(select(Project).where(Project.removed_at.is_(None)).order_by(Project.name)).all()
    needed = {project.publisher for project in projects}
    shown = [r for r in rows.values() if r.id in needed or (r.reported_at and r.reported_at > now - FORGOTTEN)]
    hosts = [_host(row, now, settings) for row in shown]
    found = [_project(session, project, rows, now, settings) for project in projects]
    problems = [p for entry in (*hosts, *found) for p in entry["problems"]]
    if not hosts:
        problems.append(_problem("No host has ever reported its forge.", "Start one: `hyperagent up`."))
    return {
        "ok": not any(p["blocking"] for p in problems),
        "hosts": hosts,
        "projects": found,
        "problems": [p for p in problems if p["blocking"]],
    }


def _problem(message: str, mend: str, *, blocking: bool = True) -> dict[str, Any]:
    return {"message": message, "mend": mend, "blocking": blocking}


def _host(row: ForgeHost, now: datetime, settings: Settings) -> dict[str, Any]:
    said, age = row.report, forge_state.age(row, now)
    problems = [{**p, "message": f"{row.host}: {p['message']}"} for p in said.get("problems", ())]
    if row.reported_at is None or row.reported_at < now - forge_state.patience(settings):
        silent = f"{row.host} ({row.id}) has said nothing of its forge for {age or 0:.0f} s."
        problems = [_problem(silent, "Start its watch: `hyperagent up` there.")]
    node = {"running": False, "nid": None, "since": None, "version": None, **said.get("node", {})}
    return {
        "id": row.id,
        "host": row.host,
        "seconds": age,
        "forge": said.get("forge"),
        "node": node,
        "identities": said.get("identities", []),
        "peers": said.get("peers", []),
        "problems": problems,
    }


def _project(
    session: Session, project: Project, rows: Mapping[str, ForgeHost], now: datetime, settings: Settings
) -> dict[str, Any]:
    row = rows.get(project.publisher or "")
    said = row.report.get("projects", {}).get(project.id, {}) if row else {}
    said = said if said.get("rid") == project.rid else {}
    seeds = said.get("seeds", [])
    return {
        "name": project.name,
        "state": project.state,
        "remote": project.rid,
        "forge": project.forge,
        "host": row.host if row else None,
        "seconds": forge_state.age(row, now) if row and said else None,
        "registered": said.get("registered"),
        "reachable": said.get("reachable"),
        "default_branch": project.default_branch,
        "head": said.get("head"),
        "source_head": said.get("source_head"),
        "synced": said.get("synced"),
        "seeds": seeds,
        "last_push": _last_push(session, project),
        "problems": _problems(project, row, said),
    }


def _problems(project: Project, row: ForgeHost | None, said: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is wrong with one project, each sentence naming it."""
    if project.state != ProjectState.READY:
        why = "; ".join(entry["message"] for entry in project.faults) or "no worker has answered yet"
        mend = f"`hyperagent project add {project.name} ...` tries again; `hyperagent project remove {project.name}` forgets it."
        return [_problem(f"{project.name} is {project.state}: {why}.", mend)]
    if row is None:
        return [_problem(f"{project.name}: its host has never reported.", "Start it: `hyperagent up`.", blocking=False)]
    return [{**p, "message": f"{project.name}: {p['message']}"} for p in said.get("problems", ())]


def _last_push(session: Session, project: Project) -> dict[str, Any] | None:
    query = (
        select(PatchEvent, Patch).join(Patch, Patch.id == PatchEvent.patch_id).join(Workflow, Workflow.id == Patch.workflow_id)
    )
    query = query.where(Workflow.project_id == project.id, PatchEvent.kind.in_(PUSHES))
    found = session.execute(query.order_by(PatchEvent.id.desc()).limit(1)).first()
    if found is None:
        return None
    event, patch = found
    return {
        "at": event.at.isoformat(),
        "kind": event.kind,
        "workflow_id": patch.workflow_id,
        "patch": patch.patch_id,
        "commit": event.commit,
        "announced": event.announced,
        "synced_with": event.synced_with,
    }
