"""Who holds a patch besides this host: noted with each publish, and announced again until a peer has it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hyperagent_common import events, patches
from hyperagent_common.events import EventKind
from hyperagent_common.ids import new_id
from hyperagent_common.models import Patch, PatchEvent
from hyperagent_common.patch_models import DeliveryState, PatchDelivery
from hyperagent_common.settings import Settings
from hyperagent_tasks.radicle.base import Announced


def note(session: Session, settings: Settings, patch: Patch, spread: Announced, moment: datetime) -> None:
    """Write how far the patch came. Where no peer holds it, it is announced again after a pause that grows."""
    row = session.scalar(select(PatchDelivery).where(PatchDelivery.patch_id == patch.id).with_for_update())
    before = row.state if row else None
    if row is None:
        row = PatchDelivery(id=new_id(), patch_id=patch.id, tries=0)
        session.add(row)
    told = row.error_type
    row.state, row.synced_with, row.at = _state(spread), spread.synced_with, moment
    if spread.trouble is None:
        row.tries, row.error_type, row.reason, row.next_at = 0, None, None, None
        if before and before != DeliveryState.HELD and row.state == DeliveryState.HELD:
            _held(session, patch, spread, moment)
        return
    row.next_at = moment + patches.wait(row.tries, settings.retry_backoff, settings.retry_backoff_max)
    row.tries, row.error_type, row.reason = row.tries + 1, spread.trouble.type, spread.trouble.sentence
    if told != row.error_type:
        said: dict[str, Any] = {"patch": patch.patch_id, "error_type": row.error_type, "reason": row.reason}
        events.record(session, EventKind.PATCH_WAITS, workflow_id=patch.workflow_id, at=moment, **said)


def _state(spread: Announced) -> DeliveryState:
    if spread.synced_with:
        return DeliveryState.HELD
    return DeliveryState.ANNOUNCED if spread.announced else DeliveryState.KEPT


def _held(session: Session, patch: Patch, spread: Announced, moment: datetime) -> None:
    event = PatchEvent(id=new_id(), patch_id=patch.id, kind="held", commit=patch.head or "", at=moment)
    event.announced, event.synced_with = spread.announced, spread.synced_with
    session.add(event)
    said: dict[str, Any] = {"patch": patch.patch_id, "synced_with": spread.synced_with}
    events.record(session, EventKind.PATCH_HELD, workflow_id=patch.workflow_id, at=moment, **said)
