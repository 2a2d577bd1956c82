"""What the reconciler does for drafts, registrations and changes, backlogs and its own standing; what killed processes leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.canvas import Signature
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from hyperagent_common import db, events, queue, settings
from hyperagent_common.errors import OtherVersion, ProviderDown
from hyperagent_common.events import EventKind
from hyperagent_common.forge_models import ProjectChange
from hyperagent_common.ids import new_id
from hyperagent_common.models import PlanDraft, Project, WorkflowStep
from hyperagent_common.states import ProjectState, StepState
from hyperagent_common.upkeep_models import Reconciler
from hyperagent_tasks import claims, planning, resending, scratch, upkeep
from hyperagent_tasks.upkeep import Limits, Stuck
from tests.unit.test_claims import LINE, Sent, _Parts, app, steps, submitted, take, url

__all__ = ["app", "url"]
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Named(Sent):
    """Also keeps which tasks were sent by name, and to which queue."""

    def __init__(self) -> None:
        super().__init__()
        self.named: list[tuple[str, str]] = []
        self.queues: list[str] = []
        self.conf.task_routes = queue.make(settings.load({})).conf.task_routes


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Named:
    """Sends are noted, not made."""
    made = Named()

    def noted(message: Signature) -> None:
        made.named.append((message.task, *message.args))
        made.queues.append(message.options["queue"])

    monkeypatch.setattr(Signature, "apply_async", noted)
    monkeypatch.setattr(queue, "send_segment", lambda _app, workflow, links: made.segments.append((workflow, list(links))))
    return made


def drafted(url: str, **values: Any) -> str:
    """A draft of a project made for it."""
    with db.transaction(url) as session:
        moment = db.now(session)
        project = Project(
            id=new_id(), name=f"p{new_id()[-12:]}", source="/x", default_branch="m", state=ProjectState.READY, created_at=moment
        )
        session.add(project)
        session.flush()
        made = PlanDraft(**{"id": new_id(), "project_id": project.id, "goal": "g", "created_at": moment, **values})
        session.add(made)
        return made.id


def read(url: str, draft_id: str) -> PlanDraft:
    """A draft."""
    with db.transaction(url, reading=True) as session:
        return session.get_one(PlanDraft, draft_id)


def reconcile(url: str, app: Celery) -> dict[str, int]:
    """One look."""
    return resending.reconcile(_Parts(url, app))  # type: ignore[arg-type]


def test_a_draft_whose_worker_fell_silent_is_begun_anew_and_given_up_after_three(url: str, named: Named) -> None:
    draft_id = drafted(url)
    for claim in (1, 2, 3):
        held, goal, project = planning._take(url, draft_id, -1)
        assert held is not None
        assert (held.fence, goal, project is None) == (claim, "g", False)
        assert planning._take(url, draft_id, 60)[0] is None
        told = reconcile(url, named)
        assert told == (
            {"draft_given_up": 0, "draft": 1, "register": 0, "change": 0} if claim < 3 else {**told, "draft_given_up": 1}
        )
        assert not planning._holds(url, held)
        assert not planning._write(url, held, state="done", document={})
    row = read(url, draft_id)
    assert (row.state, row.document, row.lease_until) == ("failed", None, None)
    assert "stopped answering" in str(row.reason)
    assert named.named == [(queue.DRAFT, draft_id)] * 2


def test_a_draft_that_is_renewed_is_left_alone_and_ends_once(url: str, named: Named) -> None:
    draft_id = drafted(url)
    held, _, _ = planning._take(url, draft_id, -1)
    assert held is not None
    assert planning._write(url, held, lease=60)
    assert reconcile(url, named)["draft"] == 0
    assert planning._write(url, held, state="done", document={"kind": "k"})
    assert not planning._write(url, held, lease=60)
    assert read(url, draft_id).state == "done"


def test_a_lost_message_of_a_draft_or_a_registration_is_sent_again(url: str, named: Named) -> None:
    draft_id = drafted(url, created_at=datetime.now(UTC) - timedelta(seconds=121))
    with db.transaction(url) as session:
        project = session.get_one(Project, read(url, draft_id).project_id)
        project.state, project.created_at = ProjectState.REGISTERING, db.now(session) - timedelta(seconds=62)
    reconcile(url, named)
    assert sorted(named.named) == sorted([(queue.DRAFT, draft_id), (queue.REGISTER, project.id)])


def test_what_only_one_host_can_do_is_sent_to_that_host(url: str, named: Named) -> None:
    draft_id, change_id = drafted(url, created_at=datetime.now(UTC) - timedelta(seconds=121)), new_id()
    with db.transaction(url) as session:
        project = session.get_one(Project, session.get_one(PlanDraft, draft_id).project_id)
        project.publisher, ago = "h1", db.now(session) - timedelta(seconds=61)
        session.add(ProjectChange(id=change_id, project_id=project.id, version=1, values={}, created_at=ago))
    assert reconcile(url, named) == {"draft_given_up": 0, "draft": 1, "register": 0, "change": 1}
    assert sorted(zip(named.named, named.queues, strict=True)) == [
        ((queue.CHANGE, change_id), "control.h1"),
        ((queue.DRAFT, draft_id), "steps.h1"),
    ]


def test_a_change_that_was_answered_is_not_sent_again(url: str, named: Named) -> None:
    project_id = read(url, drafted(url)).project_id
    with db.transaction(url) as session:
        ago = db.now(session) - timedelta(seconds=61)
        for state in ("done", "failed"):
            made = ProjectChange(id=new_id(), project_id=project_id, version=1, values={}, state=state, created_at=ago)
            session.add(made)
    assert reconcile(url, named)["change"] == 0


@given(st.floats(0, 1e6), st.floats(1, 600), st.floats(0.5, 60))
def test_what_waits_is_sent_again_once_in_each_period(age: float, after: float, every: float) -> None:
    assert not resending.due(age, after, every) or age >= after
    looks = [age + after + n * every for n in range(int(max(after, every) / every) + 2)]
    assert any(resending.due(look, after, every) for look in looks)


@given(st.integers(60, 100_000), st.integers(0, 100_000))
def test_a_backlog_is_sent_again_ever_more_rarely_and_a_lost_message_at_once(waited: int, since: int) -> None:
    queued = NOW - timedelta(seconds=waited + since)
    step = Stuck("s", "w", StepState.QUEUED, 1, 0, queued, queued + timedelta(seconds=waited), None, None, 0, 5)
    resent = {drained: upkeep.decide([step], NOW, Limits(60, 0, drained)).get("s") for drained in (True, False)}
    assert (resent[True] is not None) == (since > 60)
    assert (resent[False] is not None) == (since > min(waited, upkeep.LONGEST_SILENCE))
    of_one_host = upkeep.decide([replace(step, committed=True)], NOW, Limits(60, 0, drained=True)).get("s")
    assert of_one_host == resent[False]  # the depth of its queue is not known


def test_two_reconcilers_at_once_do_everything_once(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, LINE)
    take(url, app, steps(url, workflow_id)["a"], lease=-1)
    app.segments.clear()
    done: list[dict[str, int]] = []
    threads = [threading.Thread(target=lambda: done.append(upkeep.reconcile(_Parts(url, app)))) for _ in range(4)]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(told["expire"] for told in done) == 1
    assert len(app.segments) == 1
    assert steps(url, workflow_id)["a"].generation == 2
    with db.transaction(url, reading=True) as session:
        assert len(session.scalars(select(Reconciler)).all()) == 1


def test_a_provider_that_is_down_does_not_burn_the_budget_in_seconds(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, LINE, max_attempts=2)
    for number in range(1, 6):
        claim = take(url, app, steps(url, workflow_id)["a"])
        assert isinstance(claims.fail(url, app, claim, ProviderDown("429"), outage=900), ProviderDown)
        row = steps(url, workflow_id)["a"]
        assert (row.state, row.attempt_count, row.free_attempts) == (StepState.QUEUED, number, max(0, number - 1))
        assert row.blocked_since is not None
    with db.transaction(url) as session:
        session.get_one(WorkflowStep, row.id).blocked_since = db.now(session) - timedelta(seconds=901)
    claims.fail(url, app, take(url, app, row), ProviderDown("429"), outage=900)
    assert steps(url, workflow_id)["a"].state == StepState.FAILED
    assert steps(url, workflow_id)["a"].blocked_since is None


def test_a_worker_of_another_schema_claims_nothing(url: str, app: Sent) -> None:
    step = steps(url, submitted(url, app, LINE))["a"]
    with db.transaction(url) as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(OtherVersion, match="9999"):
        take(url, app, step)
    with db.transaction(url, reading=True) as session:
        assert session.get_one(WorkflowStep, step.id).state == StepState.QUEUED


def read_on(url: str, after: int) -> tuple[list[int], bool]:
    """The ids of what a stream tells, and whether more waits."""
    with db.transaction(url, reading=True) as session:
        found, waiting = events.read_on(session, after, 10)
        assert events.last_id(session) == max([after, *(entry.id for entry in found)])
        return [entry.id for entry in found], waiting


def test_a_stream_waits_for_an_event_with_a_smaller_id_that_is_committed_later(postgres_url: str) -> None:
    db.upgrade(postgres_url)
    with db.transaction(postgres_url) as session:
        last = events.record(session, EventKind.WORKFLOW_SUBMITTED, workflow_id=new_id())
    seen = last.id
    for elder, kept in ((0, True), (1, True), (0, False), (1, False)):
        pair = [Session(db.engine(postgres_url)), Session(db.engine(postgres_url))]
        with pair[0] as late, pair[1] as early:
            pair[elder].execute(text("SELECT pg_current_xact_id()"))
            small = events.record(late, EventKind.STEP_DONE, workflow_id=new_id())
            late.flush()
            great = events.record(early, EventKind.WORKFLOW_ENDED, workflow_id=new_id())
            early.flush()
            numbers = [small.id, great.id]
            assert numbers[0] < numbers[1]
            assert read_on(postgres_url, seen) == ([], False)
            early.commit()
            assert read_on(postgres_url, seen) == ([], True)
            late.commit() if kept else late.rollback()
        assert read_on(postgres_url, seen) == (numbers[0 if kept else 1 :], False)
        seen = numbers[1]


def test_a_transaction_that_will_write_events_is_waited_for_also_where_the_session_had_one_before(postgres_url: str) -> None:
    db.upgrade(postgres_url)
    with Session(db.engine(postgres_url)) as late:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError), late.begin_nested():
                events.record(late, EventKind.STEP_DONE)
                1 / 0  # noqa: B018
            small = events.record(late, EventKind.STEP_DONE)
            late.flush()
            with db.transaction(postgres_url) as session:
                great = events.record(session, EventKind.STEP_DONE)
            before = small.id - 1
            assert read_on(postgres_url, before) == ([], True)
            numbers = [small.id, great.id]
            late.commit()
            assert read_on(postgres_url, before) == (numbers, False)


def test_scratch_of_a_killed_process_is_reaped_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    code = f"""
import pathlib, time
from hyperagent_tasks import scratch
with scratch.directory(pathlib.Path({str(tmp_path)!r})) as place:
    (place / 'file').write_text('x')
    print('made', flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"made\n"
        assert scratch.reap(tmp_path) == 0
        os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
        assert scratch.reap(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []
    with scratch.directory(tmp_path) as place:
        assert place.is_dir()
    assert list(tmp_path.iterdir()) == []
