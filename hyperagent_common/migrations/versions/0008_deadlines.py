"""an attempt keeps its deadline"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from hyperagent_common.models import Utc

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("step_attempt", sa.Column("deadline", Utc(timezone=True), nullable=True))


def downgrade() -> None:
    """Undo."""
    with op.batch_alter_table("step_attempt") as table:
        table.drop_column("deadline")
