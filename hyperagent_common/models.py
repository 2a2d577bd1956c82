"""The tables. A database row is the truth; the queue only wakes people up.

Plain SQLAlchemy 2, the same on SQLite and PostgreSQL. Times are UTC. Words are those of docs/glossary.md.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from hyperagent_common.ids import new_id
from hyperagent_common.states import AttemptState, ProjectState, StepState, WorkflowState

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Utc(TypeDecorator[datetime]):
    """An aware UTC time, also on SQLite, which keeps no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive times, store UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give back an aware time."""
        return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)


def _in(column: str, words: type[Any]) -> str:
    return f"{column} IN ({', '.join(repr(str(word)) for word in words)})"


class Base(DeclarativeBase):
    """Every table's base."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {datetime: Utc, dict[str, Any]: JSON, list[str]: JSON}  # noqa: RUF012


Id = String(36)


def _pk() -> Mapped[str]:
    return mapped_column(Id, primary_key=True, default=new_id)


def _fk(target: str, *, nullable: bool = False, index: bool = True) -> Mapped[Any]:
    return mapped_column(Id, ForeignKey(target, ondelete="RESTRICT"), nullable=nullable, index=index)


class Project(Base):
    """A repository that workflows work on. `source` is the path or Radicle id it was registered from, on the host `publisher`.

    That host's forge identity owns the project's patches, so only it publishes; any host does the work before.
    """

    __tablename__ = "project"
    __table_args__ = (CheckConstraint(_in("state", ProjectState), name="state"),)
    id: Mapped[str] = _pk()
    name: Mapped[str] = mapped_column(String(63), unique=True)
    description: Mapped[str] = mapped_column(Text, default="")
    source: Mapped[str] = mapped_column(Text)
    default_branch: Mapped[str] = mapped_column(String(255))
    state: Mapped[str] = mapped_column(String(16), default=ProjectState.REGISTERING)
    faults: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    rid: Mapped[str | None] = mapped_column(String(64))
    forge: Mapped[str | None] = mapped_column(String(16))
    settings: Mapped[dict[str, Any]] = mapped_column(default=dict)
    head: Mapped[str | None] = mapped_column(String(64))
    publisher: Mapped[str | None] = mapped_column(String(64))
    version: Mapped[int] = mapped_column(default=1)
    removed_at: Mapped[datetime | None]
    created_at: Mapped[datetime]


class Plan(Base):
    """A plan document as it was submitted, with its sha256."""

    __tablename__ = "plan"
    id: Mapped[str] = _pk()
    kind: Mapped[str] = mapped_column(String(63))
    title: Mapped[str] = mapped_column(String(200))
    description: Mapped[str] = mapped_column(Text, default="")
    document: Mapped[dict[str, Any]]
    digest: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]


class PlannerTask(Base):
    """One task of a plan; its step does it. `key` is the id the plan gave it."""

    __tablename__ = "planner_task"
    __table_args__ = (UniqueConstraint("plan_id", "key"),)
    id: Mapped[str] = _pk()
    plan_id: Mapped[str] = _fk("plan.id")
    position: Mapped[int]
    key: Mapped[str] = mapped_column(String(63))
    title: Mapped[str] = mapped_column(String(200))
    instructions: Mapped[str] = mapped_column(Text)
    agent_type: Mapped[str] = mapped_column(String(32))
    depends_on: Mapped[list[str]]
    checks: Mapped[list[str]]
    details: Mapped[dict[str, Any]] = mapped_column("metadata")


