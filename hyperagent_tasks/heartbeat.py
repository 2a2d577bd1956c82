"""A worker's heartbeat: its row says it lives, which parts it has, and what is wrong with them.

With each beat it reaps what a killed worker left on this host. It beats in a process of its own
(`python -m hyperagent_tasks.heartbeat NAME`): what the checks use keeps threads (the storage library's runtime, for one),
and the worker's main process must have none, for it forks its children.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

from hyperagent_common import db, settings, telemetry
from hyperagent_common.errors import DependencyDown
from hyperagent_common.models import Worker
from hyperagent_tasks import checks, reaper
from hyperagent_tasks.parts import Parts, instance

log = logging.getLogger(__name__)
ASK_PARENT_SECONDS = 1.0
_beating: list[subprocess.Popen[bytes]] = []


def start(name: str) -> None:
    """Begin to beat for the worker that this process is."""
    argv = [sys.executable, "-m", "hyperagent_tasks.heartbeat", name, str(os.getpid())]
    _beating.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL))


def stop() -> None:
    """End the beat; it writes that the worker stopped."""
    for process in _beating:
        process.terminate()


def run(parts: Parts, name: str, parent: int) -> None:
    """Beat until told to stop, which is written, or until the worker was killed, which its silence tells."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while not ended.is_set() and os.getppid() == parent:
        _beat(parts, name)
        _reap(parts)
        waited = 0.0
        while waited < parts.settings.heartbeat_seconds and os.getppid() == parent and not ended.is_set():
            pause = min(ASK_PARENT_SECONDS, parts.settings.heartbeat_seconds - waited)
            ended.wait(pause)
            waited += pause
    if ended.is_set():
        _beat(parts, name, stopped=True)


def _reap(parts: Parts) -> None:
    try:
        reaper.reap(parts)
    except DependencyDown as error:
        log.warning("reap.failed", extra={"error": str(error)})


def _beat(parts: Parts, name: str, *, stopped: bool = False) -> None:
    try:
        beat(parts, name, stopped=stopped)
    except DependencyDown as error:
        log.warning("heartbeat.unwritten", extra={"error": str(error)})


def beat(parts: Parts, name: str, *, stopped: bool = False) -> None:
    """Write one heartbeat with what the checks say."""
    found = [] if stopped else checks.examine(parts)
    faults = [{"check": c.name, "message": c.message, "mend": c.mend} for c in found if not c.ok]
    known = not stopped and all(c.name != "parts" for c in found)
    said: dict[str, Any] = {**parts.chosen.__dict__, "instance": instance(parts.settings)} if known else {}
    with db.transaction(parts.settings.db_url) as session:
        row = session.get(Worker, name)
        moment = db.now(session)
        if row is None:
            row = Worker(id=name, host=socket.gethostname(), started_at=moment, last_seen=moment)
            session.add(row)
        row.last_seen, row.faults = moment, faults
        row.parts = said or row.parts
        row.stopped_at = moment if stopped else None


if __name__ == "__main__":
    loaded = settings.load()
    telemetry.configure(loaded, "heartbeat")
    run(Parts(loaded), sys.argv[1], int(sys.argv[2]))
