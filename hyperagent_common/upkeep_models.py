"""The table of upkeep: when each host's reconciler last looked, so that one that stands still is noticed."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from hyperagent_common.models import Base


class Reconciler(Base):
    """What finds steps that should be moving and are not: when it last looked on this host, and what it did then."""

    __tablename__ = "reconciler"
    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    last_seen: Mapped[datetime]
    did: Mapped[dict[str, Any]] = mapped_column(default=dict)
