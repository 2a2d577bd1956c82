"""verdicts, drafts of plans, checks by round"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from hyperagent_common.models import Utc

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "plan_draft",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("project_id", sa.String(36), sa.ForeignKey("project.id", ondelete="RESTRICT"), nullable=False, index=True),
        sa.Column("goal", sa.Text(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("document", sa.JSON(), nullable=True),
        sa.Column("requested_by", sa.String(255), nullable=False),
        sa.Column("created_at", Utc(timezone=True), nullable=False),
        sa.Column("finished_at", Utc(timezone=True), nullable=True),
    )
    with op.batch_alter_table("agent_run") as table:
        table.alter_column("attempt_id", existing_type=sa.String(36), nullable=True)
        table.add_column(sa.Column("draft_id", sa.String(36), nullable=True))
        table.create_foreign_key(op.f("fk_agent_run_draft_id"), "plan_draft", ["draft_id"], ["id"], ondelete="RESTRICT")
        table.create_index(op.f("ix_agent_run_draft_id"), ["draft_id"])
    op.create_table(
        "verdict",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("attempt_id", sa.String(36), sa.ForeignKey("step_attempt.id", ondelete="RESTRICT"), nullable=False, index=True),
        sa.Column("agent_run_id", sa.String(36), sa.ForeignKey("agent_run.id", ondelete="RESTRICT"), nullable=False, index=True),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("decision", sa.String(32), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("findings", sa.JSON(), nullable=False),
        sa.Column("created_at", Utc(timezone=True), nullable=False),
    )
    with op.batch_alter_table("check_result") as table:
        table.add_column(sa.Column("round", sa.Integer(), nullable=False, server_default="1"))
        table.drop_constraint(op.f("uq_check_result_attempt_id_position"), type_="unique")
        table.create_unique_constraint(op.f("uq_check_result_attempt_id_round_position"), ["attempt_id", "round", "position"])


def downgrade() -> None:
    """Undo; results of later rounds and runs of planners go."""
    op.execute("DELETE FROM check_result WHERE round > 1")
    with op.batch_alter_table("check_result") as table:
        table.drop_constraint(op.f("uq_check_result_attempt_id_round_position"), type_="unique")
        table.create_unique_constraint(op.f("uq_check_result_attempt_id_position"), ["attempt_id", "position"])
        table.drop_column("round")
    op.drop_table("verdict")
    op.execute("DELETE FROM agent_run WHERE attempt_id IS NULL")
    with op.batch_alter_table("agent_run") as table:
        table.drop_index(op.f("ix_agent_run_draft_id"))
        table.drop_constraint(op.f("fk_agent_run_draft_id"), type_="foreignkey")
        table.drop_column("draft_id")
        table.alter_column("attempt_id", existing_type=sa.String(36), nullable=False)
    op.drop_table("plan_draft")
