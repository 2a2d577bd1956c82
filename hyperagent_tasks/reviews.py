"""The verifier's verdicts as reviews on the patch, under the reviewer's own identity: pending rows, then posts that converge.

A review that cannot be posted stops no step: its row stays pending, with the reason, and upkeep tries it again.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hyperagent_common import db, events, patches
from hyperagent_common.errors import HyperagentError, Permanent
from hyperagent_common.events import EventKind
from hyperagent_common.ids import new_id
from hyperagent_common.models import Patch, PatchEvent, WorkflowStep
from hyperagent_common.patch_models import PatchReview, ReviewState
from hyperagent_tasks import delivery, description
from hyperagent_tasks.failpoints import failpoint
from hyperagent_tasks.parts import Parts
from hyperagent_tasks.radicle.base import Reviewed, ReviewSpec


def owe(session: Session, parts: Parts, patch: Patch, step_id: str, revision_id: str, moment: datetime) -> None:
    """Note that the step's verdict belongs on this revision, once; to be posted soon by whoever comes first."""
    verdict = description.approved(session, step_id)
    if verdict is None or session.scalar(select(PatchReview.id).where(PatchReview.verdict_id == verdict.id)) is not None:
        return
    due = moment + patches.wait(0, parts.settings.requeue_after, parts.settings.requeue_after)
    row = PatchReview(id=new_id(), patch_id=patch.id, step_id=step_id, verdict_id=verdict.id, revision_id=revision_id)
    row.state, row.tries, row.created_at, row.next_at = ReviewState.PENDING, 0, moment, due
    session.add(row)


def post(parts: Parts, patch_id: str) -> None:
    """Post every pending verdict of the patch (our row's id). What fails is noted, not raised."""
    with db.transaction(parts.settings.db_url, reading=True) as session:
        pending = select(PatchReview).where(PatchReview.patch_id == patch_id, PatchReview.state == ReviewState.PENDING)
        revisions = dict.fromkeys(row.revision_id for row in session.scalars(pending.order_by(PatchReview.id)))
    for revision_id in revisions:
        _post(parts, patch_id, revision_id)


def _post(parts: Parts, patch_id: str, revision_id: str) -> None:
    with db.transaction(parts.settings.db_url, reading=True) as session:
        patch, rows = session.get_one(Patch, patch_id), _rows(session, patch_id, revision_id)
        verdicts = [row.verdict_id for row in rows]
        spec = ReviewSpec(patch.rid, patch.patch_id or "", revision_id, "accept", description.review(session, rows))
    try:
        reviewed = parts.forge.review(spec)
    except HyperagentError as error:
        _failed(parts, patch_id, revision_id, error)
        return
    failpoint("after_review")
    _posted(parts, patch_id, revision_id, verdicts, reviewed)


def _rows(session: Session, patch_id: str, revision_id: str, *, locking: bool = False) -> list[PatchReview]:
    query = select(PatchReview).where(PatchReview.patch_id == patch_id, PatchReview.revision_id == revision_id)
    return list(session.scalars((query.with_for_update() if locking else query).order_by(PatchReview.id)))


def _posted(parts: Parts, patch_id: str, revision_id: str, verdicts: list[str], reviewed: Reviewed) -> None:
    """Write what was read back; where a verdict came in between, the review lacks it, and all are pending again."""
    with db.transaction(parts.settings.db_url) as session:
        patch, rows, moment = (
            session.get_one(Patch, patch_id),
            _rows(session, patch_id, revision_id, locking=True),
            db.now(session),
        )
        whole = [row.verdict_id for row in rows] == verdicts
        for row in rows:
            if not whole:
                row.state, row.next_at = ReviewState.PENDING, moment
            elif row.state != ReviewState.POSTED:
                _tell(session, row, reviewed, moment)
        delivery.note(session, parts.settings, patch, reviewed.spread, moment)


def _tell(session: Session, row: PatchReview, reviewed: Reviewed, moment: datetime) -> None:
    first = row.posted_at is None
    row.state, row.reviewer, row.review_id = ReviewState.POSTED, reviewed.reviewer, reviewed.review_id
    row.posted_at, row.next_at, row.error_type, row.reason = moment, None, None, None
    if not first:
        return
    step = session.get_one(WorkflowStep, row.step_id)
    session.add(
        PatchEvent(
            id=new_id(),
            patch_id=row.patch_id,
            step_id=step.id,
            kind="reviewed",
            revision_id=row.revision_id,
            commit=step.commit or "",
            announced=reviewed.spread.announced,
            synced_with=reviewed.spread.synced_with,
            at=moment,
        )
    )
    told: dict[str, Any] = {
        "verdict": "accept",
        "reviewer": reviewed.reviewer,
        "revision": row.revision_id,
        "review": reviewed.review_id,
    }
    events.record(session, EventKind.PATCH_REVIEWED, step=step, at=moment, **told)


def _failed(parts: Parts, patch_id: str, revision_id: str, error: HyperagentError) -> None:
    s = parts.settings
    with db.transaction(s.db_url) as session:
        moment, final = db.now(session), isinstance(error, Permanent)
        for row in _rows(session, patch_id, revision_id, locking=True):
            if row.state != ReviewState.PENDING:
                continue
            row.next_at = None if final else moment + patches.wait(row.tries, s.retry_backoff, s.retry_backoff_max)
            row.state = ReviewState.REFUSED if final else ReviewState.PENDING
            known, row.tries, row.error_type, row.reason = row.error_type, row.tries + 1, error.type, error.sentence
            if known == error.type:  # told already
                continue
            kind = EventKind.REVIEW_REFUSED if final else EventKind.REVIEW_WAITS
            step = session.get_one(WorkflowStep, row.step_id)
            events.record(session, kind, step=step, at=moment, error_type=error.type, reason=error.sentence[:1000])
