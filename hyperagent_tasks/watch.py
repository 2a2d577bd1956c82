"""The watch of a worker host (`python -m hyperagent_tasks.watch`): it reports how the forge stands and listens for triggers.

One process a host, however many are started. Listening is only for speed: every look around compares with what was seen
before, so that nothing is missed while the watch, the node or the database was away.
"""

from __future__ import annotations

import fcntl
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from hyperagent_common import db, settings, telemetry
from hyperagent_common.errors import HyperagentError
from hyperagent_common.forge_models import ForgeHost
from hyperagent_tasks import report, triggering
from hyperagent_tasks.parts import Parts, instance, run_files

log = logging.getLogger(__name__)
LOOK_AGAIN_SECONDS, OFTEN_SECONDS = 20.0, 5.0
TICK_SECONDS, SOON_SECONDS = 0.4, 1.5
QUIET_SECONDS = 0.3
"""After an event the next look waits this long, so that a burst of events is one look."""


class Watch:
    """Reports in this thread; listens and looks around in two others."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.ended, self.stirred = parts, threading.Event(), threading.Event()
        self.looked, self.rids = -1e9, frozenset[str]()

    def run(self) -> None:
        """Until told to stop."""
        for each in (self._listen, self._look_around):
            threading.Thread(target=each, daemon=True).start()
        reported, pause = -1e9, max(OFTEN_SECONDS, self.parts.settings.heartbeat_seconds)
        while not self.ended.is_set():
            if self._asked() or time.monotonic() - reported >= pause:
                reported = time.monotonic()
                self._quietly("report", lambda: report.write(self.parts))
            self.ended.wait(TICK_SECONDS)

    def _asked(self) -> bool:
        """Whether somebody waits for a report newer than the last; a project with new triggers is looked at soon, too."""
        mine = instance(self.parts.settings)
        try:
            with db.transaction(self.parts.settings.db_url, reading=True) as session:
                row = session.get(ForgeHost, mine)
                if time.monotonic() - self.looked > SOON_SECONDS and triggering.unseen(session, mine):
                    self.stirred.set()
        except HyperagentError:
            return False
        return row is not None and row.asked_at is not None and (row.reported_at is None or row.asked_at > row.reported_at)

    def _listen(self) -> None:
        """Note that something happened; come back where the node went away."""
        while not self.ended.is_set():
            try:
                if self.parts.forge.name != "radicle":
                    return
                with self.parts.forge.events() as happening:
                    self.stirred.set()  # nothing is told again: look at what came before
                    for event in happening:
                        if self.ended.is_set():
                            return
                        if event.get("rid") in self.rids:
                            self.stirred.set()
            except HyperagentError as error:
                log.info("watch.node_away", extra={"reason": error.message})
            self.ended.wait(1.0)

    def _look_around(self) -> None:
        """Look at every project with triggers when something happened, and now and then all the same."""
        while not self.ended.is_set():
            self.stirred.wait(LOOK_AGAIN_SECONDS)
            self.ended.wait(QUIET_SECONDS)
            self.stirred.clear()
            self.looked = time.monotonic()
            self._quietly("scan", self.look_around)

    def look_around(self) -> None:
        """One look at every project with triggers; one that cannot be looked at hides no other."""
        found = triggering.watched(self.parts)
        self.rids = frozenset(project.rid or "" for project in found)
        for project in found:
            fired = self._quietly("scan", partial(triggering.scan, self.parts, project))
            if fired:
                log.info("trigger.started", extra={"project": project.name, "workflows": fired})

    def _quietly(self, what: str, do: Callable[[], object]) -> object:
        """What fails now is done again at the next look."""
        try:
            return do()
        except HyperagentError as error:
            log.warning("watch.failed", extra={"what": what, "reason": error.sentence})
        except Exception as error:  # the watch must outlive one strange answer of the forge
            log.error("watch.broken", exc_info=error, extra={"what": what})
        return None


@contextmanager
def only_one(parts: Parts, ended: threading.Event) -> Iterator[bool]:
    """Wait until no other watch runs on this host."""
    with (run_files(parts.settings) / "watch.lock").open("w") as lock:
        while not ended.is_set():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                ended.wait(1.0)
                continue
            yield True
            return
        yield False


def main() -> None:
    """Watch until SIGTERM."""
    loaded = settings.load()
    telemetry.configure(loaded, "watch")
    watch = Watch(Parts(loaded))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: watch.ended.set())
    with only_one(watch.parts, watch.ended) as alone:
        if alone:
            watch.run()


if __name__ == "__main__":
    main()
