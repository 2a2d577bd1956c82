"""The judge: reads database, storage, Git history, forge and processes once all is quiet, and counts what went wrong."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hyperagent_common import db
from hyperagent_common.errors import HyperagentError
from hyperagent_common.models import Artifact, DeadLetter, Project, RunnerEvent, StepAttempt, Workflow, WorkflowStep
from hyperagent_common.states import WORKFLOW_ENDED, AttemptState, StepState, WorkflowState
from hyperagent_common.storage import open_storage
from hyperagent_tasks.gateway.client import GatewayClient
from hyperagent_tasks.gitgate import GitGate
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

    def __init__(self, rig: Rig, *, skewed: set[str], cancelled: set[str]) -> None:
        self.rig, self.skewed, self.cancelled = rig, skewed, cancelled
        self.gate = GitGate(rig.home / "repos")
        self.verdict = Verdict()

    def judge(self) -> Verdict:
        """Everything."""
        with db.transaction(self.rig.url, reading=True) as session:
            patches = self._forge()
            for workflow in session.scalars(select(Workflow).order_by(Workflow.id)):
                self._workflow(session, workflow, patches)
            self._attempts(session)
            self._artifacts(session)
            self._leaks(session)
        return self.verdict

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
        for step_id, count in held.items():
            if count > 1:
                self.verdict.add("duplicated", f"{name}: {count} commits of step {step_id}")
        places = {info.step: place for place, info in enumerate(made)}
        for step in wanted:
            for need in workflow.steps:
                late = need.key in step.planner_task.depends_on and places.get(need.id, -1) > places.get(step.id, 1 << 30)
                if late:
                    self.verdict.add("lost", f"{name}: {step.key} was committed before {need.key}, which it needs")
        self._patch(workflow, [info.commit for info in made], patches)

    def _patch(self, workflow: Workflow, made: list[str], patches: dict[str, Any]) -> None:
        name, heads = f"workflow {workflow.id}", set(made)
        held = [key for key, patch in patches.items() if f"HyperAgent workflow {workflow.id}" in patch["body"]]
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
            if workflow.state == WorkflowState.DONE and revisions and revisions[-1] != made[-1] and made[-1] not in revisions:
                self.verdict.add("lost", f"{name}: its patch lacks its last commit")

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

    def _artifacts(self, session: Session) -> None:
        storage = open_storage(str(self.rig.home / "storage"))
        kept: dict[str, set[str]] = defaultdict(set)
        for row in session.scalars(select(Artifact)):
            data = storage.get(row.key)
            if hashlib.sha256(data).hexdigest() != row.sha256:
                self.verdict.add("lost", f"artifact {row.key} holds other bytes than its row says")
            kept[str(row.step_id)].add(row.name)
        for step in session.scalars(select(WorkflowStep).where(WorkflowStep.state == StepState.DONE)):
            if "provenance.json" not in kept[step.id]:
                self.verdict.add("lost", f"step {step.id} has no provenance")

    def _leaks(self, session: Session) -> None:
        running = session.scalars(select(StepAttempt.id).where(StepAttempt.state == AttemptState.RUNNING)).all()
        leases = session.scalars(select(WorkflowStep.id).where(WorkflowStep.lease_until.is_not(None))).all()
        for what, left in (("attempt", running), ("lease of step", leases)):
            for key in left:
                self.verdict.add("leaked", f"{what} {key} is still open")
        for place in (self.rig.home / "work", self.rig.home / "run" / "processes", self.rig.home / "run" / "bundles"):
            for path in place.iterdir() if place.is_dir() else []:
                self.verdict.add("leaked", f"{place.name}/{path.name} is left")
        for run, attempt in GatewayClient(self.rig.home / "run").grants().items():
            self.verdict.add("leaked", f"the grant of agent run {run} (attempt {attempt}) is still in force")
        for box in self.rig.engine.containers() if self.rig.engine is not None else []:
            self.verdict.add("leaked", f"container {box[:12]} is left")
        mark = f"HYPERAGENT_HOME={self.rig.home}".encode()
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                said = path.read_bytes()
            except OSError:
                continue
            if b"HYPERAGENT_SANDBOX=ha" in said and mark in said:
                self.verdict.add("leaked", f"process {path.parent.name} still runs")
        for project in session.scalars(select(Project)):
            repo = self.gate.trusted(project.name)
            left = [p.name for p in (repo / "refs" / "quarantine").glob("*")] if (repo / "refs" / "quarantine").is_dir() else []
            for name in left:
                self.verdict.add("leaked", f"the quarantine ref {name} is left in {project.name}")
