"""Hops decide and prepare: refuse before anything is spent, fix the branch's base, fill the workspace."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hyperagent_common import db, forge_state
from hyperagent_common.errors import DependencyDown, ForgeRefused, NotReady, Transient
from hyperagent_common.models import Project, StepAttempt, Workflow
from hyperagent_tasks import claims, handover, projects, requirements
from hyperagent_tasks.parts import Parts, instance
from hyperagent_tasks.runners import profile
from hyperagent_tasks.runners.base import Mount, Owner, RunnerResult, RunSpec
from hyperagent_tasks.spec import SoFar, StepSpec, Workdir

SCRIPTS = "/usr/local/lib/hyperagent"
MATERIALISE_SECONDS = 300.0


def decide(parts: Parts, step: StepSpec) -> None:
    """Everything a step needs is there, or it ends here with the sentence that says what is not.

    What only this host lacks is waited for: another host may take the step, or somebody mends this one.
    """
    try:
        parts.runner.check()
        parts.forge.check()
    except NotReady as error:
        raise DependencyDown(error.message, mend=error.mend) from error
    if not step.rid:
        raise ForgeRefused(f"The project {step.project} is not registered on the forge.", mend="Register it again.")
    wanted = step.choices.of("coder") + (step.choices.of("verifier") if step.choices.verify else [])
    priced = any(limit.usd is not None for limit in step.choices.budgets.values())
    requirements.ready(parts, wanted, priced=priced)
    if step.commit is None:
        _publishable(parts, step)
        parts.storage.check()  # else an agent runs, and its work cannot be kept
    with claims.fenced(parts.settings.db_url, step.claim) as (session, _row):
        attempt = session.get_one(StepAttempt, step.claim.attempt_id)
        attempt.sandbox, attempt.forge = parts.runner.name, parts.forge.name


def _publishable(parts: Parts, step: StepSpec) -> None:
    """Where another host publishes, it has said nothing against it. Raises `DependencyDown`: the step waits at no cost."""
    if step.publisher in (None, instance(parts.settings)):
        return
    with db.transaction(parts.settings.db_url, reading=True) as session:
        found = forge_state.blocking(session, parts.settings, session.get_one(Project, step.project_id))
    if found:
        raise DependencyDown(f"The host {step.publisher}, which publishes {step.project}, cannot: {found[0].message}")


def branch(parts: Parts, step: StepSpec) -> StepSpec:
    """The workflow's branch is here as the database says; its base is the default branch when the first step began."""
    base, head = step.base, step.head
    if base is None or head is None:
        found = base or handover.default_head(parts, step)
        with claims.fenced(parts.settings.db_url, step.claim, whole=True) as (session, _row):
            workflow = session.get_one(Workflow, step.claim.workflow_id)
            workflow.base_commit = base = workflow.base_commit or found
            workflow.head = head = workflow.head or base
    handover.fetch(parts, step, base, head)
    if step.commit is None and step.publisher in (None, instance(parts.settings)):
        projects.orderly(parts, step.rid, step.project, step.default_branch, base)
    return replace(step, base=base, head=head)


def owner(parts: Parts, step: StepSpec, seconds: float) -> Owner:
    """Whose container it is, until when."""
    return Owner(
        instance=instance(parts.settings),
        workflow_id=step.claim.workflow_id,
        step_id=step.claim.step_id,
        attempt_id=step.claim.attempt_id,
        fence=step.claim.fence,
        deadline=datetime.now(UTC) + timedelta(seconds=seconds + 60),
    )


def workspace(parts: Parts, step: StepSpec, begun: SoFar | None = None) -> Workdir:
    """A workspace holding a fresh clone of the branch's tip, made in a container of its own; where an attempt has `begun`
    the work, of the commit it began on, with its changes."""
    reap_older(parts, step)
    work = Workdir(parts.settings.home / "work" / step.claim.attempt_id)
    work.make()
    parts.runner.workspace(work.ws)
    tip = begun.base if begun else step.head or ""
    parts.gitgate.base_bundle(step.project, tip, work.inp / "base.bundle")
    if begun:
        parts.gitgate.base_bundle(step.project, begun.commit, work.inp / "work.bundle", without=tip)
    (work.kept / "base").write_text(tip)
    with claims.fenced(parts.settings.db_url, step.claim) as (session, _row):
        session.get_one(StepAttempt, step.claim.attempt_id).base_commit = tip
    materialise(parts, owner(parts, step, MATERIALISE_SECONDS), work.ws, work.inp)
    return work


def round_of(parts: Parts, work: Workdir, number: int) -> Workdir:
    """The same workspace with places of its own for what this round's sealer and checks leave."""
    mine = replace(work, round=number)
    for path in (mine.out, mine.checked):
        path.mkdir(mode=0o700)
        parts.runner.workspace(path)
    return mine


def clone(parts: Parts, step: StepSpec, commit: str, root: Path) -> Path:
    """A fresh clone of `commit` below `root`, for a verifier to read."""
    ws, inp = root / "ws", root / "base"
    for path in (ws, inp):
        path.mkdir(parents=True, mode=0o755)
    parts.runner.workspace(ws)
    parts.gitgate.base_bundle(step.project, commit, inp / "base.bundle")
    materialise(parts, owner(parts, step, MATERIALISE_SECONDS), ws, inp)
    return ws


def materialise(parts: Parts, whose: Owner, ws: Path, inp: Path) -> None:
    """Fill the empty workspace `ws` from `inp`/base.bundle (with the changes of `inp`/work.bundle), in a container of its own."""
    result = parts.runner.run(
        RunSpec(
            role="materialise",
            argv=[f"{SCRIPTS}/materialise.sh"],
            owner=whose,
            mounts=[Mount(ws, "/workspace", read_only=False), Mount(inp, "/in")],
            env={"WORKSPACE": "/workspace", "IN": "/in"},
            timeout=MATERIALISE_SECONDS,
        )
    )
    must(result, "The workspace could not be made")


def reap_older(parts: Parts, step: StepSpec) -> None:
    """End what an earlier attempt of this step left running on this host; a first attempt has none."""
    if step.claim.number == 1:
        return

    def keep(labels: object) -> bool:
        said = dict(labels) if isinstance(labels, dict) else {}
        return said.get(profile.STEP) != step.claim.step_id or said.get(profile.FENCE) == str(step.claim.fence)

    parts.runner.reap(keep)


def must(result: RunnerResult, what: str) -> None:
    """Raise `Transient` where one of our own scripts failed in its container."""
    if not result.ok:
        tail = (result.stderr_tail or result.stdout_tail).strip()[-500:]
        raise Transient(f"{what}: {result.ended}, exit code {result.exit_code}: {tail}")
