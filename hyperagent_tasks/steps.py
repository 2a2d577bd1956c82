"""The whole life of a step: claim, decide, prepare, rounds until approved, commit, publish, record, advance."""

from __future__ import annotations

import contextlib
from datetime import timedelta

from celery.exceptions import SoftTimeLimitExceeded

from hyperagent_common import db
from hyperagent_common.errors import DependencyDown, LeaseLost, RunnerTimeout
from hyperagent_common.models import StepAttempt
from hyperagent_tasks import claims, deadline, preparing, publish, recording, rounds, sealing, sofar, spec
from hyperagent_tasks.claims import Claim, Lease
from hyperagent_tasks.failpoints import failpoint
from hyperagent_tasks.parts import Parts, instance
from hyperagent_tasks.spec import StepSpec


def run_step(parts: Parts, step_id: str, generation: int) -> str:
    """Carry one step to its commit and patch. Raises `StepTaken`, or a `HyperagentError` that says how it failed."""
    s = parts.settings
    claim = claims.take(s.db_url, parts.app, step_id, generation, parts.worker, s.lease_seconds)
    failpoint("after_claim")
    with contextlib.ExitStack() as held:
        return _settle(parts, claim, held)


def _settle(parts: Parts, claim: Claim, held: contextlib.ExitStack) -> str:
    """Run the hops under a lease, which `held` ends; where they fail, the lease's own thread among them, write how the step
    stands before the error goes on to Celery."""
    s, ours = parts.settings, True
    try:
        lease = held.enter_context(Lease(s.db_url, claim, s.lease_seconds, s.heartbeat_seconds))
        return carry_out(parts, claim, lease)
    except SystemExit:  # the worker is drained: another one goes on at once
        with contextlib.suppress(LeaseLost, DependencyDown):
            claims.hand_over(s.db_url, parts.app, claim)
        raise
    except SoftTimeLimitExceeded as error:
        seconds = error.args[0] if error.args else s.longest_attempt
        late = RunnerTimeout(f"The attempt did not end within {seconds:.0f} s, the time its rounds and agents may take.")
        raise claims.fail(s.db_url, parts.app, claim, late) from error
    except Exception as error:
        ours = not isinstance(error, LeaseLost)
        raise claims.fail(s.db_url, parts.app, claim, error, patience=s.dependency_patience, outage=s.outage_patience) from error
    finally:
        if ours:  # else what it left is the reaper's, which may still store it
            recording.clean(parts, claim)


def carry_out(parts: Parts, claim: Claim, lease: Lease) -> str:
    """Read what is to do, and do it before its deadline, which the reconciler is told. Returns the commit."""
    with claims.fenced(parts.settings.db_url, claim) as (session, _row):
        step = spec.read(session, claim, parts.settings)
        seconds = parts.settings.attempt_seconds(step.choices)
        session.get_one(StepAttempt, claim.attempt_id).deadline = db.now(session) + timedelta(seconds=seconds)
    with deadline.within(seconds):
        return _hops(parts, claim, step, lease)


def _hops(parts: Parts, claim: Claim, step: StepSpec, lease: Lease) -> str:
    """One after the other; each leaves its trace before the next begins."""
    preparing.decide(parts, step)
    step = preparing.branch(parts, step)
    made = sealing.made_before(parts, step)
    if made is None:
        begun = sofar.found(parts, step)
        work = preparing.workspace(parts, step, begun)
        approved = rounds.until_approved(parts, step, work, lease, begun)
        made = sealing.commit(parts, step, approved)
        recording.keep_made(parts, step, made)
        failpoint("after_commit")
    if step.choices.publish and step.publisher not in (None, instance(parts.settings)):
        claims.forward(parts.settings, parts.app, claim, str(step.publisher))
        return made.commit
    published = publish.publish(parts, step, made)
    failpoint("after_publish")
    recording.provenance(parts, step, made, published)
    failpoint("before_finish")
    claims.finish(parts.settings.db_url, parts.app, claim, made.commit)
    return made.commit
