"""reviews of patches, who holds them, why there is none"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from hyperagent_common.models import Utc

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def _key(name: str, target: str, *, nullable: bool = False, **more: bool) -> sa.Column[str]:
    return sa.Column(name, sa.String(36), sa.ForeignKey(target, ondelete="RESTRICT"), nullable=nullable, **more)  # type: ignore[arg-type]


def _trying() -> list[sa.Column[object]]:
    """What both kinds of unfinished business have."""
    return [
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("error_type", sa.String(32), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("next_at", Utc(timezone=True), nullable=True, index=True),
    ]


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("patch") as table:
        table.add_column(sa.Column("bodies", sa.JSON(), nullable=False, server_default="[]"))
    op.create_table(
        "patch_review",
        sa.Column("id", sa.String(36), primary_key=True),
        _key("patch_id", "patch.id", index=True),
        _key("step_id", "workflow_step.id"),
        _key("verdict_id", "verdict.id", unique=True),
        sa.Column("revision_id", sa.String(64), nullable=False),
        sa.Column(
            "state", sa.String(16), sa.CheckConstraint("state IN ('pending', 'posted', 'refused')", name="state"), nullable=False
        ),
        sa.Column("reviewer", sa.String(80), nullable=True),
        sa.Column("review_id", sa.String(64), nullable=True),
        *_trying(),
        sa.Column("created_at", Utc(timezone=True), nullable=False),
        sa.Column("posted_at", Utc(timezone=True), nullable=True),
    )
    op.create_table(
        "patch_delivery",
        sa.Column("id", sa.String(36), primary_key=True),
        _key("patch_id", "patch.id", unique=True),
        sa.Column(
            "state", sa.String(16), sa.CheckConstraint("state IN ('kept', 'announced', 'held')", name="state"), nullable=False
        ),
        sa.Column("synced_with", sa.Integer(), nullable=False),
        *_trying(),
        sa.Column("at", Utc(timezone=True), nullable=False),
    )
    op.create_table(
        "patch_skip",
        sa.Column("id", sa.String(36), primary_key=True),
        _key("workflow_id", "workflow.id", unique=True),
        _key("step_id", "workflow_step.id", nullable=True),
        sa.Column(
            "kind",
            sa.String(16),
            sa.CheckConstraint("kind IN ('verdict', 'nothing', 'unwanted', 'ended')", name="kind"),
            nullable=False,
        ),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", Utc(timezone=True), nullable=False),
    )


def downgrade() -> None:
    """Undo."""
    for name in ("patch_skip", "patch_delivery", "patch_review"):
        op.drop_table(name)
    with op.batch_alter_table("patch") as table:
        table.drop_column("bodies")
