"""What a patch and its reviews say, from plan and verdicts: plain Markdown, with links back to the workflow.

Words of models are quoted, so that they cannot be taken for ours; everything else is verbatim.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote

from sqlalchemy import select
from sqlalchemy.orm import Session

from hyperagent_common.models import AgentRun, CheckResult, StepAttempt, Verdict, Workflow, WorkflowStep
from hyperagent_common.patch_models import PatchReview
from hyperagent_tasks import verdict as verdicts
from hyperagent_tasks.verdict import Decision

LIMIT = 60_000
"""Most bytes of a text, as JSON: one argument of a command holds 128 KiB."""
SUMMARY = 2_000


def body(session: Session, workflow: Workflow, url: str) -> str:
    """The patch's description: the plan's, then each step that has its commit, then where it all came from."""
    here = f"{url}/api/v1/workflows/{workflow.id}"
    parts = [workflow.plan.description.strip()]
    parts += [_step(session, step, here) for step in workflow.steps if step.commit]
    tail = f"---\n\nHyperAgent workflow [{workflow.id}]({here}), plan sha256 `{workflow.plan.digest}`."
    return fit([part for part in parts if part], tail, here)


def _step(session: Session, step: WorkflowStep, here: str) -> str:
    verdict = approved(session, step.id)
    lines = [f"## {' '.join(step.planner_task.title.split())}", ""]
    if verdict is not None:
        run = session.get_one(AgentRun, verdict.agent_run_id)
        lines += [f"Approved by {run.provider} with {run.model}:", "", _quoted(verdict.summary[:SUMMARY]), ""]
    lines += [f"- {'passed' if check.passed else 'FAILED'}: {_code(check.command)}" for check in _checks(session, step, verdict)]
    provenance = f"{here}/steps/{quote(step.key)}/provenance"
    return "\n".join([*lines, f"- commit `{step.commit}`, [provenance]({provenance})"])


def approved(session: Session, step_id: str) -> Verdict | None:
    """The verdict with which the step was approved, also where an earlier attempt was told it."""
    said = select(Verdict).join(StepAttempt).where(StepAttempt.step_id == step_id, Verdict.decision == Decision.APPROVED)
    return session.scalars(said.order_by(Verdict.id.desc()).limit(1)).first()


def _checks(session: Session, step: WorkflowStep, verdict: Verdict | None) -> Sequence[CheckResult]:
    """The checks of the round that was committed."""
    query = select(CheckResult).join(StepAttempt).where(StepAttempt.step_id == step.id)
    last = session.scalars(query.order_by(CheckResult.attempt_id.desc(), CheckResult.round.desc()).limit(1)).first()
    found = (verdict.attempt_id, verdict.round) if verdict else (last.attempt_id, last.round) if last else None
    if found is None:
        return []
    mine = select(CheckResult).where(CheckResult.attempt_id == found[0], CheckResult.round == found[1])
    return session.scalars(mine.order_by(CheckResult.position)).all()


def review(session: Session, rows: Sequence[PatchReview]) -> str:
    """The summary of one revision's review: every verdict on what came in it."""
    texts = []
    for row in rows:
        step, verdict = session.get_one(WorkflowStep, row.step_id), session.get_one(Verdict, row.verdict_id)
        findings = [verdicts.Finding(**each) for each in verdict.findings]
        words = verdicts.Verdict(Decision(verdict.decision), verdict.summary, findings).words()
        texts.append(f"## {' '.join(step.planner_task.title.split())}\n\n{words}\n\nOn the commit `{step.commit}`.")
    return fit(texts, "Said by HyperAgent's verifier.", "the workflow")


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.strip().splitlines())


def _code(command: str) -> str:
    longest = max((len(run) for run in "".join(c if c == "`" else " " for c in command).split()), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{fence}{pad}{' '.join(command.split())}{pad}{fence}"


def fit(parts: Sequence[str], tail: str, whole: str) -> str:
    """The parts and the tail, cut where they are too long for the forge, saying so."""
    text = "\n\n".join([*parts, tail])
    if _bytes(text) <= LIMIT:
        return text
    tail = f"(cut here; the whole is at {whole})\n\n{tail}"
    cut, low, high = "\n\n".join(parts), 0, LIMIT
    while low < high:  # the longest beginning that fits: what a character takes as JSON differs
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _bytes(cut[:middle] + tail) <= LIMIT - 4 else (low, middle - 1)
    return f"{cut[:low].rstrip()}\n\n{tail}"


def _bytes(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode())
