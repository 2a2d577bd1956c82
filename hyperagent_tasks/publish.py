"""Hop publish: push the branch, open or revise the one patch of the workflow, record what the forge holds."""

from __future__ import annotations

from sqlalchemy import select

from hyperagent_common import db, events
from hyperagent_common.events import EventKind
from hyperagent_common.ids import new_id
from hyperagent_common.models import Patch, PatchEvent, StepAttempt, Workflow
from hyperagent_tasks import claims, handover
from hyperagent_tasks.failpoints import failpoint
from hyperagent_tasks.parts import Parts
from hyperagent_tasks.radicle.base import Published, PublishSpec
from hyperagent_tasks.spec import Made, StepSpec

KINDS = {"opened": EventKind.PATCH_OPENED, "revised": EventKind.PATCH_REVISED, "found": EventKind.PATCH_FOUND}


def publish(parts: Parts, step: StepSpec, made: Made) -> Published:
    """Publish the branch up to this step's commit. Raises `PushFailed`, `ForgeRefused`, `LeaseLost`."""
    spec = _intend(parts, step)
    published = parts.forge.publish(spec)
    failpoint("after_push")
    _record(parts, step, made, published)
    return published


def _intend(parts: Parts, step: StepSpec) -> PublishSpec:
    """Fix the publish time before the first try: with it, opening twice makes the same patch."""
    with claims.fenced(parts.settings.db_url, step.claim, whole=True) as (session, _row):
        head = session.get_one(Workflow, step.claim.workflow_id).head or ""
        patch = session.scalar(select(Patch).where(Patch.workflow_id == step.claim.workflow_id).with_for_update())
        if patch is None:
            patch = Patch(
                id=new_id(),
                workflow_id=step.claim.workflow_id,
                forge=parts.forge.name,
                rid=step.rid,
                published_at=db.now(session).replace(microsecond=0),
            )
            session.add(patch)
        known, published_at = patch.patch_id, patch.published_at
    handover.fetch(parts, step, step.base or "", head)
    heads = parts.gitgate.commits(step.project, step.base or "", step.branch, head=head)
    return PublishSpec(
        repo=parts.gitgate.trusted(step.project),
        rid=step.rid,
        branch=step.branch,
        base=step.base or "",
        heads=[info.commit for info in heads],
        title=step.workflow_title,
        body=step.workflow_body,
        published_at=published_at,
        patch_id=known,
    )


def _record(parts: Parts, step: StepSpec, made: Made, published: Published) -> None:
    with claims.fenced(parts.settings.db_url, step.claim, whole=True) as (session, row):
        patch = session.scalars(select(Patch).where(Patch.workflow_id == step.claim.workflow_id)).one()
        patch.patch_id, patch.head = published.patch_id, published.head
        moment = db.now(session)
        session.add(
            PatchEvent(
                id=new_id(),
                patch_id=patch.id,
                step_id=step.claim.step_id,
                kind=published.did,
                revision_id=published.revision_id,
                commit=made.commit,
                announced=published.announced,
                synced_with=published.synced_with,
                at=moment,
            )
        )
        row.commit = made.commit
        attempt = session.get_one(StepAttempt, step.claim.attempt_id)
        said = {"patch": published.patch_id, "revision": published.revision_id, "commit": made.commit}
        events.record(session, KINDS[published.did], step=row, attempt=attempt, at=moment, **said)
