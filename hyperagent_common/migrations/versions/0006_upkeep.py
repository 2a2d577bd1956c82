"""drafts are held by a lease, reconcilers say when they looked, blocked steps are found by an index"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from hyperagent_common.models import Utc

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("plan_draft") as table:
        table.add_column(sa.Column("fence", sa.Integer(), nullable=False, server_default="0"))
        table.add_column(sa.Column("lease_until", Utc(timezone=True), nullable=True))
    op.create_table(
        "reconciler",
        sa.Column("id", sa.String(255), primary_key=True),
        sa.Column("last_seen", Utc(timezone=True), nullable=False),
        sa.Column("did", sa.JSON(), nullable=False),
    )
    op.execute("UPDATE workflow_step SET blocked_since = NULL WHERE state <> 'queued'")
    op.create_index(op.f("ix_workflow_step_blocked_since"), "workflow_step", ["blocked_since"])


def downgrade() -> None:
    """Undo."""
    op.drop_index(op.f("ix_workflow_step_blocked_since"), "workflow_step")
    op.drop_table("reconciler")
    with op.batch_alter_table("plan_draft") as table:
        table.drop_column("lease_until")
        table.drop_column("fence")
