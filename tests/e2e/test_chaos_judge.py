"""The judge of chaos counts damage done on purpose: what it cannot see, a green run does not say."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from celery import Celery
from sqlalchemy import select, update

from hyperagent_common import db, events
from hyperagent_common.events import EventKind
from hyperagent_common.ids import new_id
from hyperagent_common.models import AgentRun, Artifact, StepAttempt, Workflow, WorkflowStep
from hyperagent_common.states import AttemptState, WorkflowState
from hyperagent_tasks.gateway.client import GatewayClient, Grant
from hyperagent_tasks.runners.base import Owner, RunSpec
from hyperagent_tasks.runners.process import Place
from tests.chaos.__main__ import Drive
from tests.chaos.engine import Engine
from tests.chaos.faults import Faults
from tests.chaos.judge import Judge
from tests.chaos.rig import Rig


@pytest.fixture(scope="module")
def drive() -> Iterator[Drive]:
    """A few workflows that ended without any fault; the processes still run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CI", "true")
        made = Rig(seed=1, kill=0, stop=0)
        try:
            drive = Drive(made, steps=8, seed=1, every=1e6, stall=240)
            drive.prepare()
            drive.run()
            yield drive
        finally:
            made.end()
            shutil.rmtree(made.root, ignore_errors=True)


@pytest.fixture(scope="module")
def rig(drive: Drive) -> Rig:
    """What they ended on."""
    return drive.rig


def test_a_restart_ends_the_server_that_answers(rig: Rig) -> None:
    def answering() -> tuple[str, Any]:
        with rig.client() as client, psycopg.connect(rig.url) as connection:
            return client.info("server")["run_id"], connection.execute("SELECT pg_postmaster_start_time()").fetchone()

    first, faults = answering(), Faults(rig, Celery(broker=rig.broker, set_as_current=False), random.Random(1))
    assert faults.restart_redis()
    assert faults.restart_database()
    second = answering()
    assert first[0] != second[0]
    assert first[1] != second[1]


def judged(rig: Rig) -> dict[str, list[str]]:
    """What the judge finds, by kind."""
    return {kind: told for kind, told in Judge(rig, skewed=set(), cancelled=set()).judge().found.items() if told}


def whole(rig: Rig) -> Workflow:
    """A workflow with a commit."""
    with db.transaction(rig.url, reading=True) as session:
        return session.scalars(select(Workflow).where(Workflow.head.is_not(None)).order_by(Workflow.id)).first()  # type: ignore[return-value]


def repository(rig: Rig, workflow: Workflow) -> Path:
    """The trusted repository of its project."""
    with db.transaction(rig.url, reading=True) as session:
        return rig.home / "repos" / f"{session.get_one(Workflow, workflow.id).project.name}.git"


def git(repo: Path, *args: str, said: str = "") -> str:
    """Git in a repository of the rig, as somebody else."""
    who = {f"GIT_{role}_{what}": "x@y" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["git", f"--git-dir={repo}", *args], input=said, capture_output=True, text=True, check=True, env={**os.environ, **who}
    )
    return done.stdout.strip()


@contextlib.contextmanager
def changed(rig: Rig, row: type[Any], key: str, **values: Any) -> Iterator[None]:
    """A row with other values, put back afterwards."""
    with db.transaction(rig.url) as session:
        found = session.get_one(row, key)
        before = {name: getattr(found, name) for name in values}
        session.execute(update(row).where(row.id == key).values(**values))
    try:
        yield
    finally:
        with db.transaction(rig.url) as session:
            session.execute(update(row).where(row.id == key).values(**before))


@contextlib.contextmanager
def written(path: Path, data: bytes | None) -> Iterator[None]:
    """A file with other bytes, or without the file."""
    before = path.read_bytes()
    path.chmod(0o600)
    path.unlink() if data is None else path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


@contextlib.contextmanager
def lost_commit(rig: Rig) -> Iterator[None]:
    """The branch's last commit is not in the repository any more."""
    workflow = whole(rig)
    head = str(workflow.head)
    with written(repository(rig, workflow) / "objects" / head[:2] / head[2:], None):
        yield


@contextlib.contextmanager
def lost_trees(rig: Rig) -> Iterator[None]:
    """The branch's commits, which this host made, are there; what the sealed bundles brought is not."""
    objects = repository(rig, whole(rig)) / "objects"
    (objects / "pack").rename(objects / "away")
    try:
        yield
    finally:
        (objects / "away").rename(objects / "pack")


@contextlib.contextmanager
def another_head(rig: Rig, parent: str, tree: str, step: str = "") -> Iterator[None]:
    """The branch ends with another commit, of its last step or of another."""
    workflow = whole(rig)
    repo = repository(rig, workflow)
    said = f"x\n\nHyperagent-Step: {step}" if step else git(repo, "log", "-1", "--format=%B", str(workflow.head))
    made = git(repo, "commit-tree", "-p", git(repo, "rev-parse", f"{workflow.head}{parent}"), f"{tree}^{{tree}}", said=said)
    with changed(rig, Workflow, workflow.id, head=made):
        yield


