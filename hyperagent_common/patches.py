"""What becomes of patches, in the database: why there is none, who holds one, and what is due to be tried again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from hyperagent_common import events
from hyperagent_common.events import EventKind
from hyperagent_common.ids import new_id
from hyperagent_common.models import DeadLetter, Patch, Project, Workflow, WorkflowStep
from hyperagent_common.patch_models import PatchDelivery, PatchReview, PatchSkip, ReviewState, SkipKind
from hyperagent_common.states import StepState

FORBIDDING = ("work-rejected", "rounds-spent", "checks-failed")
"""Types of errors with which verifier or checks said no."""


def skip(
    session: Session, workflow_id: str, kind: SkipKind, reason: str, *, at: datetime, step: WorkflowStep | None = None
) -> None:
    """Record why the workflow has no patch; told once for each reason."""
    row = session.scalar(select(PatchSkip).where(PatchSkip.workflow_id == workflow_id))
    if row is not None and (row.kind, row.reason) == (kind, reason):
        return
    if row is None:
        row = PatchSkip(id=new_id(), workflow_id=workflow_id)
        session.add(row)
    row.kind, row.reason, row.at, row.step_id = kind, reason, at, step.id if step else None
    told: dict[str, Any] = {"skip": str(kind), "reason": reason[:1000]}
    events.record(session, EventKind.PATCH_SKIPPED, step=step, workflow_id=workflow_id, at=at, **told)


def unskip(session: Session, workflow_id: str) -> None:
    """The workflow has a patch after all."""
    session.execute(delete(PatchSkip).where(PatchSkip.workflow_id == workflow_id))


def skipped(session: Session, workflow_id: str) -> PatchSkip | None:
    """Why the workflow has no patch, where that is known."""
    return session.scalar(select(PatchSkip).where(PatchSkip.workflow_id == workflow_id))


def ended_without(session: Session, workflow: Workflow, moment: datetime) -> None:
    """A workflow that failed or was cancelled: where nothing was published, record why."""
    published = select(Patch.id).where(Patch.workflow_id == workflow.id, Patch.patch_id.is_not(None))
    if session.scalar(published) is not None or skipped(session, workflow.id) is not None:
        return
    failed = next((step for step in workflow.steps if step.state == StepState.FAILED), None)
    if failed is None:
        skip(session, workflow.id, SkipKind.ENDED, f"The workflow was {workflow.state} before anything was approved.", at=moment)
        return
    query = select(DeadLetter).where(DeadLetter.step_id == failed.id).order_by(DeadLetter.id.desc()).limit(1)
    letter = session.scalars(query).first()
    forbidden = letter is not None and letter.error_type in FORBIDDING
    kind = SkipKind.VERDICT if forbidden else SkipKind.ENDED
    skip(session, workflow.id, kind, f"Step {failed.key}: {failed.reason or 'failed'}", at=moment, step=failed)


def wait(tries: int, first: float, most: float) -> timedelta:
    """The pause before the next try."""
    return timedelta(seconds=min(first * 2.0 ** min(tries, 16), most))


def due(session: Session, moment: datetime, again: timedelta) -> Sequence[tuple[str, str | None]]:
    """Projects with reviews or announcements due, each with the host that publishes it; they are not due again for `again`."""
    reviews = select(PatchReview).where(PatchReview.state == ReviewState.PENDING, PatchReview.next_at <= moment)
    deliveries = select(PatchDelivery).where(PatchDelivery.next_at <= moment)
    rows: list[PatchReview | PatchDelivery] = [
        *session.scalars(reviews.order_by(PatchReview.next_at).limit(500).with_for_update(skip_locked=True)),
        *session.scalars(deliveries.order_by(PatchDelivery.next_at).limit(500).with_for_update(skip_locked=True)),
    ]
    for row in rows:
        row.next_at = moment + again
    ids = {row.patch_id for row in rows}
    owners = select(Project.id, Project.publisher).join(Workflow).join(Patch).where(Patch.id.in_(ids)).distinct()
    return [(row.id, row.publisher) for row in session.execute(owners)]


def unfinished(session: Session, project_id: str) -> tuple[list[Patch], list[Patch]]:
    """Patches of a project with verdicts not yet on them, and those no peer holds yet."""
    mine = select(Patch).join(Workflow).where(Workflow.project_id == project_id, Patch.patch_id.is_not(None))
    verdicts = select(PatchReview.patch_id).where(PatchReview.state == ReviewState.PENDING)
    alone = select(PatchDelivery.patch_id).where(PatchDelivery.next_at.is_not(None))
    query = mine.where(or_(Patch.id.in_(verdicts), Patch.id.in_(alone))).order_by(Patch.id)
    rows = list(session.scalars(query.limit(500)))
    waiting = set(session.scalars(verdicts)), set(session.scalars(alone))
    return [p for p in rows if p.id in waiting[0]], [p for p in rows if p.id in waiting[1]]
