"""Tables about what becomes of a patch: reviews on it, who holds it, and why there is none."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy import CheckConstraint, ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from hyperagent_common.ids import new_id
from hyperagent_common.models import Base, Id, Patch, Workflow, _in


class ReviewState(StrEnum):
    """How a review stands: `pending` is tried again, `posted` was read back from the forge, `refused` never will be."""

    PENDING = "pending"
    POSTED = "posted"
    REFUSED = "refused"


class DeliveryState(StrEnum):
    """Who has the patch: `kept` on this host alone, `announced` to whoever listens, `held` by at least one peer."""

    KEPT = "kept"
    ANNOUNCED = "announced"
    HELD = "held"


class SkipKind(StrEnum):
    """Why a workflow has no patch: a `verdict` or check forbids it, `nothing` to propose, `unwanted`, or it `ended` before."""

    VERDICT = "verdict"
    NOTHING = "nothing"
    UNWANTED = "unwanted"
    ENDED = "ended"


class PatchReview(Base):
    """A verdict on its way to the patch: one review under the reviewer's identity on one revision.

    Verdicts whose commits came in one revision share its review. `next_at` is when a pending one is tried again.
    """

    __tablename__ = "patch_review"
    __table_args__ = (CheckConstraint(_in("state", ReviewState), name="state"),)
    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    patch_id: Mapped[str] = mapped_column(Id, ForeignKey("patch.id", ondelete="RESTRICT"), index=True)
    step_id: Mapped[str] = mapped_column(Id, ForeignKey("workflow_step.id", ondelete="RESTRICT"))
    verdict_id: Mapped[str] = mapped_column(Id, ForeignKey("verdict.id", ondelete="RESTRICT"), unique=True)
    revision_id: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16), default=ReviewState.PENDING)
    reviewer: Mapped[str | None] = mapped_column(String(80))
    review_id: Mapped[str | None] = mapped_column(String(64))
    tries: Mapped[int] = mapped_column(default=0)
    error_type: Mapped[str | None] = mapped_column(String(32))
    reason: Mapped[str | None] = mapped_column(Text)
    next_at: Mapped[datetime | None] = mapped_column(index=True)
    created_at: Mapped[datetime]
    posted_at: Mapped[datetime | None]


class PatchDelivery(Base):
    """Who holds a patch besides this host, as last seen; `next_at` is when it is announced again."""

    __tablename__ = "patch_delivery"
    __table_args__ = (CheckConstraint(_in("state", DeliveryState), name="state"),)
    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    patch_id: Mapped[str] = mapped_column(Id, ForeignKey("patch.id", ondelete="RESTRICT"), unique=True)
    state: Mapped[str] = mapped_column(String(16), default=DeliveryState.KEPT)
    synced_with: Mapped[int] = mapped_column(default=0)
    tries: Mapped[int] = mapped_column(default=0)
    error_type: Mapped[str | None] = mapped_column(String(32))
    reason: Mapped[str | None] = mapped_column(Text)
    next_at: Mapped[datetime | None] = mapped_column(index=True)
    at: Mapped[datetime]


class PatchSkip(Base):
    """Why a workflow has no patch; gone where it gets one after all."""

    __tablename__ = "patch_skip"
    __table_args__ = (CheckConstraint(_in("kind", SkipKind), name="kind"),)
    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    workflow_id: Mapped[str] = mapped_column(Id, ForeignKey("workflow.id", ondelete="RESTRICT"), unique=True)
    step_id: Mapped[str | None] = mapped_column(Id, ForeignKey("workflow_step.id", ondelete="RESTRICT"))
    kind: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime]


Patch.reviews = relationship(PatchReview, order_by=PatchReview.id, viewonly=True)
Patch.delivery = relationship(PatchDelivery, uselist=False, viewonly=True)
Workflow.patch_skip = relationship(PatchSkip, uselist=False, viewonly=True)
