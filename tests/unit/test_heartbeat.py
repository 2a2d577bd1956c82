"""What a worker's row says after its end: stopped, or silent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from hyperagent_common import db
from hyperagent_common.models import Worker
from tests.harness import ROOT

PATIENCE = 120.0


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A database with the worker `w` in it, last seen an hour ago."""
    made = f"sqlite:///{tmp_path / 'h.db'}"
    db.upgrade(made)
    with db.transaction(made) as session:
        ago = db.now(session) - timedelta(hours=1)
        session.add(Worker(id="w", host="h", started_at=ago, last_seen=ago))
    return made


def beating(url: str, tmp_path: Path, worker: int) -> subprocess.Popen[bytes]:
    """The heartbeat of the worker `w`, whose process is `worker`."""
    argv = [sys.executable, "-m", "hyperagent_tasks.heartbeat", "w", str(worker)]
    env = {"HYPERAGENT_HOME": str(tmp_path), "HYPERAGENT_DATABASE_URL": url, "PATH": os.environ["PATH"]}
    return subprocess.Popen(argv, env=env, cwd=ROOT, stdout=subprocess.DEVNULL)


def row(url: str) -> Worker:
    """The worker's row."""
    with db.transaction(url, reading=True) as session:
        return session.get_one(Worker, "w")


def test_a_killed_worker_is_not_said_to_have_stopped(url: str, tmp_path: Path) -> None:
    before = row(url).last_seen
    assert beating(url, tmp_path, worker=-1).wait(PATIENCE) == 0  # the worker it is to beat for is not its parent any more
    assert (row(url).stopped_at, row(url).last_seen) == (None, before)


def test_a_worker_that_was_told_to_stop_says_so(url: str, tmp_path: Path) -> None:
    before, process, deadline = row(url).last_seen, beating(url, tmp_path, os.getpid()), time.monotonic() + PATIENCE
    while row(url).last_seen == before and time.monotonic() < deadline:
        time.sleep(0.1)
    process.terminate()
    assert process.wait(PATIENCE) == 0
    assert row(url).stopped_at is not None
