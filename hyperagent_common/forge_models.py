"""Tables of the forge: what each host last said of its node, changes of projects under way, and what triggers did."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from hyperagent_common.ids import new_id
from hyperagent_common.models import Base, Id, Project


class ForgeHost(Base):
    """What one worker host last said of its forge: node, identities, peers, projects. `asked_at`: somebody waits for news."""

    __tablename__ = "forge_host"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    reported_at: Mapped[datetime | None]
    asked_at: Mapped[datetime | None]
    report: Mapped[dict[str, Any]] = mapped_column(default=dict)


class ProjectChange(Base):
    """A change of a project that its host must verify first: `asked`, then `done`, or `failed` with its faults."""

    __tablename__ = "project_change"
    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(Id, ForeignKey("project.id", ondelete="RESTRICT"), index=True)
    version: Mapped[int]
    values: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16), default="asked")
    faults: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    created_at: Mapped[datetime]
    project: Mapped[Project] = relationship()


class TriggerMark(Base):
    """How far the events of a project were looked at. `since`: when it got its first trigger; what came before starts nothing."""

    __tablename__ = "trigger_mark"
    project_id: Mapped[str] = mapped_column(Id, ForeignKey("project.id", ondelete="RESTRICT"), primary_key=True)
    since: Mapped[datetime]
    seen: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class TriggerEvent(Base):
    """One comment or push that triggers were asked about, once: `fired`, `refused`, `passed` (no rule) or `before` (too old)."""

    __tablename__ = "trigger_event"
    __table_args__ = (UniqueConstraint("project_id", "kind", "subject"), Index(None, "project_id", "outcome", "at"))
    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(Id, ForeignKey("project.id", ondelete="RESTRICT"))
    kind: Mapped[str] = mapped_column(String(16))
    subject: Mapped[str] = mapped_column(String(400))
    author: Mapped[str] = mapped_column(String(255), default="")
    rule: Mapped[str] = mapped_column(String(63), default="")
    outcome: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text, default="")
    workflow_id: Mapped[str | None] = mapped_column(Id, ForeignKey("workflow.id", ondelete="RESTRICT"))
    at: Mapped[datetime]
