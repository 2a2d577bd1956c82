"""The verifier's part of a round: a read-only clone of the sealed commit, a prompt with a nonce, and one verdict."""

from __future__ import annotations

import json
from typing import Any

from hyperagent_common import db, events
from hyperagent_common.choices import ASKS
from hyperagent_common.errors import WorkRejected
from hyperagent_common.events import EventKind
from hyperagent_common.ids import new_id
from hyperagent_common.models import StepAttempt
from hyperagent_common.models import Verdict as VerdictRow
from hyperagent_tasks import claims, preparing, prompts, verdict
from hyperagent_tasks.coding import Bench
from hyperagent_tasks.conversing import Ran
from hyperagent_tasks.sealing import Examined
from hyperagent_tasks.spec import StepSpec
from hyperagent_tasks.verdict import Malformed, Verdict

DIFF_LIMIT = 200_000
CHECKS_LIMIT = 40_000


def review(bench: Bench, number: int, examined: Examined) -> tuple[Verdict, Ran]:
    """The verdict on a round's sealed work. A malformed one is asked for once more, then the step fails: `WorkRejected`."""
    parts, step = bench.parts, bench.step
    ws = preparing.clone(parts, step, examined.sealed.sealed_commit, bench.work.root / f"review-{number}")
    diff = parts.gitgate.diff(step.project, examined.sealed.base, examined.sealed.sealed_commit, limit=DIFF_LIMIT)
    fault = ""
    for _ in range(ASKS):
        nonce = prompts.new_nonce()
        ran = bench.ask("verifier", number, _prompt(step, examined, diff, nonce, fault), ws)
        try:
            found = verdict.read(verdict.heard(ran.outcome.final_text, ran.said), nonce)
        except Malformed as error:
            fault = str(error)
            _malformed(bench, number, fault)
            continue
        _record(bench, number, ran, found)
        return found, ran
    raise WorkRejected(f"The verifier gave no verdict that can be believed, asked {ASKS} times: {fault}.")


def _prompt(step: StepSpec, examined: Examined, diff: str, nonce: str, fault: str) -> str:
    """Everything of ours first, so that nothing planted in the diff can come before the nonce."""
    persona, fence = prompts.persona("verifier", step.choices.prompts), prompts.new_nonce()
    schema = json.dumps(verdict.SCHEMA)
    again = f"Your last answer was no verdict: {fault}. Answer again." if fault else ""
    passed = "passed" if examined.passed else f"FAILED: {'; '.join(examined.failed)}"
    checks = f"The checks {passed}." if examined.checks else "The task has no checks."
    return "\n\n".join(
        filter(
            None,
            [
                persona.text,
                persona.answer(nonce=nonce, fence=fence, schema=schema),
                again,
                f"## The task\n\n{step.prompt()}",
                f"## The checks, run in a fresh container\n\n{checks}",
                prompts.fenced("check output", examined.words(), fence, CHECKS_LIMIT) if examined.checks else "",
                "## The diff",
                prompts.fenced("diff", diff, fence, DIFF_LIMIT + 100),
            ],
        )
    )


def _malformed(bench: Bench, number: int, fault: str) -> None:
    with claims.fenced(bench.parts.settings.db_url, bench.step.claim) as (session, row):
        attempt = session.get_one(StepAttempt, bench.step.claim.attempt_id)
        events.record(session, EventKind.VERDICT_MALFORMED, step=row, attempt=attempt, round=number, fault=fault[:500])


def _record(bench: Bench, number: int, ran: Ran, found: Verdict) -> None:
    with claims.fenced(bench.parts.settings.db_url, bench.step.claim) as (session, row):
        attempt, moment = session.get_one(StepAttempt, bench.step.claim.attempt_id), db.now(session)
        session.add(
            VerdictRow(
                id=new_id(),
                attempt_id=attempt.id,
                agent_run_id=ran.agent_run_id,
                round=number,
                decision=str(found.decision),
                summary=found.summary,
                findings=found.document(),
                created_at=moment,
            )
        )
        said: dict[str, Any] = {"decision": str(found.decision), "summary": found.summary[:500], "findings": len(found.findings)}
        events.record(session, EventKind.VERDICT, step=row, attempt=attempt, at=moment, round=number, model=ran.model, **said)
