"""A budget that is spent costs no work: it is sealed at the pause, and the next attempt goes on with it."""

from __future__ import annotations

import errno
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hyperagent_common import actions, db
from hyperagent_common.errors import BudgetSpent, DiskFull, NodeDown, ProviderDown, RunnerTimeout, Transient
from hyperagent_common.models import Artifact
from hyperagent_common.states import Action
from hyperagent_tasks import claims, preparing, rounds, sofar, spec
from hyperagent_tasks.gitgate.commands import GitFailed
from hyperagent_tasks.runners.base import RunnerResult, RunSpec
from hyperagent_tasks.runners.fake import FakeRunner, Play
from hyperagent_tasks.runners.process import ProcessRunner
from hyperagent_tasks.sealing import Approved
from tests import desk
from tests.unit.test_claims import LINE, Sent, app, steps, submitted, take

__all__ = ["app"]
N = 1000


class Mixed(ProcessRunner):
    """Plays agents and really runs our own scripts."""

    def __init__(self, played: FakeRunner, work_root: Path) -> None:
        super().__init__(instance="desk", work_root=work_root)
        self.played = played

    def run(self, spec: RunSpec, **how: Any) -> RunnerResult:
        """One or the other."""
        return self.played.run(spec, **how) if spec.role == "agent" else super().run(spec, **how)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A repository with one commit."""
    path = tmp_path / "source"
    path.mkdir()
    (path / "gone.txt").write_text("Remove me.\n")
    for argv in (["init", "-qb", "main"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first"]):
        subprocess.run(["git", *argv], cwd=path, check=True)
    return path


TRIFLES = [
    NodeDown(),
    DiskFull(),
    GitFailed(),
    ProviderDown("429"),
    Transient("The branch kept moving."),
    OSError(errno.EMFILE, "x"),
]


@pytest.mark.parametrize(("error", "kept"), [*[(error, True) for error in TRIFLES], (RunnerTimeout("late"), False)], ids=repr)
def test_what_fails_after_a_resume_without_the_agents_doing_does_not_drop_the_work_so_far(
    tmp_path: Path, app: Sent, error: Exception, kept: bool
) -> None:
    url = f"sqlite:///{tmp_path / 'h.db'}"
    db.upgrade(url)
    parts = desk.host(url, app, lambda _spec: Play())
    workflow_id = submitted(url, app, LINE)
    claim = take(url, app, steps(url, workflow_id)["a"])
    with claims.fenced(url, claim) as (session, step):
        told = {"media_type": "x", "size": 1, "sha256": "0" * 64, "trust": "observed", "created_at": claim.claimed_at}
        for name in (sofar.BUNDLE, sofar.TOLD):
            session.add(
                Artifact(workflow_id=workflow_id, step_id=step.id, attempt_id=claim.attempt_id, name=name, key=name, **told)
            )
    claims.hold(url, claim, BudgetSpent("so much"))
    with db.transaction(url) as session:
        actions.take(session, app, workflow_id, Action.RESUME, budget=3)
    claims.fail(url, app, take(url, app, steps(url, workflow_id)["a"]), error)
    step, _work, _lease = desk.claimed(parts, take(url, app, steps(url, workflow_id)["a"]))
    assert bool(sofar._stored(parts, step)) is kept


def test_after_a_resume_the_next_attempt_goes_on_with_the_work_so_far(tmp_path: Path, app: Sent, source: Path) -> None:
    url, prompts, works = f"sqlite:///{tmp_path / 'h.db'}", [], []
    db.upgrade(url)

    def play(spec: RunSpec) -> Play:
        ws, run = works[-1].ws, parts.gateway.now().run  # type: ignore[attr-defined]
        prompts.append(next(m.source / "prompt" / "prompt.txt" for m in spec.mounts if m.target == "/in").read_text())
        run.observed.requests, run.observed.input = 1, N - 100
        if len(prompts) == 1:
            run.observed.input = N + 500
            run.observed.fail("budget", "so much of so much", 400, of="tokens")
            (ws / "half.txt").write_text("Half of it.\n")
            (ws / "gone.txt").unlink()
            return Play(b"", exit_code=1)
        assert (ws / "half.txt").read_text() == "Half of it.\n"
        assert not (ws / "gone.txt").exists()
        said = subprocess.run(["git", "status", "--porcelain"], cwd=ws, capture_output=True, text=True, check=True).stdout
        assert said.split() == ["D", "gone.txt", "??", "half.txt"]
        (ws / "rest.txt").write_text("The rest.\n")
        return Play(desk.lines())

    parts = desk.host(url, app, play, budgets={"step": {"tokens": N}}, verify="off")
    parts.__dict__["runner"] = Mixed(parts.runner, parts.settings.home / "work")  # type: ignore[arg-type]
    workflow_id = submitted(url, app, LINE)

    def attempt() -> Approved:
        claim = take(url, app, steps(url, workflow_id)["a"])
        with db.transaction(url, reading=True) as session:
            step = spec.read(session, claim, parts.settings)
        head = parts.gitgate.refresh(step.project, source, "main")
        step = replace(step, base=head, head=head)
        begun = sofar.found(parts, step)
        works.append(preparing.workspace(parts, step, begun))
        with claims.Lease(url, claim, 60, 10) as lease:
            try:
                return rounds.until_approved(parts, step, works[-1], lease, begun)
            except BudgetSpent as spent:
                claims.hold(url, claim, spent)
                raise

    with pytest.raises(BudgetSpent):
        attempt()
    assert {"so-far.bundle", "so-far.json"} <= set(desk.artifacts(parts))
    with db.transaction(url) as session:
        actions.take(session, app, workflow_id, Action.RESUME, budget=1)
    sealed = attempt().examined.sealed
    assert sorted(changed.path for changed in sealed.changed_files) == ["gone.txt", "half.txt", "rest.txt"]
    assert sofar.STOPPED not in prompts[0]
    assert sofar.STOPPED in prompts[1]
