"""The work so far of a step whose budget was spent: sealed and stored at the pause, and where the next attempt goes on.

It is an agent's work like any other: it comes in through quarantine, under the same policy, each time.
"""

from __future__ import annotations

import json
import logging

from sqlalchemy import select

from hyperagent_common import db
from hyperagent_common.errors import (
    BudgetSpent,
    DependencyDown,
    HyperagentError,
    IntakeRefused,
    LeaseLost,
    ProviderDown,
    Transient,
)
from hyperagent_common.models import Artifact, StepAttempt
from hyperagent_common.states import AttemptState
from hyperagent_tasks import handover, preparing, recording, scratch, sealing
from hyperagent_tasks.claims import Lease
from hyperagent_tasks.parts import Parts
from hyperagent_tasks.spec import SoFar, StepSpec, Workdir

log = logging.getLogger(__name__)
BUNDLE, TOLD = "so-far.bundle", "so-far.json"
PASSING = (DependencyDown, ProviderDown)
"""What may end an attempt after the pause without making the work so far any older, and all that are kinds of it."""
STOPPED = "You were stopped because a budget was spent, and a person gave it once more. Look at the files first."


def put_by(parts: Parts, step: StepSpec, work: Workdir, lease: Lease, number: int, feedback: str) -> None:
    """Store the workspace as it is, with the round it was in and what that was told. Where that fails the work is lost, and
    the pause goes on."""
    base = (work.kept / "base").read_text()
    try:
        mine = preparing.round_of(parts, work, 0)
        bundle = sealing.bundle(parts, step, mine, lease)
        if bundle is not None:
            parts.gitgate.import_seal(step.project, step.claim.attempt_id, work.inp / "base.bundle", bundle, base)
            shelf = recording.of_step(parts, step)
            shelf.keep_file(bundle, BUNDLE, recording.CLAIMED)
            told = {"base": base, "round": number, "feedback": feedback}
            shelf.keep(TOLD, json.dumps(told).encode(), recording.OBSERVED)
    except LeaseLost:
        raise
    except HyperagentError as error:
        log.warning("work.lost", extra={"step": step.claim.step_id, "error": error.sentence})


def found(parts: Parts, step: StepSpec) -> SoFar | None:
    """What the step's last attempt left when a budget was spent, in quarantine now; None where it left nothing."""
    keys = _stored(parts, step)
    if keys.keys() != {BUNDLE, TOLD}:
        return None
    told = json.loads(parts.storage.get(keys[TOLD]))
    with scratch.directory(handover.scratch_place(parts)) as place:
        base, bundle = place / "base.bundle", place / "out.bundle"
        parts.gitgate.base_bundle(step.project, told["base"], base)
        bundle.write_bytes(parts.storage.get(keys[BUNDLE]))
        try:
            sealed = parts.gitgate.import_seal(step.project, step.claim.attempt_id, base, bundle, told["base"])
        except IntakeRefused as error:
            log.warning("work.refused", extra={"step": step.claim.step_id, "error": error.sentence})
            return None
    feedback = "\n\n".join(filter(None, [STOPPED, told["feedback"]]))
    return SoFar(told["base"], sealed.sealed_commit, min(told["round"], step.choices.rounds), feedback)


def _passing() -> set[str]:
    """The types of what passes. A plain `Transient` too: a container of ours failed, or the branch kept moving."""
    found, left = {Transient.type}, list(PASSING)
    while left:
        kind = left.pop()
        found.add(kind.type)
        left += kind.__subclasses__()
    return found


def _stored(parts: Parts, step: StepSpec) -> dict[str, str]:
    passing = _passing()
    before = (StepAttempt.step_id == step.claim.step_id, StepAttempt.number < step.claim.number)
    with db.transaction(parts.settings.db_url, reading=True) as session:
        for attempt in session.scalars(select(StepAttempt).where(*before).order_by(StepAttempt.number.desc())):
            if attempt.error_type == BudgetSpent.type:
                kept = select(Artifact).where(Artifact.attempt_id == attempt.id, Artifact.name.in_([BUNDLE, TOLD]))
                return {row.name: row.key for row in session.scalars(kept)}
            if attempt.state != AttemptState.ABANDONED and attempt.error_type not in passing:
                return {}
    return {}
