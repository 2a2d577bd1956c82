"""StepSpec: everything a step's hops need to know, read once from the database and frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from hyperagent_common import choices
from hyperagent_common.choices import Choices
from hyperagent_common.models import Workflow, WorkflowStep
from hyperagent_common.settings import Settings
from hyperagent_tasks.claims import Claim


def key_of(workflow_id: str, step_key: str, attempt_id: str) -> str:
    """Prefix in storage of everything an attempt stores."""
    return f"workflows/{workflow_id}/{step_key}/{attempt_id}"


@dataclass(frozen=True)
class StepSpec:
    """One attempt's work: what to do, on which project and branch, by which agent."""

    claim: Claim
    project_id: str
    project: str
    source: str
    default_branch: str
    rid: str
    branch: str
    workflow_title: str
    plan_digest: str
    requested_by: str
    title: str
    instructions: str
    checks: Sequence[str]
    details: Mapping[str, Any]
    choices: Choices
    base: str | None
    """Where the workflow's branch began; None until its first step fixes it."""
    head: str | None
    """Where the workflow's branch is, as the database says."""
    commit: str | None
    """This step's commit, where an earlier attempt made it."""
    publisher: str | None
    """The host that publishes this project; None: any."""

    @property
    def attempt_key(self) -> str:
        """Prefix of everything this attempt stores."""
        return key_of(self.claim.workflow_id, self.claim.key, self.claim.attempt_id)

    @property
    def provider(self) -> str:
        """The coder's agent CLI."""
        return self.choices.coder.provider

    @property
    def model(self) -> str:
        """The coder's model."""
        return self.choices.coder.model

    def prompt(self) -> str:
        """The task as coder and verifier are told it."""
        checks = "\n".join(f"  $ {command}" for command in self.checks)
        tail = f"\n\nThese checks are run on your work afterwards and must pass:\n{checks}" if self.checks else ""
        return f"# {self.title}\n\n{self.instructions}{tail}"


@dataclass(frozen=True)
class Workdir:
    """Directories of one attempt on this host: `ws` the workspace, `inp` read-only input; `out` and `checked` per round."""

    root: Path
    round: int = 1

    @property
    def ws(self) -> Path:
        """Mounted at /workspace."""
        return self.root / "ws"

    @property
    def inp(self) -> Path:
        """Mounted read-only at /in."""
        return self.root / "in"

    @property
    def out(self) -> Path:
        """Mounted at /out in the sealer, read-only in the check container."""
        return self.root / f"out-{self.round}"

    @property
    def checked(self) -> Path:
        """Mounted at /out in the check container."""
        return self.root / f"checked-{self.round}"

    @property
    def kept(self) -> Path:
        """What this side writes itself; never mounted."""
        return self.root / "kept"

    def make(self) -> None:
        """Make the directories; an attempt's id is new, so nothing of another is there."""
        self.root.mkdir(parents=True, mode=0o700)
        for path in (self.ws, self.inp, self.kept):
            path.mkdir(parents=True, mode=0o700)
        self.inp.chmod(0o755)  # the sandbox's user reads it; what shuts others out is the directory above


@dataclass(frozen=True)
class Place:
    """Directories of one agent run: `inp` is mounted read-only at /in, `logs` at /logs; `kept` is never mounted."""

    root: Path
    prefix: str

    @staticmethod
    def of(root: Path) -> Place:
        """The place of an agent run whose directory is called by its role and number."""
        return Place(root, "" if root.name == "coder-1" else f"{root.name}/")

    @property
    def inp(self) -> Path:
        """Mounted read-only at /in."""
        return self.root / "in"

    @property
    def logs(self) -> Path:
        """Mounted at /logs: the agent's structured logs."""
        return self.root / "logs"

    @property
    def kept(self) -> Path:
        """What this side writes itself."""
        return self.root / "kept"

    def give(self, name: str, files: Mapping[str, bytes]) -> None:
        """Put files where the sandbox's user reads them, at /in/`name`, whatever this process's umask."""
        directory = self.inp / name
        directory.mkdir()
        directory.chmod(0o755)
        for file, data in files.items():
            (directory / file).write_bytes(data)
            (directory / file).chmod(0o644)

    def make(self) -> None:
        """Make the directories."""
        for path in (self.inp, self.logs, self.kept):
            path.mkdir(parents=True, mode=0o700)
        self.inp.chmod(0o755)


@dataclass(frozen=True)
class SoFar:
    """Work an earlier attempt left when a budget was spent: a sealed commit on `base`, and the round that goes on with it."""

    base: str
    commit: str
    round: int
    feedback: str


@dataclass(frozen=True)
class Made:
    """A step's commit. `tree` is None where an earlier attempt made it; `seen` is what this attempt saw on the way."""

    commit: str
    tree: str | None
    seen: Mapping[str, Any]


def chosen(step: WorkflowStep, settings: Settings) -> Choices:
    """What is chosen for a step: the deployment's choices are overridden by project, plan and task, in that order."""
    workflow = step.workflow
    layers = workflow.project.settings, workflow.plan.document.get("settings", {}), step.planner_task.details
    return choices.settle(settings.choices(), *layers)


def read(session: Session, claim: Claim, settings: Settings) -> StepSpec:
    """The spec of a claimed step."""
    step = session.get_one(WorkflowStep, claim.step_id)
    workflow = session.get_one(Workflow, claim.workflow_id)
    task, project, plan = step.planner_task, workflow.project, workflow.plan
    return StepSpec(
        claim=claim,
        project_id=project.id,
        project=project.name,
        source=project.source,
        default_branch=project.default_branch,
        rid=project.rid or "",
        branch=workflow.branch,
        workflow_title=workflow.title,
        plan_digest=plan.digest,
        requested_by=workflow.requested_by,
        title=task.title,
        instructions=task.instructions,
        checks=tuple(task.checks) or tuple(project.settings.get("checks", ())),
        details=task.details,
        choices=chosen(step, settings),
        base=workflow.base_commit,
        head=workflow.head,
        commit=step.commit,
        publisher=project.publisher,
    )
