"""Child processes that cannot outlive their supervisor, and pid files that cannot mistake another process for ours."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PR_SET_PDEATHSIG = 1
LONGEST_PAUSE = 30.0
STEADY_SECONDS = 60.0


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def started_at(pid: int) -> int | None:
    """When a process started (clock ticks since boot), None where there is none: pid and start are its identity."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rsplit(")", 1)[1].split()
    return None if fields[0] == "Z" else int(fields[19])


@dataclass(frozen=True)
class PidFile:
    """Names a running process by pid and start time."""

    path: Path

    def write(self) -> None:
        """This process is the one."""
        fresh = self.path.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps({"pid": os.getpid(), "started": started_at(os.getpid())}))
        fresh.replace(self.path)

    def pid(self) -> int | None:
        """The pid where that very process still runs."""
        try:
            said = json.loads(self.path.read_text())
            pid, start = int(said["pid"]), said["started"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return pid if start is not None and started_at(pid) == start else None

    def remove(self) -> None:
        """The process has ended."""
        self.path.unlink(missing_ok=True)


@dataclass
class Child:
    """One process that is kept running; its output goes to `log`."""

    name: str
    argv: Sequence[str]
    log: Path
    env: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    began: float = field(default=0.0)
    again_at: float = field(default=0.0)

    def start(self) -> None:
        """Start it."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                list(self.argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(self.env),
                preexec_fn=_die_with_parent,
                start_new_session=True,
            )
        self.began = time.monotonic()

    def running(self) -> bool:
        """True while it runs."""
        return self.process is not None and self.process.poll() is None

    def watch(self) -> str | None:
        """Restart it where it died and its pause is over; returns what there is to say."""
        now = time.monotonic()
        if self.running():
            return None
        if self.process is not None:
            code, self.process = self.process.returncode, None
            self.restarts = 0 if now - self.began > STEADY_SECONDS else self.restarts + 1
            pause = min(LONGEST_PAUSE, 0.5 * 2 ** min(self.restarts, 8))
            self.again_at = now + pause
            return f"{self.name} ended with {code}; it is started again in {pause:.0f} s (log: {self.log})"
        if now >= self.again_at:
            self.start()
            return f"{self.name} is started again"
        return None

    def stop(self, seconds: float) -> None:
        """Ask it to end; end it, with all it started, after `seconds`."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
