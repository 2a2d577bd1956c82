"""A process that can be killed and started again on the same port with the same data."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from tests import servers
from tests.harness import ROOT


class Server:
    """A process that can be killed and started again on the same port with the same data."""

    def __init__(self, argv: list[str], log: Path, env: dict[str, str] | None = None, user: list[str] | None = None) -> None:
        self.argv, self.log, self.env = [*(user or servers.bound()), *argv], log, env
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it must not run."""
        assert not self.alive, f"{self.argv[0]} runs already: a second one would be ended in its place"
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.env,
                cwd=ROOT if self.env else "/",
                start_new_session=True,
            )  # fmt: skip

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def send(self, number: int, *, group: bool = False) -> None:
        """Send a signal to it, or to all it started."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number) if group else self.process.send_signal(number)

    def end(self, number: int = signal.SIGKILL, *, group: bool = True) -> None:
        """End it and wait."""
        self.send(number, group=group)
        if self.process is not None:
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.send(signal.SIGKILL, group=True)
                self.process.wait(20)
