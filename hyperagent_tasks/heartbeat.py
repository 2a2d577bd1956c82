"""A worker's heartbeat: its row says it lives, which parts it has, and what is wrong with them."""

from __future__ import annotations

import logging
import socket
import threading
from typing import Any

from hyperagent_common import db
from hyperagent_common.errors import DependencyDown
from hyperagent_common.models import Worker
from hyperagent_tasks import checks
from hyperagent_tasks.parts import Parts

log = logging.getLogger(__name__)
_stop = threading.Event()


def start(parts: Parts, name: str) -> None:
    """Begin to beat from a thread of the worker's main process."""
    _stop.clear()
    threading.Thread(target=_run, args=(parts, name), name="heartbeat", daemon=True).start()


def stop() -> None:
    """End the beat and say that the worker stopped."""
    _stop.set()


def _run(parts: Parts, name: str) -> None:
    while True:
        try:
            beat(parts, name)
        except DependencyDown as error:
            log.warning("heartbeat.unwritten", extra={"error": str(error)})
        if _stop.wait(parts.settings.heartbeat_seconds):
            break
    try:
        beat(parts, name, stopped=True)
    except DependencyDown as error:
        log.warning("heartbeat.unwritten", extra={"error": str(error)})


def beat(parts: Parts, name: str, *, stopped: bool = False) -> None:
    """Write one heartbeat with what the checks say."""
    found = [] if stopped else checks.examine(parts)
    faults = [{"check": c.name, "message": c.message, "mend": c.mend} for c in found if not c.ok]
    known = not stopped and all(c.name != "parts" for c in found)
    said: dict[str, Any] = dict(parts.chosen.__dict__) if known else {}
    with db.transaction(parts.settings.db_url) as session:
        row = session.get(Worker, name)
        moment = db.now(session)
        if row is None:
            row = Worker(id=name, host=socket.gethostname(), started_at=moment, last_seen=moment)
            session.add(row)
        row.last_seen, row.faults = moment, faults
        row.parts = said or row.parts
        row.stopped_at = moment if stopped else None
