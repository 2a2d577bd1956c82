"""pause, the branch's head as a value, attempts that cost nothing"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

import hyperagent_common.models

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STATES = "state IN ('running', 'paused', 'done', 'failed', 'cancelled')"
BEFORE = "state IN ('running', 'done', 'failed', 'cancelled')"


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("workflow") as batch:
        batch.drop_constraint(op.f("ck_workflow_state"), type_="check")
        batch.create_check_constraint(op.f("ck_workflow_state"), STATES)
        batch.add_column(sa.Column("head", sa.String(64), nullable=True))
        batch.add_column(sa.Column("version", sa.Integer(), nullable=False, server_default="1"))
    with op.batch_alter_table("workflow_step") as batch:
        batch.add_column(sa.Column("free_attempts", sa.Integer(), nullable=False, server_default="0"))
        batch.add_column(sa.Column("blocked_since", hyperagent_common.models.Utc(timezone=True), nullable=True))
    op.add_column("project", sa.Column("head", sa.String(64), nullable=True))
    op.add_column("project", sa.Column("publisher", sa.String(64), nullable=True))
    op.create_index("ix_dead_letter_resolved_at_id", "dead_letter", ["resolved_at", "id"])


def downgrade() -> None:
    """Undo; a paused workflow goes on."""
    op.execute("UPDATE workflow SET state = 'running' WHERE state = 'paused'")
    op.drop_index("ix_dead_letter_resolved_at_id", "dead_letter")
    op.drop_column("project", "publisher")
    op.drop_column("project", "head")
    with op.batch_alter_table("workflow_step") as batch:
        batch.drop_column("blocked_since")
        batch.drop_column("free_attempts")
    with op.batch_alter_table("workflow") as batch:
        batch.drop_column("version")
        batch.drop_column("head")
        batch.drop_constraint(op.f("ck_workflow_state"), type_="check")
        batch.create_check_constraint(op.f("ck_workflow_state"), BEFORE)