class Workflow(Base):
    """A plan being carried out on a project: one branch, at most one patch.

    `head` is the truth about the branch: repositories on hosts follow it. `version` counts changes of `state`, and its dead
    letters: each as it comes, and what people do to it.
    """

    __tablename__ = "workflow"
    __table_args__ = (CheckConstraint(_in("state", WorkflowState), name="state"), Index(None, "state", "id"))
    id: Mapped[str] = _pk()
    project_id: Mapped[str] = _fk("project.id")
    plan_id: Mapped[str] = _fk("plan.id")
    title: Mapped[str] = mapped_column(String(200))
    state: Mapped[str] = mapped_column(String(16), default=WorkflowState.RUNNING)
    reason: Mapped[str | None] = mapped_column(Text)
    branch: Mapped[str] = mapped_column(String(255))
    base_commit: Mapped[str | None] = mapped_column(String(64))
    head: Mapped[str | None] = mapped_column(String(64))
    version: Mapped[int] = mapped_column(default=1)
    requested_by: Mapped[str] = mapped_column(String(255), default="")
    idempotency_key: Mapped[str | None] = mapped_column(String(255), unique=True)
    request_digest: Mapped[str] = mapped_column(String(64), default="")
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    project: Mapped[Project] = relationship()
    plan: Mapped[Plan] = relationship()
    steps: Mapped[list[WorkflowStep]] = relationship(order_by="WorkflowStep.position", back_populates="workflow")
    patch: Mapped[Patch | None] = relationship(back_populates="workflow")
    artifacts: Mapped[list[Artifact]] = relationship(order_by="Artifact.id")


class WorkflowStep(Base):
    """One planner task of a workflow on its way to a commit. `generation` numbers its queueings, `fence` its claims.

    `free_attempts` are those that cost nothing of the budget: a dependency was down (since `blocked_since`), or the
    worker was drained.
    """

    __tablename__ = "workflow_step"
    __table_args__ = (
        UniqueConstraint("workflow_id", "key"),
        CheckConstraint(_in("state", StepState), name="state"),
        Index(None, "state", "queued_at"),
        Index(None, "blocked_since"),
    )
    id: Mapped[str] = _pk()
    workflow_id: Mapped[str] = _fk("workflow.id")
    planner_task_id: Mapped[str] = _fk("planner_task.id")
    position: Mapped[int]
    key: Mapped[str] = mapped_column(String(63))
    state: Mapped[str] = mapped_column(String(16), default=StepState.PENDING)
    reason: Mapped[str | None] = mapped_column(Text)
    generation: Mapped[int] = mapped_column(default=0)
    fence: Mapped[int] = mapped_column(default=0)
    attempt_count: Mapped[int] = mapped_column(default=0)
    max_attempts: Mapped[int]
    free_attempts: Mapped[int] = mapped_column(default=0)
    blocked_since: Mapped[datetime | None]
    lease_owner: Mapped[str | None] = mapped_column(String(255))
    lease_until: Mapped[datetime | None]
    queued_at: Mapped[datetime | None]
    sent_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    commit: Mapped[str | None] = mapped_column(String(64))
    workflow: Mapped[Workflow] = relationship(back_populates="steps")
    planner_task: Mapped[PlannerTask] = relationship()
    attempts: Mapped[list[StepAttempt]] = relationship(order_by="StepAttempt.number", back_populates="step")


class StepAttempt(Base):
    """One try of a step by one worker under one fencing number. `deadline`: when its worker ends it; None until that has read
    the step."""

    __tablename__ = "step_attempt"
    __table_args__ = (UniqueConstraint("step_id", "fence"), CheckConstraint(_in("state", AttemptState), name="state"))
    id: Mapped[str] = _pk()
    step_id: Mapped[str] = _fk("workflow_step.id")
    number: Mapped[int]
    fence: Mapped[int]
    state: Mapped[str] = mapped_column(String(16), default=AttemptState.RUNNING)
    worker: Mapped[str] = mapped_column(String(255))
    sandbox: Mapped[str | None] = mapped_column(String(16))
    forge: Mapped[str | None] = mapped_column(String(16))
    base_commit: Mapped[str | None] = mapped_column(String(64))
    started_at: Mapped[datetime]
    deadline: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    error_type: Mapped[str | None] = mapped_column(String(32))
    reason: Mapped[str | None] = mapped_column(Text)
    step: Mapped[WorkflowStep] = relationship(back_populates="attempts")
    agent_runs: Mapped[list[AgentRun]] = relationship(order_by="AgentRun.id")
    checks: Mapped[list[CheckResult]] = relationship(order_by="(CheckResult.round, CheckResult.position)")
    verdicts: Mapped[list[Verdict]] = relationship(order_by="Verdict.id")


