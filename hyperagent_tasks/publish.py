"""Hop publish: push the branch, open or revise the one patch of the workflow, record what the forge holds, post the verdict."""

from __future__ import annotations

import hashlib
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hyperagent_common import db, events, patches
from hyperagent_common.errors import NothingToPropose
from hyperagent_common.events import EventKind
from hyperagent_common.ids import new_id
from hyperagent_common.models import Patch, PatchEvent, StepAttempt, Workflow
from hyperagent_common.patch_models import SkipKind
from hyperagent_tasks import claims, delivery, description, handover, reviews
from hyperagent_tasks.failpoints import failpoint
from hyperagent_tasks.parts import Parts
from hyperagent_tasks.radicle.base import Published, PublishSpec
from hyperagent_tasks.spec import Made, StepSpec

KINDS = {"opened": EventKind.PATCH_OPENED, "revised": EventKind.PATCH_REVISED, "found": EventKind.PATCH_FOUND}
UNWANTED = "The project or the plan says `publish: false`; the commits are on the branch."


def publish(parts: Parts, step: StepSpec, made: Made) -> Published | None:
    """Publish the branch up to this step's commit, and its verdict with it; None where the patch is skipped.

    Raises `PushFailed`, `ForgeRefused`, `LeaseLost`. A verdict that cannot be posted now is noted, and raises nothing.
    """
    if not step.choices.publish:
        _skip(parts, step, made, SkipKind.UNWANTED, UNWANTED)
        return None
    try:
        spec = _intend(parts, step)
        failpoint("before_push")
        published = parts.forge.publish(spec)
    except NothingToPropose as error:
        _skip(parts, step, made, SkipKind.NOTHING, error.sentence)
        return None
    failpoint("after_push")
    patch_id = _record(parts, step, made, published)
    failpoint("before_review")
    reviews.post(parts, patch_id)
    return published


def _skip(parts: Parts, step: StepSpec, made: Made, kind: SkipKind, reason: str) -> None:
    with claims.fenced(parts.settings.db_url, step.claim, whole=True) as (session, row):
        row.commit = made.commit
        patches.skip(session, step.claim.workflow_id, kind, reason, at=db.now(session), step=row)


def _intend(parts: Parts, step: StepSpec) -> PublishSpec:
    """Fix publish time and description before the first try: with the one, opening twice makes the same patch; by the
    other, a description of ours is known from a person's."""
    with claims.fenced(parts.settings.db_url, step.claim, whole=True) as (session, _row):
        workflow = session.get_one(Workflow, step.claim.workflow_id)
        head = workflow.head or ""
        body = description.body(session, workflow, parts.settings.url.rstrip("/"))
        patch = _patch(session, parts, step)
        digest = hashlib.sha256(body.encode()).hexdigest()
        if digest not in patch.bodies:
            patch.bodies = [*patch.bodies, digest]
        known, published_at, bodies = patch.patch_id, patch.published_at, patch.bodies
    handover.fetch(parts, step, step.base or "", head)
    heads = parts.gitgate.commits(step.project, step.base or "", step.branch, head=head)
    if not heads:
        raise NothingToPropose(f"The branch {step.branch} has no commit ahead of {step.base}.")
    return PublishSpec(
        repo=parts.gitgate.trusted(step.project),
        rid=step.rid,
        branch=step.branch,
        base=step.base or "",
        heads=[info.commit for info in heads],
        title=step.workflow_title,
        body=body,
        published_at=published_at,
        patch_id=known,
        ours=bodies,
    )


def _patch(session: Session, parts: Parts, step: StepSpec) -> Patch:
    found = session.scalar(select(Patch).where(Patch.workflow_id == step.claim.workflow_id).with_for_update())
    if found is None:
        moment = db.now(session).replace(microsecond=0)
        found = Patch(id=new_id(), workflow_id=step.claim.workflow_id, forge=parts.forge.name, rid=step.rid, published_at=moment)
        found.bodies = []
        session.add(found)
    return found


def _record(parts: Parts, step: StepSpec, made: Made, published: Published) -> str:
    """Write what the forge holds, and which verdict is owed to it; returns the id of our row."""
    with claims.fenced(parts.settings.db_url, step.claim, whole=True) as (session, row):
        patch = session.scalars(select(Patch).where(Patch.workflow_id == step.claim.workflow_id)).one()
        patch.patch_id, patch.head = published.patch_id, published.head
        patches.unskip(session, step.claim.workflow_id)
        moment, spread = db.now(session), published.spread
        session.add(
            PatchEvent(
                id=new_id(),
                patch_id=patch.id,
                step_id=step.claim.step_id,
                kind=published.did,
                revision_id=published.revision_id,
                commit=made.commit,
                announced=spread.announced,
                synced_with=spread.synced_with,
                at=moment,
            )
        )
        row.commit = made.commit
        attempt = session.get_one(StepAttempt, step.claim.attempt_id)
        said: dict[str, Any] = {"patch": published.patch_id, "revision": published.revision_id, "commit": made.commit}
        events.record(session, KINDS[published.did], step=row, attempt=attempt, at=moment, **said)
        delivery.note(session, parts.settings, patch, spread, moment)
        reviews.owe(session, parts, patch, row.id, published.revision_id, moment)
        return patch.id
