"""Alembic's environment: our metadata, the engine of `db`."""

from __future__ import annotations

from alembic import context

from hyperagent_common import db
from hyperagent_common.models import Base

url = context.config.attributes["url"]
sqlite = url.startswith("sqlite")
with db.engine(url).connect() as connection:
    if sqlite:  # a table is changed by making it anew; dropping the old one must not count as deleting its rows
        connection.connection.execute("PRAGMA foreign_keys=OFF")
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=sqlite)
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
    if sqlite:
        connection.connection.execute("PRAGMA foreign_keys=ON")
