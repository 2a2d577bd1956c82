"""Hops seal, check, commit: the workspace becomes a bundle, the bundle a checked tree, the tree a commit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from hyperagent_common import events
from hyperagent_common.errors import AgentFailed, IntakeRefused, LeaseLost, RunnerTimeout, Transient
from hyperagent_common.events import EventKind
from hyperagent_common.models import CheckResult, StepAttempt, Workflow
from hyperagent_tasks import claims, handover, intake, recording
from hyperagent_tasks.claims import Lease
from hyperagent_tasks.conversing import Ran
from hyperagent_tasks.failpoints import failpoint
from hyperagent_tasks.gitgate import CommitResult, Sealed
from hyperagent_tasks.parts import Parts
from hyperagent_tasks.preparing import SCRIPTS, must, owner
from hyperagent_tasks.runners.base import Mount, RunnerResult, RunSpec
from hyperagent_tasks.spec import Made, StepSpec, Workdir
from hyperagent_tasks.verdict import Verdict

SEAL_SECONDS = 300.0
UNSEALABLE = 3
TRIES = 20


def made_before(parts: Parts, step: StepSpec) -> Made | None:
    """The commit an earlier attempt made before its worker died: the database holds it, it is never made twice."""
    if step.commit is None:
        return None
    tree, seen = recording.made(parts, step)
    return Made(step.commit, tree, {**seen, "resumed": True})


@dataclass(frozen=True)
class Examined:
    """A round's sealed work and what the checks said of it."""

    sealed: Sealed
    checks: Sequence[Mapping[str, Any]]
    passed: bool

    @property
    def failed(self) -> list[str]:
        """The commands that refuse the work."""
        return [] if self.passed else [c["command"] for c in self.checks if not c["passed"]] or ["the checks"]

    def words(self) -> str:
        """The checks for an agent to read; what they printed is what the coder's program printed."""
        lines = []
        for check in self.checks:
            lines += [f"$ {check['command']}", f"({'passed' if check['passed'] else 'FAILED'}, exit code {check['exit_code']})"]
            lines += [check["output_tail"]] if check["output_tail"] else []
        return "\n".join(lines)


def bundle(parts: Parts, step: StepSpec, work: Workdir, lease: Lease) -> Path | None:
    """Seal the workspace; its changes as a bundle, None where there are none. Raises `IntakeRefused`, `Transient`."""
    ended = parts.runner.run(_seal_spec(parts, step, work), cancelled=lease.lost)
    if ended.exit_code == UNSEALABLE:
        raise IntakeRefused(f"The workspace cannot be sealed: {ended.stderr_tail.strip()[-500:]}")
    must(ended, "The workspace could not be sealed")
    made = work.out / "out.bundle"
    return made if made.exists() else None


def seal(parts: Parts, step: StepSpec, work: Workdir, lease: Lease) -> Examined:
    """Seal the workspace, import the result through quarantine, and run the checks on it meanwhile."""
    made = bundle(parts, step, work, lease)
    if made is None:
        raise AgentFailed("The agent said it was done and changed nothing.", mend="Say in the plan what must change.")
    with ThreadPoolExecutor(1, thread_name_prefix="check") as pool:
        checking = pool.submit(_check, parts, step, work, lease)
        try:
            sealed = parts.gitgate.import_seal(
                step.project, step.claim.attempt_id, work.inp / "base.bundle", made, (work.kept / "base").read_text()
            )
            checked = checking.result()
        except BaseException:  # also where this worker is being stopped: the checks end now, not when they please
            lease.stop()
            raise
    if lease.lost():
        raise LeaseLost()
    return _record_checks(parts, step, work, checked, sealed)


def _seal_spec(parts: Parts, step: StepSpec, work: Workdir) -> RunSpec:
    return RunSpec(
        role="seal",
        argv=[f"{SCRIPTS}/seal.sh"],
        owner=owner(parts, step, SEAL_SECONDS),
        mounts=[Mount(work.ws, "/workspace"), Mount(work.inp, "/in"), Mount(work.out, "/out", read_only=False)],
        env={"WORKSPACE": "/workspace", "IN": "/in", "OUT": "/out"},
        timeout=SEAL_SECONDS,
    )


def _check(parts: Parts, step: StepSpec, work: Workdir, lease: Lease) -> RunnerResult | None:
    """The project's checks in a fresh container on the sealed commit; None where there are none."""
    if not step.checks:
        return None
    with (work.kept / "checks.txt").open("wb") as out:
        return parts.runner.run(
            RunSpec(
                role="check",
                argv=[f"{SCRIPTS}/check.sh", *step.checks],
                owner=owner(parts, step, parts.settings.check_timeout),
                mounts=[
                    Mount(work.inp, "/in"),
                    Mount(work.out, "/in-sealed"),
                    Mount(work.checked, "/out", read_only=False),
                ],
                env={"IN": "/in", "SEALED": "/in-sealed/out.bundle", "OUT": "/out"},
                workdir="/tmp",
                timeout=parts.settings.check_timeout,
                output_limit=16 << 20,
            ),
            sink=partial(_keep, out),
            cancelled=lease.lost,
        )


def _keep(out: BinaryIO, _stream: str, data: bytes) -> None:
    out.write(data)


