"""What a running API holds besides Flask: settings, the Celery application it sends with, storage, live logs."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import redis
from celery import Celery
from flask import current_app

from hyperagent_common.settings import Settings
from hyperagent_common.storage import Storage, open_storage

KEY = "hyperagent"
REDIS = ("redis://", "rediss://", "unix://")


@dataclass
class Context:
    """Made once by `create_app`; storage and Redis on first use."""

    settings: Settings
    celery: Celery
    register_wait: float
    live: redis.Redis | None = None
    _storage: Storage | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def storage(self) -> Storage:
        """Shared storage. Raises `DependencyDown`."""
        with self._lock:
            self._storage = self._storage or open_storage(self.settings.storage)
            return self._storage

    @property
    def redis(self) -> redis.Redis | None:
        """The Redis that holds live logs; None where the broker is no Redis."""
        with self._lock:
            url = self.settings.broker.replace("redis+socket://", "unix://", 1)
            if self.live is None and url.startswith(REDIS):
                self.live = redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=2)
            return self.live


def context() -> Context:
    """The running application's context."""
    found: Context = current_app.extensions[KEY]
    return found
