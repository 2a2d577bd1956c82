"""Upkeep of what is no step: drafts whose worker fell silent; drafts, registrations and changes whose message was lost."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial

from celery import Celery
from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from hyperagent_common import db, queue
from hyperagent_common.forge_models import ProjectChange
from hyperagent_common.models import PlanDraft, Project
from hyperagent_common.states import ProjectState
from hyperagent_tasks.parts import Parts

BATCH = 100
FETCHING = 30.0
"""Seconds a registration or a change may be at work, fetching from peers: before that its message is not taken for lost."""
MOST_CLAIMS = 3
"""A draft that has lost this many workers is given up."""
SILENT = f"Its worker stopped answering, {MOST_CLAIMS} times. Ask for the draft again."


def reconcile(parts: Parts) -> dict[str, int]:
    """Do what is due; returns how much of each was done."""
    s = parts.settings
    with db.transaction(s.db_url) as session:
        moment = db.now(session)
        given_up, again = _silent(session, moment)
        every, patience = s.reconcile_seconds, max(s.requeue_after, FETCHING)
        drafts = again + _due(session, PlanDraft, "queued", moment, s.requeue_after, every)
        changes = _due(session, ProjectChange, "asked", moment, patience, every)
        anywhere = _due(session, Project, ProjectState.REGISTERING, moment, patience, every)
        sends: list[tuple[str, str, str | None]] = [(queue.REGISTER, key, None) for key in anywhere]
        sends += [(queue.DRAFT, *found) for found in _publishers(session, PlanDraft, drafts)]
        sends += [(queue.CHANGE, *found) for found in _publishers(session, ProjectChange, changes)]
        for send in sends:
            db.after_commit(session, partial(_send, parts.app, *send))
    return {"draft_given_up": given_up, "draft": len(drafts), "register": len(anywhere), "change": len(changes)}


def _send(app: Celery, name: str, key: str, publisher: str | None) -> None:
    queue.at_publisher(app, name, key, publisher).apply_async()


def _publishers(session: Session, table: type[PlanDraft | ProjectChange], keys: list[str]) -> list[tuple[str, str | None]]:
    """These, each with the host that publishes its project."""
    query = select(table.id, Project.publisher).join(Project, Project.id == table.project_id).where(table.id.in_(keys))
    return [(key, publisher) for key, publisher in session.execute(query.order_by(table.id))]


def _silent(session: Session, moment: datetime) -> tuple[int, list[str]]:
    """Running drafts without a lease that holds: queued again, or failed. One UPDATE each, so that two agree."""
    silent = (PlanDraft.state == "running", or_(PlanDraft.lease_until.is_(None), PlanDraft.lease_until < moment))
    failed = update(PlanDraft).where(*silent, PlanDraft.fence >= MOST_CLAIMS)
    said = {"state": "failed", "reason": SILENT, "finished_at": moment, "lease_until": None}
    given_up = session.scalars(failed.values(**said).returning(PlanDraft.id)).all()
    queued = update(PlanDraft).where(*silent).values(state="queued", lease_until=None)
    return len(given_up), list(session.scalars(queued.returning(PlanDraft.id)))


def due(age: float, after: float, every: float) -> bool:
    """Whether something of this age is sent again in this look: once each `after` seconds, looked at each `every` seconds."""
    return age >= after and age % max(after, every) < every


def _due(
    session: Session, table: type[PlanDraft | Project | ProjectChange], state: str, moment: datetime, after: float, every: float
) -> list[str]:
    """What has waited for a message; nothing about the sending is kept, so the age alone says whether it is time."""
    old = (table.state == state, table.created_at < moment - timedelta(seconds=after))
    rows = session.execute(select(table.id, table.created_at).where(*old).order_by(table.created_at).limit(BATCH))
    return [key for key, made in rows if due((moment - made).total_seconds(), after, every)]