class AgentRun(Base):
    """One conversation of one role. Tokens are *observed* by the gateway; `claimed` is what the CLI said."""

    __tablename__ = "agent_run"
    id: Mapped[str] = _pk()
    attempt_id: Mapped[str | None] = _fk("step_attempt.id", nullable=True)
    draft_id: Mapped[str | None] = _fk("plan_draft.id", nullable=True)
    role: Mapped[str] = mapped_column(String(16))
    round: Mapped[int] = mapped_column(default=1)
    provider: Mapped[str] = mapped_column(String(32))
    model: Mapped[str] = mapped_column(String(255))
    cli_version: Mapped[str | None] = mapped_column(String(64))
    session_id: Mapped[str | None] = mapped_column(String(255))
    end_reason: Mapped[str | None] = mapped_column(String(32))
    sentence: Mapped[str | None] = mapped_column(Text)
    exit_code: Mapped[int | None]
    container_id: Mapped[str | None] = mapped_column(String(64))
    image_id: Mapped[str | None] = mapped_column(String(80))
    input_tokens: Mapped[int | None]
    output_tokens: Mapped[int | None]
    cached_tokens: Mapped[int | None]
    requests: Mapped[int | None]
    cost_usd: Mapped[float | None] = mapped_column(Float)
    claimed: Mapped[dict[str, Any]] = mapped_column(default=dict)
    log_key: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None] = mapped_column(index=True)  # those without an end are looked for at every heartbeat


class Verdict(Base):
    """What a verifier's run said of one round: `approved`, `changes_requested` or `rejected`, with its findings."""

    __tablename__ = "verdict"
    id: Mapped[str] = _pk()
    attempt_id: Mapped[str] = _fk("step_attempt.id")
    agent_run_id: Mapped[str] = _fk("agent_run.id")
    round: Mapped[int]
    decision: Mapped[str] = mapped_column(String(32))
    summary: Mapped[str] = mapped_column(Text)
    findings: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    created_at: Mapped[datetime]


class PlanDraft(Base):
    """A plan a planner agent wrote for a goal, to look at, edit and submit: `queued`, `running`, `done` or `failed`.

    It is held as a step is: `fence` counts its claims.
    """

    __tablename__ = "plan_draft"
    id: Mapped[str] = _pk()
    project_id: Mapped[str] = _fk("project.id")
    goal: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16), default="queued")
    reason: Mapped[str | None] = mapped_column(Text)
    document: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    fence: Mapped[int] = mapped_column(default=0)
    lease_until: Mapped[datetime | None]
    requested_by: Mapped[str] = mapped_column(String(255), default="")
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    project: Mapped[Project] = relationship()
    agent_runs: Mapped[list[AgentRun]] = relationship(order_by="AgentRun.id")


class CheckResult(Base):
    """One check command run in a fresh container on one round's sealed commit."""

    __tablename__ = "check_result"
    __table_args__ = (UniqueConstraint("attempt_id", "round", "position"),)
    id: Mapped[str] = _pk()
    attempt_id: Mapped[str] = _fk("step_attempt.id")
    round: Mapped[int] = mapped_column(default=1)
    position: Mapped[int]
    command: Mapped[str] = mapped_column(Text)
    exit_code: Mapped[int | None]
    passed: Mapped[bool]
    seconds: Mapped[float | None] = mapped_column(Float)
    output_tail: Mapped[str] = mapped_column(Text, default="")


