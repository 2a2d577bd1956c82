"""Rounds of a step: coder, seal, checks, verifier; what is refused becomes the next round's input, the work goes on."""

from __future__ import annotations

from hyperagent_common.errors import BudgetSpent, ChecksFailed, RoundsSpent, WorkRejected
from hyperagent_tasks import coding, preparing, reviewing, sealing, sofar
from hyperagent_tasks.claims import Lease
from hyperagent_tasks.failpoints import failpoint
from hyperagent_tasks.parts import Parts
from hyperagent_tasks.sealing import Approved, Examined
from hyperagent_tasks.spec import SoFar, StepSpec, Workdir
from hyperagent_tasks.verdict import Decision, Verdict


def until_approved(parts: Parts, step: StepSpec, work: Workdir, lease: Lease, begun: SoFar | None = None) -> Approved:
    """Rounds until one is approved with passing checks, from the one that was `begun`. Where a budget is spent within one, the
    work is put by. Raises `WorkRejected`, `ChecksFailed`, `RoundsSpent`, `BudgetSpent`."""
    bench = coding.Bench(parts, step, work, lease)
    first, feedback = (begun.round, begun.feedback) if begun else (1, "")
    for number in range(first, step.choices.rounds + 1):
        try:
            found = _round(bench, number, feedback)
        except BudgetSpent:
            sofar.put_by(parts, step, work, lease, number, feedback)
            raise
        if _passes(found):
            return found
        feedback = _feedback(found.examined, found.verdict)
    raise _spent(step, found)


def _round(bench: coding.Bench, number: int, feedback: str) -> Approved:
    """One round; whether it passes is for `_passes` to say."""
    parts, step, lease = bench.parts, bench.step, bench.lease
    mine = preparing.round_of(parts, bench.work, number)
    ran = bench.ask("coder", number, coding.prompt(step, feedback), mine.ws)
    failpoint("after_agent")
    examined = sealing.seal(parts, step, mine, lease)
    failpoint("after_seal")
    if not step.choices.verify:
        return Approved(ran, examined, number)
    verdict, verifier = reviewing.review(bench, number, examined)
    if verdict.decision is Decision.REJECTED:
        raise WorkRejected(f"The verifier rejects the work: {verdict.words()}")
    return Approved(ran, examined, number, verdict, verifier)


def _passes(found: Approved) -> bool:
    """Both must say yes: the checks, and the verifier where there is one."""
    return found.examined.passed and (found.verdict is None or found.verdict.decision is Decision.APPROVED)


def _feedback(examined: Examined, verdict: Verdict | None) -> str:
    said = []
    if verdict is not None and verdict.decision is not Decision.APPROVED:
        said.append(f"The verifier asks for changes:\n\n{verdict.words()}")
    if not examined.passed:
        said.append(f"These checks failed: {'; '.join(examined.failed)}\n\n{examined.words()[-20_000:]}")
    return "\n\n".join(said)


def _spent(step: StepSpec, found: Approved) -> ChecksFailed | RoundsSpent:
    rounds = "the only round" if step.choices.rounds == 1 else f"all {step.choices.rounds} rounds"
    if not found.examined.passed:
        return ChecksFailed(f"The checks refuse the agent's work after {rounds}: {'; '.join(found.examined.failed)}")
    asked = found.verdict.words() if found.verdict else ""
    return RoundsSpent(f"After {rounds} the verifier still asks for changes: {asked}")
