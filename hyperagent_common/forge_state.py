"""What hosts last said of their forge, read for those who must know: may a workflow of this project start?

A report: `forge`, `node`, `identities`, `peers`, `problems` and `projects` (by id), each problem a `message` with its `mend`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from hyperagent_common import db
from hyperagent_common.errors import Fault
from hyperagent_common.forge_models import ForgeHost
from hyperagent_common.models import Project
from hyperagent_common.settings import Settings

NEWS_SECONDS = 2.0
"""A report this young is taken at its word."""


def patience(settings: Settings) -> timedelta:
    """How old a report may be to count."""
    return timedelta(seconds=3 * settings.heartbeat_seconds + 15)


def fresh(session: Session, settings: Settings, project: Project) -> Mapping[str, Any] | None:
    """The report of the host that publishes this project, or None where it has said nothing lately."""
    row = session.get(ForgeHost, project.publisher) if project.publisher else None
    if row is None or row.reported_at is None or row.reported_at < db.now(session) - patience(settings):
        return None
    return row.report


def old(session: Session, settings: Settings, project: Project) -> bool:
    """Whether the report of the project's host counts and is no news any more: what it says may have ended since."""
    row = session.get(ForgeHost, project.publisher) if fresh(session, settings, project) is not None else None
    return row is not None and (age(row, db.now(session)) or 0) > NEWS_SECONDS


def blocking(session: Session, settings: Settings, project: Project) -> list[Fault]:
    """Why a workflow of this project could not be published now, each with its mend; empty where nothing is known against it."""
    report = fresh(session, settings, project)
    if report is None:
        return []
    found = [*report.get("problems", ()), *_of(report, project).get("problems", ())]
    return [Fault("forge", f"{p['message']} {p['mend']}".strip()) for p in found if p.get("blocking", True)]


def _of(report: Mapping[str, Any], project: Project) -> Mapping[str, Any]:
    found: Mapping[str, Any] = report.get("projects", {}).get(project.id, {})
    return found if found.get("rid") == project.rid else {}


def age(row: ForgeHost, now: datetime) -> float | None:
    """Seconds since the host's report."""
    return round((now - row.reported_at).total_seconds(), 1) if row.reported_at else None
