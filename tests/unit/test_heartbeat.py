"""What a worker's row says after its end: stopped, or silent; and that nothing else ends its beat."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest
from sqlalchemy.exc import IntegrityError

from hyperagent_common import db, queue, settings
from hyperagent_common.models import Worker
from hyperagent_tasks import checks, heartbeat, reaper, recording
from hyperagent_tasks.parts import Chosen, Parts
from hyperagent_tasks.spec import Workdir
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


def test_a_beat_that_was_killed_is_started_again_and_one_that_was_stopped_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats = tmp_path / "beats"
    beats.write_text("#!/bin/sh\nexec sleep 600\n")
    beats.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(beats))
    heartbeat.start("w")
    (first,) = heartbeat._beating
    heartbeat.keep()
    assert heartbeat._beating == [first]
    first.process.kill()
    first.process.wait(60)
    heartbeat.keep()
    assert heartbeat._beating == [first]  # not again and again where it cannot live
    monkeypatch.setattr(heartbeat, "AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError):
        heartbeat.keep()
    monkeypatch.setattr(sys, "executable", str(beats))
    heartbeat.keep()  # what could not be started is tried again
    (second,) = heartbeat._beating
    assert (second.name, second.process.poll()) == ("w", None)
    heartbeat.stop()
    second.process.wait(60)
    heartbeat.keep()
    assert heartbeat._beating == []


def test_no_fault_ends_the_beat(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(settings.load({"HYPERAGENT_HOME": str(tmp_path), "HYPERAGENT_DATABASE_URL": url}))
    told: list[str] = []

    def odd(_: object) -> None:
        told.append("asked")
        if len(told) > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError("odd")

    monkeypatch.setattr(heartbeat, "ASK_PARENT_SECONDS", 0.01)
    parts.settings.__dict__["heartbeat_seconds"] = 0.01
    monkeypatch.setattr(checks, "examine", odd)
    monkeypatch.setattr(reaper, "reap", odd)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        heartbeat.run(parts, "w", os.getppid())
    finally:
        for number, how in before.items():
            signal.signal(number, how)
    assert (told, row(url).stopped_at is None) == (["asked", "asked"], False)


def test_a_check_that_fails_itself_is_said_as_one_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(settings.load({"HYPERAGENT_HOME": str(tmp_path)}), chosen=Chosen("process", "mock", "stand-in"))
    monkeypatch.setattr(queue, "client", Mock(side_effect=ValueError("no such scheme")))
    (broker,) = [found for found in checks.examine(parts) if found.name == "broker"]
    assert (broker.ok, broker.message) == (False, "The check itself failed: ValueError: no such scheme")


def test_the_reaper_goes_on_whatever_one_part_says(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(settings.load({"HYPERAGENT_HOME": str(tmp_path), "HYPERAGENT_DATABASE_URL": url}))
    parts.__dict__.update(chosen=Chosen("process", "mock", "stand-in"), gateway=Mock(grants=Mock(side_effect=KeyError("odd"))))
    for name in ("other-stores-it", "dead"):
        (tmp_path / "work" / name).mkdir(parents=True)
    twice = IntegrityError("INSERT INTO artifact", {}, Exception("there already"))

    def keep(_: Parts, work: Workdir) -> None:
        if work.root.name != "dead":
            raise twice

    monkeypatch.setattr(recording, "keep_left", keep)
    assert reaper.reap(parts)["workspaces"] == 1
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["other-stores-it"]
    monkeypatch.setattr(recording, "keep_left", Mock())
    assert reaper.reap(parts)["workspaces"] == 1


def test_a_worker_starts_its_killed_heartbeat_again(redis_url: str, url: str, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "celery", "-A", "hyperagent_tasks.worker", "worker", "-Q", "steps", "-c", "1", "-n", "steps@t"]
    env = {"HYPERAGENT_HOME": str(tmp_path), "HYPERAGENT_DATABASE_URL": url, "HYPERAGENT_BROKER_URL": redis_url}
    env |= {"HYPERAGENT_SANDBOX": "process", "HYPERAGENT_FORGE": "stand-in", "WORKFLOW_AGENT_PROVIDER": "null"}
    log = (tmp_path / "log").open("wb")
    with log, subprocess.Popen(argv, env={**env, "PATH": os.environ["PATH"]}, cwd=ROOT, stdout=log, stderr=log) as worker:
        try:
            first = beat_of(worker.pid, {0})
            os.kill(first, signal.SIGKILL)
            assert beat_of(worker.pid, {first}) != first
        finally:
            worker.terminate()


def beat_of(worker: int, known: set[int]) -> int:
    """The process that beats for a worker, other than those `known`."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for child in psutil.Process(worker).children():
            with contextlib.suppress(psutil.Error):
                if child.pid not in known and "hyperagent_tasks.heartbeat" in child.cmdline():
                    return child.pid
        time.sleep(0.1)
    raise AssertionError("nothing beats")
