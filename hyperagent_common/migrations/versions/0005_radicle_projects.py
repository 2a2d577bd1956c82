"""projects that change and go, what hosts say of their forge, triggers"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from hyperagent_common.models import Utc

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("project", sa.Column("version", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("project", sa.Column("removed_at", Utc(timezone=True), nullable=True))
    op.create_table(
        "forge_host",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("reported_at", Utc(timezone=True), nullable=True),
        sa.Column("asked_at", Utc(timezone=True), nullable=True),
        sa.Column("report", sa.JSON(), nullable=False),
    )
    op.create_table(
        "project_change",
        sa.Column("id", sa.String(36), primary_key=True),
        _project(index=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("values", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("faults", sa.JSON(), nullable=False),
        sa.Column("created_at", Utc(timezone=True), nullable=False),
    )
    op.create_table(
        "trigger_mark",
        _project(primary_key=True),
        sa.Column("since", Utc(timezone=True), nullable=False),
        sa.Column("seen", sa.JSON(), nullable=True),
    )
    op.create_table(
        "trigger_event",
        sa.Column("id", sa.String(36), primary_key=True),
        _project(),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("subject", sa.String(400), nullable=False),
        sa.Column("author", sa.String(255), nullable=False),
        sa.Column("rule", sa.String(63), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("workflow_id", sa.String(36), sa.ForeignKey("workflow.id", ondelete="RESTRICT"), nullable=True),
        sa.Column("at", Utc(timezone=True), nullable=False),
        sa.UniqueConstraint("project_id", "kind", "subject", name=op.f("uq_trigger_event_project_id_kind_subject")),
    )
    op.create_index(op.f("ix_trigger_event_project_id_outcome_at"), "trigger_event", ["project_id", "outcome", "at"])


def _project(**more: Any) -> sa.Column[str]:
    return sa.Column("project_id", sa.String(36), sa.ForeignKey("project.id", ondelete="RESTRICT"), nullable=False, **more)


def downgrade() -> None:
    """Undo; a removed project is back."""
    for table in ("trigger_event", "trigger_mark", "project_change", "forge_host"):
        op.drop_table(table)
    op.drop_column("project", "removed_at")
    op.drop_column("project", "version")
