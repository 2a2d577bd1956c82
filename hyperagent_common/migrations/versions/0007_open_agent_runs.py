"""agent runs without an end are found by an index"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_index(op.f("ix_agent_run_finished_at"), "agent_run", ["finished_at"])


def downgrade() -> None:
    """Undo."""
    op.drop_index(op.f("ix_agent_run_finished_at"), "agent_run")
