"""What every runner does with a running command: take its output, keep its tails, decide when it must end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from hyperagent_tasks.runners import trees
from hyperagent_tasks.runners.base import Ended, RunnerResult, RunSpec, Sink

Stream = Literal["stdout", "stderr"]

TAIL = 8 << 10
TICK = 0.2
ASK_EVERY = 0.5
LOOK_EVERY = 1.0


class Tail:
    """The last `TAIL` bytes of a stream."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._cut = False

    def add(self, data: bytes) -> None:
        """Take more bytes."""
        self._kept += data[-TAIL:]
        if len(self._kept) > TAIL:
            del self._kept[:-TAIL]
            self._cut = True

    def text(self) -> str:
        """The bytes as text that a database takes: what is not UTF-8, and NUL, shows as U+FFFD."""
        kept = bytes(self._kept)
        while self._cut and kept and kept[0] & 0xC0 == 0x80:
            kept = kept[1:]  # the cut fell inside a character
        return kept.decode("utf-8", "replace").replace("\x00", "\ufffd")


class DiskWatch:
    """Measures writable mounts about once a second in a thread; `full` says that they hold more than they may."""

    def __init__(self, paths: Sequence[Path], limit: int) -> None:
        self._paths, self._limit = tuple(paths), limit
        self._over = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="disk-watch", daemon=True)

    @property
    def full(self) -> bool:
        """True once the mounts hold too many bytes or files, or their filesystem is nearly full."""
        return self._over.is_set()

    def __enter__(self) -> DiskWatch:
        if self._paths:
            self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        if self._paths:
            self._thread.join(timeout=5)

    def look(self) -> bool:
        """Measure now."""
        if any(trees.measure(self._paths, self._limit, self._stop.is_set).values()):
            self._over.set()
        return self.full

    def _look(self) -> None:
        pause = LOOK_EVERY
        while not self._stop.wait(pause):
            began = time.monotonic()
            if self.look():
                return
            pause = max(LOOK_EVERY, 4 * (time.monotonic() - began))  # a huge tree costs a fifth of one core at most


class Watch:
    """One run's clock, output and limits. `end()` is why it must end now, or None."""

    def __init__(
        self, spec: RunSpec, sink: Sink | None, cancelled: Callable[[], bool] | None, disk: DiskWatch | None = None
    ) -> None:
        self._spec, self._sink, self._cancelled, self._disk = spec, sink, cancelled, disk
        self._tails: dict[Stream, Tail] = {"stdout": Tail(), "stderr": Tail()}
        self._taken = 0
        self.truncated = False
        self.started_at = datetime.now(UTC)
        self._began = self._spoke = time.monotonic()
        self._asked = self._began - ASK_EVERY

    def start(self) -> None:
        """The command starts now: deadlines count from here."""
        self.started_at = datetime.now(UTC)
        self._began = self._spoke = time.monotonic()

    def take(self, stream: Stream, data: bytes) -> None:
        """Take output up to the limit; what is over it is dropped and said by `truncated`."""
        self._spoke = time.monotonic()
        room = self._spec.output_limit - self._taken
        if len(data) > room:
            self.truncated = True
            data = data[:room]
        if not data:
            return
        self._taken += len(data)
        self._tails[stream].add(data)
        if self._sink is not None:
            self._sink(stream, data)

    def end(self) -> Ended | None:
        """Why the command must be ended now; asks `cancelled` at most twice a second."""
        now = time.monotonic()
        if self._cancelled is not None and now - self._asked >= ASK_EVERY:
            self._asked = now
            if self._cancelled():
                return "cancelled"
        if self.truncated:
            return "output"
        if self._disk is not None and self._disk.full:
            return "disk"
        if now - self._began >= self._spec.timeout:
            return "timeout"
        idle = self._spec.idle_timeout
        return "idle" if idle is not None and now - self._spoke >= idle else None

    def result(self, ended: Ended, exit_code: int | None, **known: Any) -> RunnerResult:
        """The result, with times and tails."""
        return RunnerResult(
            ended=ended,
            exit_code=exit_code,
            started_at=self.started_at,
            finished_at=datetime.now(UTC),
            stdout_tail=self._tails["stdout"].text(),
            stderr_tail=self._tails["stderr"].text(),
            truncated=self.truncated,
            **known,
        )


def writable(spec: RunSpec) -> list[Path]:
    """The directories the command may fill."""
    return [mount.source for mount in spec.mounts if not mount.read_only]