def step_twice(rig: Rig) -> AbstractContextManager[None]:
    """A second commit of a step on the branch."""
    return another_head(rig, "", str(whole(rig).head))


def foreign_commit(rig: Rig) -> AbstractContextManager[None]:
    """A commit on the branch that none of its steps made."""
    return another_head(rig, "", str(whole(rig).head), new_id())


def lost_content(rig: Rig) -> AbstractContextManager[None]:
    """The last commit holds nothing of what its step and those before it made."""
    return another_head(rig, "~1", str(whole(rig).base_commit))


def patch_twice(rig: Rig) -> AbstractContextManager[None]:
    """A second patch of the same workflow on the forge."""
    path = rig.home / "stand-in" / "stand-in.json"
    state = json.loads(path.read_text())
    patches = next(repo["patches"] for repo in state["repositories"].values() if repo["patches"])
    patches["f" * 40] = next(iter(patches.values()))
    return written(path, json.dumps(state).encode())


def old_patch(rig: Rig) -> AbstractContextManager[None]:
    """An older commit is the newest revision of a patch."""
    path = rig.home / "stand-in" / "stand-in.json"
    state = json.loads(path.read_text())
    patches = [patch for repo in state["repositories"].values() for patch in repo["patches"].values()]
    next(patch for patch in patches if len(patch["revisions"]) > 1)["revisions"].reverse()
    return written(path, json.dumps(state).encode())


def lost_patch(rig: Rig) -> AbstractContextManager[None]:
    """No patch at all."""
    path = rig.home / "stand-in" / "stand-in.json"
    state = json.loads(path.read_text())
    for repo in state["repositories"].values():
        repo["patches"] = {}
    return written(path, json.dumps(state).encode())


def artifact(rig: Rig, data: bytes | None) -> AbstractContextManager[None]:
    """A stored file that changed, or went."""
    with db.transaction(rig.url, reading=True) as session:
        key = session.scalars(select(Artifact.key).order_by(Artifact.id)).first()
    return written(rig.home / "storage" / str(key), data)


@contextlib.contextmanager
def other_statement(rig: Rig) -> Iterator[None]:
    """A step's provenance is of another commit."""
    with db.transaction(rig.url, reading=True) as session:
        row = session.scalars(select(Artifact).where(Artifact.name == "provenance.json").order_by(Artifact.id)).first()
    assert row is not None
    path = rig.home / "storage" / row.key
    statement = json.loads(path.read_bytes())
    statement["subject"][0]["digest"]["gitCommit"] = "f" * 40
    data = json.dumps(statement).encode()
    with written(path, data), changed(rig, Artifact, row.id, sha256=hashlib.sha256(data).hexdigest()):
        yield


def open_run(rig: Rig) -> AbstractContextManager[None]:
    """An agent run whose end nobody wrote; of an attempt under way, so that the reaper leaves it."""
    with db.transaction(rig.url, reading=True) as session:
        run = session.scalars(select(AgentRun)).first()
    assert run is not None
    stack = contextlib.ExitStack()
    stack.enter_context(changed(rig, StepAttempt, str(run.attempt_id), state=AttemptState.RUNNING))
    stack.enter_context(changed(rig, AgentRun, run.id, finished_at=None))
    return stack


@contextlib.contextmanager
def told(rig: Rig, *kinds: EventKind) -> Iterator[None]:
    """Events of a step besides those it had."""
    made = []
    with db.transaction(rig.url) as session:
        step = session.scalars(select(WorkflowStep)).first()
        for kind in kinds:
            made.append(events.record(session, kind, step=step))
            session.flush()
    try:
        yield
    finally:
        with db.transaction(rig.url) as session:
            for entry in made:
                session.delete(session.merge(entry))


def fenced_off(rig: Rig) -> AbstractContextManager[None]:
    """A step that was ended by an attempt of which its fence says that it was overtaken."""
    with db.transaction(rig.url, reading=True) as session:
        key = session.scalars(select(StepAttempt.id).where(StepAttempt.state == AttemptState.SUCCEEDED)).first()
    return changed(rig, StepAttempt, str(key), fence=0)


def open_attempt(rig: Rig) -> AbstractContextManager[None]:
    """An attempt that never ended."""
    with db.transaction(rig.url, reading=True) as session:
        key = session.scalars(select(StepAttempt.id)).first()
    return changed(rig, StepAttempt, str(key), state=AttemptState.RUNNING)


def open_lease(rig: Rig) -> AbstractContextManager[None]:
    """A lease that nobody gave back."""
    with db.transaction(rig.url, reading=True) as session:
        key = session.scalars(select(WorkflowStep.id)).first()
    return changed(rig, WorkflowStep, str(key), lease_until=datetime.now(UTC) + timedelta(days=1))