class Patch(Base):
    """The one patch of a workflow. `published_at` is fixed before the first try, so that opening is idempotent; `bodies`
    are sha256 digests of the descriptions we meant to write: another one is a person's."""

    __tablename__ = "patch"
    id: Mapped[str] = _pk()
    workflow_id: Mapped[str] = mapped_column(Id, ForeignKey("workflow.id", ondelete="RESTRICT"), unique=True)
    forge: Mapped[str] = mapped_column(String(16))
    rid: Mapped[str] = mapped_column(String(64))
    published_at: Mapped[datetime]
    patch_id: Mapped[str | None] = mapped_column(String(64))
    head: Mapped[str | None] = mapped_column(String(64))
    bodies: Mapped[list[str]] = mapped_column(default=list)
    workflow: Mapped[Workflow] = relationship(back_populates="patch")
    events: Mapped[list[PatchEvent]] = relationship(order_by="PatchEvent.id")


class PatchEvent(Base):
    """Something that happened to a patch: opened, revised, found, reviewed, held (by a peer)."""

    __tablename__ = "patch_event"
    id: Mapped[str] = _pk()
    patch_id: Mapped[str] = _fk("patch.id")
    step_id: Mapped[str | None] = _fk("workflow_step.id", nullable=True)
    kind: Mapped[str] = mapped_column(String(16))
    revision_id: Mapped[str | None] = mapped_column(String(64))
    commit: Mapped[str] = mapped_column(String(64))
    announced: Mapped[bool] = mapped_column(default=False)
    synced_with: Mapped[int] = mapped_column(default=0)
    at: Mapped[datetime]


class Artifact(Base):
    """A file in shared storage. `trust` says whether we saw it happen (`observed`) or were told (`claimed`)."""

    __tablename__ = "artifact"
    __table_args__ = (UniqueConstraint("attempt_id", "name"),)
    id: Mapped[str] = _pk()
    workflow_id: Mapped[str] = _fk("workflow.id")
    step_id: Mapped[str | None] = _fk("workflow_step.id", nullable=True)
    attempt_id: Mapped[str | None] = _fk("step_attempt.id", nullable=True)
    name: Mapped[str] = mapped_column(String(255))
    key: Mapped[str] = mapped_column(Text)
    media_type: Mapped[str] = mapped_column(String(127))
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    trust: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime]


class RunnerEvent(Base):
    """What happened to a step on its way: the feed of pages, streams and metrics."""

    __tablename__ = "runner_event"
    __table_args__ = (Index(None, "workflow_id", "id"),)
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    at: Mapped[datetime]
    kind: Mapped[str] = mapped_column(String(48))
    workflow_id: Mapped[str | None] = mapped_column(Id)
    step_id: Mapped[str | None] = mapped_column(Id)
    attempt_id: Mapped[str | None] = mapped_column(Id)
    worker: Mapped[str | None] = mapped_column(String(255))
    latency_ms: Mapped[int | None]
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)


class DeadLetter(Base):
    """A step that was given up, with the reason."""

    __tablename__ = "dead_letter"
    __table_args__ = (Index(None, "resolved_at", "id"),)
    id: Mapped[str] = _pk()
    step_id: Mapped[str] = _fk("workflow_step.id")
    attempt_id: Mapped[str | None] = _fk("step_attempt.id", nullable=True)
    error_type: Mapped[str] = mapped_column(String(32))
    reason: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]
    resolved_at: Mapped[datetime | None]
    resolution: Mapped[str | None] = mapped_column(String(16))
    step: Mapped[WorkflowStep] = relationship()


class Worker(Base):
    """A Celery process that runs steps, and what it last said of its parts."""

    __tablename__ = "worker"
    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    started_at: Mapped[datetime]
    last_seen: Mapped[datetime] = mapped_column(index=True)
    stopped_at: Mapped[datetime | None]
    parts: Mapped[dict[str, Any]] = mapped_column(default=dict)
    faults: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
