"""A worker's heartbeat: its row says it lives, which parts it has, and what is wrong with them.

With each beat it reaps what a killed worker left on this host. It beats in a process of its own
(`python -m hyperagent_tasks.heartbeat NAME`): what the checks use keeps threads (the storage library's runtime, for one),
and the worker's main process must have none, for it forks its children. No fault ends it; where it was killed, the worker
starts it again.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hyperagent_common import db, settings, telemetry
from hyperagent_common.errors import DependencyDown
from hyperagent_common.models import Worker
from hyperagent_tasks import checks, reaper
from hyperagent_tasks.parts import Parts, instance

log = logging.getLogger(__name__)
ASK_PARENT_SECONDS = 1.0
AGAIN_SECONDS = 10.0
"""How long a process lives at least before another one is started in its place."""


@dataclass(frozen=True)
class Beating:
    """The process that beats for the worker `name`, and when it was started."""

    name: str
    process: subprocess.Popen[bytes]
    began: float


_beating: list[Beating] = []


def start(name: str) -> None:
    """Begin to beat for the worker that this process is."""
    argv = [sys.executable, "-m", "hyperagent_tasks.heartbeat", name, str(os.getpid())]
    _beating.append(Beating(name, subprocess.Popen(argv, stdin=subprocess.DEVNULL), time.monotonic()))


def keep() -> None:
    """Start the beat again where its process ended by itself; called now and then by the worker, without a thread."""
    for old in list(_beating):
        if time.monotonic() - old.began >= AGAIN_SECONDS and (code := old.process.poll()) is not None:
            log.error("heartbeat.ended", extra={"worker": old.name, "exit_code": code})
            start(old.name)  # where it cannot be started now, the old one is found again at the next look
            _beating.remove(old)


def stop() -> None:
    """End the beat; it writes that the worker stopped."""
    while _beating:
        _beating.pop().process.terminate()


def run(parts: Parts, name: str, parent: int) -> None:
    """Beat until told to stop, which is written, or until the worker was killed, which its silence tells."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while not ended.is_set() and os.getppid() == parent:
        _tried("heartbeat.unwritten", lambda: beat(parts, name))
        _tried("reap.failed", lambda: reaper.reap(parts))
        waited = 0.0
        while waited < parts.settings.heartbeat_seconds and os.getppid() == parent and not ended.is_set():
            pause = min(ASK_PARENT_SECONDS, parts.settings.heartbeat_seconds - waited)
            ended.wait(pause)
            waited += pause
    if ended.is_set():
        _tried("heartbeat.unwritten", lambda: beat(parts, name, stopped=True))


def _tried(what: str, part: Callable[[], object]) -> None:
    """A fault, whichever it is, costs this look and not the process: the next may go better."""
    try:
        part()
    except DependencyDown as error:
        log.warning(what, extra={"error": str(error)})
    except Exception:
        log.exception(what)


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
        row.parts = said or row.parts or {}
        row.stopped_at = moment if stopped else None


if __name__ == "__main__":
    loaded = settings.load()
    telemetry.configure(loaded, "heartbeat")
    run(Parts(loaded), sys.argv[1], int(sys.argv[2]))
