"""Is there a worker that could do it? What workers last said of their parts decides, before anything is stored."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hyperagent_common import db, forge_state
from hyperagent_common.errors import Fault, NotReady
from hyperagent_common.models import Project, Worker
from hyperagent_common.settings import Settings

REFUSED_SECONDS, OLD_SECONDS = 4.0, 2.0
"""How long a host is waited for that is asked anew: where its last word refuses, and where it is only no news any more."""


def live(session: Session, settings: Settings) -> list[Worker]:
    """Workers that reported within three heartbeats."""
    since = db.now(session) - timedelta(seconds=3 * settings.heartbeat_seconds + 5)
    return list(session.scalars(select(Worker).where(Worker.last_seen > since, Worker.stopped_at.is_(None))))


def known(session: Session, most: int = 100) -> list[Worker]:
    """Workers, those heard of last first; one that fell silent stays in the list, so that somebody notices."""
    return list(session.scalars(select(Worker).order_by(Worker.last_seen.desc()).limit(most)))


def require(session: Session, settings: Settings) -> list[str]:
    """Warnings for the submitter. Raises `NotReady` where every live worker says that something is wrong."""
    workers = live(session, settings)
    if not workers:
        return ["No worker is alive: this waits until one starts (`hyperagent up`)."]
    if any(not worker.faults for worker in workers):
        return []
    faults = {entry["check"]: Fault(entry["check"], _sentence(entry)) for w in workers for entry in w.faults}
    mend = "Mend what is named, then submit again; `hyperagent doctor` looks anew."
    raise NotReady("No worker is ready.", faults=list(faults.values()), mend=mend)


class Unasked(Exception):
    """What the project's host last said of its forge refuses, or is no news any more: ask `host` anew, for `seconds` at most."""

    def __init__(self, host: str, seconds: float) -> None:
        super().__init__(host)
        self.host, self.seconds = host, seconds


def require_forge(session: Session, settings: Settings, project: Project, *, asked: bool) -> list[str]:
    """Warnings for the submitter. Raises `NotReady` where the project's host says that nothing could be published now, and
    before that, unless its host was `asked`, `Unasked`."""
    found = forge_state.blocking(session, settings, project)
    old = forge_state.old(session, settings, project)
    if project.publisher and not asked and (found or old):
        raise Unasked(project.publisher, REFUSED_SECONDS if found else OLD_SECONDS)
    if found:
        mend = "Mend what is named, then submit again; `hyperagent health radicle` looks anew."
        raise NotReady(f"The project {project.name!r} cannot be published to now.", faults=found, mend=mend)
    if project.publisher and forge_state.fresh(session, settings, project) is None:
        return [f"The host that publishes {project.name!r} has not reported its forge lately; its steps wait for it."]
    return []


def _sentence(entry: dict[str, Any]) -> str:
    return f"{entry['message']} {entry['mend']}".strip()
