"""A lease kept alive by a thread: renewed now and then, asked after every second, so that who lost it stops within seconds."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0


class Keeper(threading.Thread):
    """Keeps something held. `lost()` turns true once it is somebody else's, or could not be renewed in time, and stays so: what
    was stopped because of it must not be taken for ended by itself."""

    def __init__(self, name: str, renew: Callable[[], bool], holds: Callable[[], bool], lease: float, every: float) -> None:
        super().__init__(name=f"lease-{name}", daemon=True)
        self._renew, self._holds, self._lease, self._every = renew, holds, lease, every
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._until = time.monotonic() + lease

    def __enter__(self) -> Keeper:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join(timeout=self._every + 10)

    def lost(self) -> bool:
        """True once somebody else may hold it: stop at once."""
        if time.monotonic() > self._until:
            self._lost.set()
        return self._lost.is_set()

    def stop(self) -> None:
        """This is over: whatever runs for it must end."""
        self._lost.set()

    def run(self) -> None:
        """Renew until told to stop or the lease is lost."""
        due = time.monotonic() + self._every
        while not self._ended.wait(min(LOOK_SECONDS, self._every)) and not self.lost():
            asked = time.monotonic()
            try:
                if not (self._renew() if asked >= due else self._holds()):
                    self._lost.set()
                    return
                if asked >= due:
                    self._until, due = asked + self._lease, asked + self._every
            except Exception as error:  # whatever it is: the lease may hold still, and without this thread nobody would renew it
                log.warning("lease.unrenewed", extra={"lease": self.name, "error": f"{type(error).__name__}: {error}"})
