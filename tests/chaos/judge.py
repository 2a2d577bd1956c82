"""The judge: reads database, storage, Git history, forge and processes once all is quiet, and counts what went wrong."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from hyperagent_common import db
from hyperagent_common.errors import HyperagentError
from hyperagent_common.models import AgentRun, Artifact, DeadLetter, RunnerEvent, StepAttempt, Workflow, WorkflowStep
from hyperagent_common.states import WORKFLOW_ENDED, AttemptState, StepState, WorkflowState
from hyperagent_common.storage import open_storage
from hyperagent_tasks.gateway.client import GatewayClient
from hyperagent_tasks.gitgate import GitGate
from hyperagent_tasks.gitgate.commands import git
from hyperagent_tasks.runners import leftovers
from tests.chaos.rig import LEASE, Rig


@dataclass
class Verdict:
    """Sentences by kind of damage."""

    found: dict[str, list[str]] = field(default_factory=lambda: {k: [] for k in ("lost", "duplicated", "leaked", "stuck")})

    def add(self, kind: str, sentence: str) -> None:
        """One damage."""
        self.found[kind].append(sentence)

    def counts(self) -> dict[str, int]:
        """How much of each."""
        return {kind: len(sentences) for kind, sentences in self.found.items()}


class Judge:
    """Judges one rig; `skewed` steps had their lease moved by the harness, so that two attempts of them may overlap."""

    def __init__(self, rig: Rig, *, skewed: set[str], cancelled: set[str], submitted: tuple[int, int] | None = None) -> None:
        self.rig, self.skewed, self.cancelled, self.submitted = rig, skewed, cancelled, submitted
        self.gate = GitGate(rig.home / "repos")
        self.verdict = Verdict()

    def judge(self) -> Verdict:
        """Everything."""
        with db.transaction(self.rig.url, reading=True) as session:
            self._rows(session)
            patches = self._forge()
            for workflow in session.scalars(select(Workflow).order_by(Workflow.id)):
                self._workflow(session, workflow, patches)
            self._attempts(session)
            self._events(session)
            self._artifacts(session)
            self._leaks(session)
        return self.verdict

    def left(self) -> list[str]:
        """What is still held now, a sentence each."""
        with db.transaction(self.rig.url, reading=True) as session:
            self._leaks(session)
        return self.verdict.found["leaked"]

    def _rows(self, session: Session) -> None:
        """Nothing that was submitted is gone from the database."""
        held = tuple(session.scalar(select(func.count()).select_from(table)) or 0 for table in (Workflow, WorkflowStep))
        if self.submitted is not None and held != self.submitted:
            self.verdict.add("lost", f"(workflows, steps): {self.submitted} were submitted, {held} are there")

    def _workflow(self, session: Session, workflow: Workflow, patches: dict[str, Any]) -> None:
        name = f"workflow {workflow.id}"
        if workflow.state not in WORKFLOW_ENDED:
            self.verdict.add("stuck", f"{name} is {workflow.state}")
            return
        if workflow.id in self.cancelled and workflow.state == WorkflowState.CANCELLED:
            wanted = [step for step in workflow.steps if step.state == StepState.DONE]
        else:
            wanted = list(workflow.steps)
        letters = session.scalars(select(DeadLetter).where(DeadLetter.step_id.in_([s.id for s in workflow.steps]))).all()
        for letter in letters:
            self.verdict.add("lost", f"{name} has a dead letter: {letter.reason[:300]}")
        self._commits(workflow, wanted, patches)

    def _commits(self, workflow: Workflow, wanted: list[WorkflowStep], patches: dict[str, Any]) -> None:
        name = f"workflow {workflow.id}"
        project = workflow.project.name
        made: list[Any] = []
        if workflow.head and workflow.base_commit:
            try:
                made = self.gate.commits(project, workflow.base_commit, workflow.branch, head=workflow.head)
            except HyperagentError as error:
                self.verdict.add("lost", f"{name}: its branch cannot be read: {error.message[:200]}")
        held = Counter(info.step for info in made)
        for step in wanted:
            if step.state != StepState.DONE or not held[step.id]:
                self.verdict.add("lost", f"{name}: step {step.key} is {step.state} with {held[step.id]} commits: {step.reason}")
            elif not any(info.step == step.id and info.commit == step.commit for info in made):
                self.verdict.add("lost", f"{name}: step {step.key} names {step.commit}, which is not on the branch")
        own = {step.id for step in workflow.steps}
        for step_id, count in held.items():
            if count > 1:
                self.verdict.add("duplicated", f"{name}: {count} commits of step {step_id}")
            if step_id not in own:
                self.verdict.add("duplicated", f"{name}: {count} commits of {step_id}, which is no step of it")
        if made:
            self._content(name, self.gate.trusted(project), str(workflow.base_commit), str(workflow.head), len(made))
        places = {info.step: place for place, info in enumerate(made)}
        for step in wanted:
            for need in workflow.steps:
                late = need.key in step.planner_task.depends_on and places.get(need.id, -1) > places.get(step.id, 1 << 30)
                if late:
                    self.verdict.add("lost", f"{name}: {step.key} was committed before {need.key}, which it needs")
        self._patch(workflow, [info.commit for info in made], patches)

    def _content(self, name: str, repo: Path, base: str, head: str, commits: int) -> None:
        """Each commit brings a file of its step's own, and the head still has all of them: no merge took any back."""
        try:
            brought = git(
                repo, "log", "--first-parent", "--format=", "--name-only", "--diff-filter=A", f"{base}..{head}", "--"
            ).text
            there = git(repo, "ls-tree", "--name-only", "-z", head).text.split("\0")
        except HyperagentError as error:
            self.verdict.add("lost", f"{name}: what its commits hold cannot be read: {error.message[:200]}")
            return
        own = [line for line in brought.splitlines() if line.startswith("made-")]
        for path in set(own) - set(there):
            self.verdict.add("lost", f"{name}: {path}, which a step made, is not in its head")
        if len(set(own)) != commits:
            self.verdict.add("lost", f"{name}: its {commits} commits brought {len(set(own))} files of their own")

    def _patch(self, workflow: Workflow, made: list[str], patches: dict[str, Any]) -> None:
        name, heads = f"workflow {workflow.id}", set(made)
        held = [key for key, patch in patches.items() if f"HyperAgent workflow [{workflow.id}]" in patch["body"]]
        if len(held) > 1:
            self.verdict.add("duplicated", f"{name}: {len(held)} patches")
        if workflow.state == WorkflowState.DONE and not held:
            self.verdict.add("lost", f"{name}: no patch")
        for key in held:
            revisions = [head for _, head in patches[key]["revisions"]]
            if len(set(revisions)) != len(revisions):
                self.verdict.add("duplicated", f"{name}: a head is the revision of its patch twice")
            if set(revisions) - heads:
                self.verdict.add("duplicated", f"{name}: its patch holds a commit that its branch does not")
            if workflow.state == WorkflowState.DONE and made and made[-1:] != revisions[-1:]:
                self.verdict.add("lost", f"{name}: the newest revision of its patch is not its last commit")
        if workflow.patch is not None and workflow.patch.patch_id not in (None, *held):
            self.verdict.add("lost", f"{name}: the forge does not hold its patch {workflow.patch.patch_id}")

    def _forge(self) -> dict[str, Any]:
        path = self.rig.home / "stand-in" / "stand-in.json"
        state = json.loads(path.read_text()) if path.exists() else {"repositories": {}}
        return {key: patch for repo in state["repositories"].values() for key, patch in repo["patches"].items()}

    def _attempts(self, session: Session) -> None:
        """At most one success a step, one end of it told, and no attempt ended as lost while its lease still held."""
        attempts = session.scalars(select(StepAttempt)).all()
        good = Counter(a.step_id for a in attempts if a.state == AttemptState.SUCCEEDED)
        told = Counter(session.scalars(select(RunnerEvent.step_id).where(RunnerEvent.kind == "step.done")))
        for step_id in {key for counts in (good, told) for key, count in counts.items() if count > 1}:
            self.verdict.add("duplicated", f"step {step_id} was finished {max(good[step_id], told[step_id])} times")
        fences = dict(session.execute(select(WorkflowStep.id, WorkflowStep.fence)).all())
        for a in attempts:
            if a.state == AttemptState.SUCCEEDED and a.fence != fences[a.step_id]:
                self.verdict.add("duplicated", f"step {a.step_id}: attempt {a.number} ended it after it was fenced off")
        self._cancelled_then_done(session)
        alive: dict[str, Any] = {}
        beats = select(RunnerEvent.attempt_id, RunnerEvent.at).where(RunnerEvent.kind == "step.heartbeat")
        for attempt_id, at in session.execute(beats.order_by(RunnerEvent.at)):
            alive[attempt_id] = at
        following = {(a.step_id, a.number): a.started_at for a in attempts}
        for a in attempts:
            after = following.get((a.step_id, a.number + 1))
            lost = a.state == AttemptState.ABANDONED and a.error_type == "lease-lost" and after is not None
            if lost and a.step_id not in self.skewed and after < alive.get(a.id, a.started_at) + timedelta(seconds=LEASE):
                self.verdict.add("duplicated", f"step {a.step_id}: attempt {a.number} was overtaken while its lease held")

    def _cancelled_then_done(self, session: Session) -> None:
        told = select(RunnerEvent.workflow_id, RunnerEvent.id)
        cancelled = dict(session.execute(told.where(RunnerEvent.kind == "workflow.cancelled")).all())
        for workflow_id, number in session.execute(told.where(RunnerEvent.kind == "step.done")):
            if number > cancelled.get(workflow_id, 1 << 62):
                self.verdict.add("duplicated", f"workflow {workflow_id}: a step was done after it was cancelled")

    def _events(self, session: Session) -> None:
        """What was told agrees with what is: each attempt claimed once, under growing fences, after what its step needs."""
        first: dict[str, int] = {}
        done: dict[str, int] = {}
        claimed: Counter[str] = Counter()
        kinds = ("step.claimed", "step.done")
        told = select(RunnerEvent.id, RunnerEvent.kind, RunnerEvent.step_id, RunnerEvent.attempt_id)
        for number, kind, step_id, attempt_id in session.execute(
            told.where(RunnerEvent.kind.in_(kinds)).order_by(RunnerEvent.id)
        ):
            (first if kind == "step.claimed" else done).setdefault(step_id, number)
            claimed[attempt_id] += kind == "step.claimed"
        fences: dict[str, list[int]] = defaultdict(list)
        for step_id, fence, key in session.execute(
            select(StepAttempt.step_id, StepAttempt.fence, StepAttempt.id).order_by(StepAttempt.step_id, StepAttempt.number)
        ):
            fences[step_id].append(fence)
            if claimed[key] != 1:
                self.verdict.add("duplicated", f"attempt {key} was claimed {claimed[key]} times")
        for step_id, found in fences.items():
            if found != sorted(set(found)):
                self.verdict.add("duplicated", f"step {step_id} has the fences {found}")
        for workflow in session.scalars(select(Workflow).options(selectinload(Workflow.steps))):
            self._order(workflow, first, done)

    def _order(self, workflow: Workflow, first: dict[str, int], done: dict[str, int]) -> None:
        by_key = {step.key: step for step in workflow.steps}
        for step in workflow.steps:
            if step.state == StepState.DONE and step.id not in done:
                self.verdict.add("lost", f"step {step.id} is done and no event says so")
            for need in step.planner_task.depends_on:
                if step.id in first and first[step.id] < done.get(by_key[need].id, 1 << 62):
                    self.verdict.add("duplicated", f"step {step.id} began before {need}, which it needs, was done")

    def _artifacts(self, session: Session) -> None:
        storage = open_storage(str(self.rig.home / "storage"))
        produced: dict[str, set[str]] = defaultdict(set)
        for row in session.scalars(select(Artifact)):
            try:
                data = storage.get(row.key)
            except HyperagentError as error:
                self.verdict.add("lost", f"artifact {row.key}: {error.message}")
                continue
            if hashlib.sha256(data).hexdigest() != row.sha256:
                self.verdict.add("lost", f"artifact {row.key} holds other bytes than its row says")
                continue
            if row.name == "provenance.json":
                produced[str(row.step_id)] |= _subjects(data)
        for step in session.scalars(select(WorkflowStep).where(WorkflowStep.state == StepState.DONE)):
            if step.commit not in produced[step.id]:
                self.verdict.add("lost", f"step {step.id} has no provenance of its commit {step.commit}")

    def _leaks(self, session: Session) -> None:
        running = session.scalars(select(StepAttempt.id).where(StepAttempt.state == AttemptState.RUNNING)).all()
        leases = session.scalars(select(WorkflowStep.id).where(WorkflowStep.lease_until.is_not(None))).all()
        runs = session.scalars(select(AgentRun.id).where(AgentRun.finished_at.is_(None))).all()
        for what, left in (("attempt", running), ("lease of step", leases), ("agent run", runs)):
            for key in left:
                self.verdict.add("leaked", f"{what} {key} is still open")
        for place in self.rig.places:
            for path in place.iterdir() if place.is_dir() else []:
                self.verdict.add("leaked", f"{place.name}/{path.name} is left")
        for run, attempt in GatewayClient(self.rig.home / "run").grants().items():
            self.verdict.add("leaked", f"the grant of agent run {run} (attempt {attempt}) is still in force")
        for box in self.rig.engine.containers() if self.rig.engine is not None else []:
            self.verdict.add("leaked", f"container {box[:12]} is left")
        place = f"TMPDIR={self.rig.home}/run/processes/".encode()
        for pid, said in leftovers.environments():
            if any(word.startswith(place) for word in said):
                self.verdict.add("leaked", f"process {pid} still runs")
        for name in self.gate.quarantined():
            self.verdict.add("leaked", f"the quarantine ref {name} is left")


def _subjects(statement: bytes) -> set[str]:
    """The commits that a provenance statement is about."""
    return {subject["digest"]["gitCommit"] for subject in json.loads(statement)["subject"]}
