"""`python -m hyperagent_api.serve`: the API under gunicorn, one process, many threads (each stream holds one)."""

from __future__ import annotations

import sys
from typing import Any

from gunicorn.app.base import BaseApplication

from hyperagent_api import stream
from hyperagent_api.app import create_app
from hyperagent_common import providers, settings, telemetry
from hyperagent_common.errors import BadInput, BadSettings, NotReady

THREADS = stream.MOST + 16


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn with our options instead of its command line."""

    def __init__(self, loaded: settings.Settings) -> None:
        self.loaded = loaded
        super().__init__()

    def load_config(self) -> None:
        """One worker process with threads; the answer to a body too large comes from the application."""
        options: dict[str, Any] = {
            "bind": f"{self.loaded.api_host}:{self.loaded.api_port}",
            "worker_class": "gthread",
            "threads": THREADS,
            "graceful_timeout": 5,
            "timeout": 120,
            "worker_tmp_dir": "/dev/shm",
            "control_socket_disable": True,
            "logger_class": "gunicorn.glogging.Logger",
        }
        for name, value in options.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Any:
        """The application."""
        telemetry.configure(self.loaded, "api")
        return create_app(self.loaded)


def main() -> None:
    """Serve until SIGTERM; not at all where a chosen model has no provider."""
    try:
        loaded = settings.load()
        providers.require(loaded)
        Server(loaded).run()
    except (BadInput, BadSettings, NotReady) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