def _record_checks(parts: Parts, step: StepSpec, work: Workdir, checked: RunnerResult | None, sealed: Sealed) -> Examined:
    rows = _results(work, step.checks, checked)
    with claims.fenced(parts.settings.db_url, step.claim) as (session, row):
        attempt = session.get_one(StepAttempt, step.claim.attempt_id)
        session.add_all(CheckResult(attempt_id=attempt.id, round=work.round, **values) for values in rows)
        changed: dict[str, Any] = {
            "files": len(sealed.changed_files),
            "insertions": sealed.insertions,
            "deletions": sealed.deletions,
        }
        events.record(session, EventKind.SEALED, step=row, attempt=attempt, **changed)
        if checked is not None:
            took = (checked.finished_at - checked.started_at).total_seconds()
            events.record(session, EventKind.CHECKED, step=row, attempt=attempt, latency=took, passed=checked.ok)
    if checked is not None:
        recording.keep_checks(parts, step, work)
    if checked is not None and checked.ended == "timeout":
        raise RunnerTimeout(f"The checks did not end within {parts.settings.check_timeout:.0f} s.")
    return Examined(sealed, rows, checked is None or checked.ok)


def _results(work: Workdir, commands: Sequence[str], checked: RunnerResult | None) -> list[dict[str, Any]]:
    """One row a command. The container's exit code decides; what each command printed is what the container claims."""
    if checked is None:
        return []
    claimed = _claimed(work)
    rows = []
    for position, command in enumerate(commands):
        said = claimed[position] if position < len(claimed) else {}
        exit_code = said.get("exit_code") if isinstance(said.get("exit_code"), int) else None
        seconds = said.get("seconds") if isinstance(said.get("seconds"), (int, float)) else None
        rows.append(
            {
                "position": position,
                "command": command,
                "exit_code": exit_code,
                "passed": checked.ok or exit_code == 0,
                "seconds": seconds,
                "output_tail": str(said.get("output", ""))[-4000:].replace("\x00", "\ufffd"),
            }
        )
    return rows


def _claimed(work: Workdir) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    data = intake.read_small(work.checked, "checks.json", limit=4 << 20)
    for line in (data or b"").decode("utf-8", "replace").splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def commit(parts: Parts, step: StepSpec, approved: Approved) -> Made:
    """The host makes the commit, with trailers that say what made it, and the branch's head in the database moves to it.

    The move is a compare-and-swap under the fence: who lost the lease, or was overtaken by another step, moves nothing.
    """
    head = step.head or ""
    for _ in range(TRIES):
        result = _built(parts, step, approved.ran, approved.examined.sealed, head)
        handover.keep(parts, step, result.commit)
        failpoint("after_build")
        now = _moved(parts, step, head, result.commit)
        handover.fetch(parts, step, step.base or "", now)
        if now == result.commit:
            return Made(result.commit, result.tree, _seen(approved, result.tip_moved))
        head = now
    raise Transient(f"The branch {step.branch} kept moving.")


def _built(parts: Parts, step: StepSpec, ran: Ran, sealed: Sealed, head: str) -> CommitResult:
    return parts.gitgate.build(
        step.project,
        head,
        sealed.base,
        sealed.tree,
        message=f"{step.title}\n\n{step.instructions.strip()[:2000]}",
        trailers={
            "Hyperagent-Workflow": step.claim.workflow_id,
            "Hyperagent-Step": step.claim.step_id,
            "Hyperagent-Attempt": step.claim.attempt_id,
            "Assisted-by": f"{ran.agent}:{ran.model}",
        },
        when=step.claim.claimed_at,
    )


def _moved(parts: Parts, step: StepSpec, head: str, commit: str) -> str:
    """Move the branch from `head` to `commit`; returns where it is, which is elsewhere where another step was quicker."""
    with claims.fenced(parts.settings.db_url, step.claim, whole=True) as (session, row):
        workflow = session.get_one(Workflow, step.claim.workflow_id)
        if workflow.head != head:
            return workflow.head or ""
        attempt = session.get_one(StepAttempt, step.claim.attempt_id)
        workflow.head = row.commit = commit
        events.record(session, EventKind.COMMITTED, step=row, attempt=attempt, commit=commit)
    return commit


@dataclass(frozen=True)
class Approved:
    """Work that may be committed: the coder's last run, what was sealed, and the verifier's run and verdict, if any."""

    ran: Ran
    examined: Examined
    round: int
    verdict: Verdict | None = None
    verifier: Ran | None = None


def _verified(approved: Approved) -> dict[str, Any]:
    if approved.verdict is None or approved.verifier is None:
        return {"verified": False, "round": approved.round}
    verdict, ran = approved.verdict, approved.verifier
    return {
        "verified": True,
        "round": approved.round,
        "decision": str(verdict.decision),
        "summary": verdict.summary,
        "findings": verdict.document(),
        "verifier": {"name": ran.agent, "version": ran.cli_version, "model": ran.model, "promptDigest": ran.persona},
    }


def _seen(approved: Approved, rebased: bool) -> dict[str, Any]:
    """What this side saw of the run, as JSON values; what the CLI only said stands under `claimed`."""
    ran, sealed = approved.ran, approved.examined.sealed
    observed, result = ran.observed, ran.result
    return {
        "agent": {"name": ran.agent, "version": ran.cli_version, "session": ran.outcome.session_id, "model": ran.model},
        "persona": ran.persona,
        "verdict": _verified(approved),
        "image": result.image_id,
        "container": result.container_id,
        "exitCode": result.exit_code,
        "observed": {"inputTokens": observed.input, "outputTokens": observed.output, "requests": observed.requests},
        "claimed": {"usage": asdict(ran.outcome.usage), "toolCalls": ran.outcome.tool_calls},
        "diff": {"files": len(sealed.changed_files), "insertions": sealed.insertions, "deletions": sealed.deletions},
        "rebased": rebased,
    }
