"""Upkeep of what is no step: drafts whose worker fell silent, drafts and registrations whose message was lost."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from hyperagent_common import db, queue
from hyperagent_common.models import PlanDraft, Project
from hyperagent_common.states import ProjectState
from hyperagent_tasks.parts import Parts

BATCH = 100
REGISTERING = 30.0
"""Seconds a registration may be at work, fetching from peers: before that its message is not taken for lost."""
MOST_CLAIMS = 3
"""A draft that has lost this many workers is given up."""
SILENT = f"Its worker stopped answering, {MOST_CLAIMS} times. Ask for the draft again."


def reconcile(parts: Parts) -> dict[str, int]:
    """Do what is due; returns how much of each was done."""
    s = parts.settings
    with db.transaction(s.db_url) as session:
        moment = db.now(session)
        given_up, again = _silent(session, moment)
        lost = _due(session, PlanDraft, "queued", moment, s.requeue_after, s.reconcile_seconds)
        patience = max(s.requeue_after, REGISTERING)
        registering = _due(session, Project, ProjectState.REGISTERING, moment, patience, s.reconcile_seconds)
        for name, keys in ((queue.DRAFT, [*again, *lost]), (queue.REGISTER, registering)):
            for key in keys:
                db.after_commit(session, lambda name=name, key=key: queue.signature(parts.app, name, key).apply_async())
    return {"draft_given_up": given_up, "draft": len(again) + len(lost), "register": len(registering)}


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
    session: Session, table: type[PlanDraft | Project], state: str, moment: datetime, after: float, every: float
) -> list[str]:
    """What has waited for a message; nothing about the sending is kept, so the age alone says whether it is time."""
    old = (table.state == state, table.created_at < moment - timedelta(seconds=after))
    rows = session.execute(select(table.id, table.created_at).where(*old).order_by(table.created_at).limit(BATCH))
    return [key for key, made in rows if due((moment - made).total_seconds(), after, every)]