@contextlib.contextmanager
def left_process(rig: Rig) -> Iterator[None]:
    """A process of an agent still runs."""
    owner = Owner("another", "wf", "st", "at", 1, datetime.now(UTC) + timedelta(minutes=5))
    place = Place(RunSpec("agent", ["true"], owner), rig.home / "run" / "processes" / new_id())
    marked = place.environment({}, place.root.name)  # as the runner gives it
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=marked) as process:
        try:
            yield
        finally:
            process.kill()


@contextlib.contextmanager
def left_directory(rig: Rig) -> Iterator[None]:
    """A workspace nobody owns; under another name, so that the reaper of the rig leaves it."""
    path = rig.home / "work" / ".left"
    path.mkdir()
    try:
        yield
    finally:
        path.rmdir()


@contextlib.contextmanager
def left_ref(rig: Rig) -> Iterator[None]:
    """A quarantine ref; the reaper takes it within a heartbeat, so the rig's workers must be stopped for it."""
    workflow = whole(rig)
    repo = repository(rig, workflow)
    for worker in rig.workers:
        worker.end()
    git(repo, "update-ref", f"refs/quarantine/{new_id()}", str(workflow.base_commit))
    try:
        yield
    finally:
        rig.revive()


@contextlib.contextmanager
def left_grant(rig: Rig) -> Iterator[None]:
    """A phantom token that still opens the gateway."""
    for worker in rig.workers:
        worker.end()
    gateway, run, until = GatewayClient(rig.home / "run"), new_id(), datetime.now(UTC) + timedelta(hours=1)
    gateway.open(Grant(run, new_id(), "0" * 64, "s", "coder", "replay", "demo", 1, until, str(rig.root / "calls.jsonl")))
    try:
        yield
    finally:
        gateway.close(run)
        rig.revive()


@contextlib.contextmanager
def left_container(rig: Rig) -> Iterator[None]:
    """A container on the engine of the rig; here an engine of its own that holds nothing else."""
    Engine.require()
    engine = Engine(rig.root)
    engine.start()
    try:
        empty = rig.root / "empty.tar"
        tarfile.open(empty, "w").close()
        docker = ["docker", "--host", engine.url]
        image = subprocess.run([*docker, "import", str(empty)], capture_output=True, text=True, check=True).stdout.strip()
        subprocess.run([*docker, "create", image, "/none"], check=True, capture_output=True)
        rig.engine = engine
        yield
    finally:
        rig.engine = None
        engine.end()


def stuck(rig: Rig) -> AbstractContextManager[None]:
    """A workflow that never ended; paused, so that nothing of the rig ends it."""
    return changed(rig, Workflow, whole(rig).id, state=WorkflowState.PAUSED)


DAMAGE: list[tuple[str, Callable[[Rig], AbstractContextManager[None]], str]] = [
    ("lost", lost_commit, "cannot be read"),
    ("lost", lost_trees, "what its commits hold cannot be read"),
    ("duplicated", step_twice, "2 commits of step"),
    ("duplicated", foreign_commit, "is no step of it"),
    ("lost", lost_content, "files of their own"),
    ("duplicated", patch_twice, "2 patches"),
    ("lost", lost_patch, "no patch"),
    ("lost", old_patch, "the newest revision"),
    ("lost", other_statement, "no provenance of its commit"),
    ("lost", lambda rig: artifact(rig, b"other"), "other bytes"),
    ("lost", lambda rig: artifact(rig, None), "holds nothing"),
    ("duplicated", lambda rig: told(rig, EventKind.STEP_DONE), "finished 2 times"),
    ("duplicated", lambda rig: told(rig, EventKind.WORKFLOW_CANCELLED, EventKind.STEP_DONE), "done after it was cancelled"),
    ("duplicated", fenced_off, "after it was fenced off"),
    ("leaked", open_attempt, "still open"),
    ("leaked", open_lease, "still open"),
    ("leaked", open_run, "agent run"),
    ("leaked", left_process, "still runs"),
    ("leaked", left_directory, "is left"),
    ("leaked", left_ref, "quarantine ref"),
    ("leaked", left_grant, "still in force"),
    ("leaked", left_container, "container"),
    ("stuck", stuck, "is paused"),
]


def test_a_run_without_faults_has_no_damage(drive: Drive) -> None:
    assert judged(drive.rig) == {}
    assert not any(drive.judge().judge().counts().values())


def test_a_workflow_that_is_gone_is_lost(drive: Drive) -> None:
    drive.plans += 1
    try:
        found = drive.judge().judge().found
    finally:
        drive.plans -= 1
    assert any("were submitted" in sentence for sentence in found["lost"])


@pytest.mark.parametrize(("kind", "damage", "named"), DAMAGE, ids=[f"{n}-{kind}" for n, (kind, _, _) in enumerate(DAMAGE)])
def test_damage_done_on_purpose_is_counted(
    rig: Rig, kind: str, damage: Callable[[Rig], AbstractContextManager[None]], named: str
) -> None:
    with damage(rig):
        found = judged(rig)
    assert any(named in sentence for sentence in found.get(kind, [])), found
