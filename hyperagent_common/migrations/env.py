"""Alembic's environment: our metadata, the engine of `db`."""

from __future__ import annotations

from alembic import context

from hyperagent_common import db
from hyperagent_common.models import Base

url = context.config.attributes["url"]
with db.engine(url).connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=url.startswith("sqlite"))
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
