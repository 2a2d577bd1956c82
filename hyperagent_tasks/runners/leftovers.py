"""Records of plain processes: who started what, so that all of it can be ended, also by another process later."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from hyperagent_tasks.runners import trees

MARK = "HYPERAGENT_SANDBOX"
END_SECONDS = 5.0
UNREADABLE_SECONDS = 10.0


class Record:
    """One run's directory: `record.json`, and the private `home` and `tmp` of its command."""

    def __init__(self, root: Path, labels: Mapping[str, str], pid: int | None = None, born: str = "") -> None:
        self.root, self.labels = root, dict(labels)
        self._pid, self._born = pid, born

    @property
    def mark(self) -> str:
        """Carried in the environment of everything the command starts."""
        return self.root.name

    def __enter__(self) -> Record:
        self.root.mkdir(parents=True, mode=0o700)
        self._write()
        for name in ("home", "tmp"):
            (self.root / name).mkdir(mode=0o700)
        return self

    def __exit__(self, *_error: object) -> None:
        self.forget()

    def started(self, pid: int) -> None:
        """Remember the process group, and when its leader began: a pid alone may come to mean another process."""
        self._pid, self._born = pid, born(pid)
        self._write()

    def end(self) -> None:
        """Kill the group, and whatever left the group but still carries the mark."""
        if self._pid is not None and self._born and born(self._pid) == self._born:
            kill_group(self._pid)
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            found = list(_marked(self.mark))
            if not found:
                return
            for pid in found:
                _kill(pid)
            time.sleep(0.01)

    def forget(self) -> None:
        """Remove the directory."""
        trees.remove(self.root)

    def _write(self) -> None:
        fresh = self.root / "record.part"
        fresh.write_text(json.dumps({"labels": self.labels, "pid": self._pid, "born": self._born}))
        fresh.replace(self.root / "record.json")


def records(run_dir: Path) -> Iterator[Record]:
    """Every record in a directory; one that cannot be read is passed over, and removed once nobody can be writing it."""
    for root in sorted(path for path in run_dir.glob("*") if path.is_dir()):
        path = root / "record.json"
        try:
            said = json.loads(path.read_text())
            yield Record(path.parent, said["labels"], said["pid"], said["born"])
        except (OSError, ValueError, KeyError):  # being written or removed by its owner, or by one that was killed then
            with contextlib.suppress(OSError):
                if time.time() - root.stat().st_mtime > UNREADABLE_SECONDS:
                    trees.remove(root)


def born(pid: int) -> str:
    """When a process began, in whatever form this system tells it; empty where there is none."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        except (OSError, IndexError):
            return ""
    told = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, timeout=5, check=False)
    return told.stdout.strip()


def _marked(mark: str) -> Iterator[int]:
    """Living processes of this user that carry the mark; only Linux shows them."""
    wanted = f"{MARK}={mark}".encode()
    yield from (pid for pid, said in environments() if wanted in said)


def environments(proc: Path = Path("/proc")) -> Iterator[tuple[int, list[bytes]]]:
    """The environment of every process that may be read, by pid; one that ends meanwhile, or is another user's, is passed over.

    No glob: it asks whether each file is there, and of a process that is ending Linux answers with an error it does not bear.
    """
    for path in proc.iterdir() if proc.is_dir() else ():
        if path.name.isdecimal():
            try:
                said = (path / "environ").read_bytes()
            except OSError:
                continue
            yield int(path.name), said.split(b"\0")


def kill_group(pid: int) -> None:
    """Kill a process group; fine where nothing of it is left."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # nothing of the group is left (macOS says so by EPERM)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
