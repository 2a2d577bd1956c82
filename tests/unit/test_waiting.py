"""What waits, waits for what it waits for: not for its own work, not for a pause, not for a process that stands still."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from unittest.mock import Mock

import psycopg
import pytest
from sqlalchemy import func, select, text, update

from hyperagent_common import db, workflows
from hyperagent_common.errors import DependencyDown, DiskFull, Permanent, PushFailed
from hyperagent_common.models import Workflow, WorkflowStep
from hyperagent_common.states import Action, StepState, WorkflowState
from hyperagent_tasks import claims, leases, upkeep
from hyperagent_tasks.claims import Claim, Lease, StepTaken
from hyperagent_tasks.runners.fake import Play
from hyperagent_tasks.steps import run_step
from tests import desk
from tests.unit.test_actions import act, failed
from tests.unit.test_claims import LINE, Sent, app, state, steps, submitted, take, url

__all__ = ["app", "url"]
HOUR = 3600.0


def began(claim: Claim, seconds: float) -> Claim:
    """The claim as if its attempt had begun so long ago."""
    ago = timedelta(seconds=seconds)
    since = claim.blocked_since and claim.blocked_since - ago
    return replace(claim, claimed_at=claim.claimed_at - ago, blocked_since=since)


@pytest.mark.parametrize("error", [DependencyDown("away"), PushFailed("no peer")])
def test_what_an_attempt_worked_is_no_waiting(url: str, app: Sent, error: Exception) -> None:
    workflow_id = submitted(url, app, LINE, max_attempts=2)
    for _ in range(4):
        claim = began(take(url, app, steps(url, workflow_id)["a"]), 2 * HOUR)
        assert claims.fail(url, app, claim, error, patience=HOUR, outage=HOUR) is error
    assert steps(url, workflow_id)["a"].state == StepState.QUEUED
    with db.transaction(url) as session:
        waiting = update(WorkflowStep).where(WorkflowStep.key == "a")
        session.execute(waiting.values(blocked_since=db.now(session) - timedelta(seconds=HOUR + 1)))
    last = claims.fail(url, app, take(url, app, steps(url, workflow_id)["a"]), error, patience=HOUR, outage=HOUR)
    assert isinstance(last, Permanent)


def test_a_pause_is_no_waiting(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, LINE)
    claims.fail(url, app, take(url, app, steps(url, workflow_id)["a"]), DependencyDown("away"))
    act(url, app, workflow_id, Action.PAUSE)
    assert steps(url, workflow_id)["a"].blocked_since is not None
    act(url, app, workflow_id, Action.RESUME)
    assert take(url, app, steps(url, workflow_id)["a"]).waited == 0


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOSPC, DiskFull), (errno.EIO, DependencyDown), (errno.EMFILE, DependencyDown)]
)
def test_a_host_in_trouble_is_waited_for_and_is_no_fault_of_the_step(
    url: str, app: Sent, number: int, expected: type[Exception]
) -> None:
    workflow_id = submitted(url, app, LINE)
    told = claims.fail(url, app, take(url, app, steps(url, workflow_id)["a"]), OSError(number, "trouble", "/x"))
    assert type(told) is expected
    row = steps(url, workflow_id)["a"]
    assert (row.state, row.free_attempts) == (StepState.QUEUED, 1)
    assert "trouble: /x" in str(row.reason)


@pytest.mark.parametrize(
    "error",
    [BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), RuntimeError("can't start new thread"), MemoryError()],
)
def test_a_host_without_room_for_another_process_or_thread_is_no_fault_of_the_step(url: str, app: Sent, error: Exception) -> None:
    workflow_id = submitted(url, app, LINE)
    told = claims.fail(url, app, take(url, app, steps(url, workflow_id)["a"]), error)
    assert type(told) is DependencyDown
    row = steps(url, workflow_id)["a"]
    assert (row.state, row.free_attempts) == (StepState.QUEUED, 1)


def test_a_lease_that_finds_no_thread_costs_its_step_nothing(
    url: str, app: Sent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow_id = submitted(url, app, LINE)
    step = steps(url, workflow_id)["a"]
    parts = desk.host(url, app, lambda _spec: Play(), home=tmp_path)
    monkeypatch.setattr(Lease, "start", Mock(side_effect=RuntimeError("can't start new thread")))
    with pytest.raises(DependencyDown, match="can't start new thread"):
        run_step(parts, step.id, step.generation)
    row = steps(url, workflow_id)["a"]
    assert (row.state, row.free_attempts) == (StepState.QUEUED, 1)


def test_a_file_that_is_not_there_is_still_a_fault_of_ours(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, LINE)
    told = claims.fail(url, app, take(url, app, steps(url, workflow_id)["a"]), FileNotFoundError(errno.ENOENT, "no", "/x"))
    assert isinstance(told, Permanent)


def test_a_paused_workflow_whose_steps_are_done_ends_without_its_message(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, {**LINE, "tasks": LINE["tasks"][:1]})  # type: ignore[index]
    claim = take(url, app, steps(url, workflow_id)["a"])
    act(url, app, workflow_id, Action.PAUSE)
    claims.finish(url, app, claim, "a" * 40)  # and the chain's last link is lost
    with db.transaction(url) as session:
        assert upkeep.idle_workflows(session) == [workflow_id]
        workflows.advance(session, app, workflow_id)
    assert state(url, workflow_id) == WorkflowState.DONE


def test_a_workflow_paused_before_its_end_is_left_alone(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, LINE)
    act(url, app, workflow_id, Action.PAUSE)
    with db.transaction(url, reading=True) as session:
        assert upkeep.idle_workflows(session) == []


def test_a_dead_letter_is_a_new_version_of_the_workflow(url: str, app: Sent) -> None:
    two = {**LINE, "tasks": [LINE["tasks"][0], {"id": "b", "title": "b", "instructions": "b"}]}  # type: ignore[index]
    workflow_id = submitted(url, app, two)
    failed(url, app, workflow_id)
    with db.transaction(url, reading=True) as session:
        assert session.get_one(Workflow, workflow_id).version == 2


def test_a_claim_that_waited_for_a_pause_sees_it(postgres_url: str, app: Sent) -> None:
    db.upgrade(postgres_url)
    workflow_id = submitted(postgres_url, app, LINE)
    step, found = steps(postgres_url, workflow_id)["a"], list[object]()

    def claim() -> None:
        try:
            found.append(take(postgres_url, app, step))
        except StepTaken as taken:
            found.append(taken)

    thread = threading.Thread(target=claim)
    with db.transaction(postgres_url) as session:
        workflow = workflows.locked(session, workflow_id)
        thread.start()
        time.sleep(1)  # it waits for the lock now
        assert not found
        workflows.pause(session, workflow)
    thread.join(30)
    assert isinstance(found[0], StepTaken)


def test_a_transaction_that_stands_still_lets_go_of_its_locks(
    postgres_url: str, app: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {**db.POSTGRES, "options": "-c idle_in_transaction_session_timeout=500ms -c lock_timeout=20s"}
    assert "idle_in_transaction_session_timeout=30s" in str(db.POSTGRES["options"])
    monkeypatch.setattr(db, "POSTGRES", short)
    db.upgrade(postgres_url)
    workflow_id = submitted(postgres_url, app, LINE)
    with pytest.raises(DependencyDown), db.transaction(postgres_url) as frozen:
        workflows.locked(frozen, workflow_id)
        with db.transaction(postgres_url) as other:
            workflows.locked(other, workflow_id)  # waits until the frozen one is ended
        frozen.scalar(select(Workflow.id))
    claims.finish(postgres_url, app, take(postgres_url, app, steps(postgres_url, workflow_id)["a"]), "a" * 40)


def test_a_standby_is_a_database_that_does_not_answer_and_its_connections_are_made_anew(postgres_url: str, app: Sent) -> None:
    db.upgrade(postgres_url)
    workflow_id = submitted(postgres_url, app, LINE)
    with db.transaction(postgres_url, reading=True) as session:
        first = session.scalar(select(func.pg_backend_pid()))
    with pytest.raises(DependencyDown), db.transaction(postgres_url) as session:
        session.execute(text("SET TRANSACTION READ ONLY"))  # as after a failover
        workflows.locked(session, workflow_id)
    with db.transaction(postgres_url, reading=True) as session:
        assert session.scalar(select(func.pg_backend_pid())) != first


def test_each_statement_sees_what_was_committed_before_it_whatever_the_servers_default_is(postgres_url: str) -> None:
    with db.transaction(postgres_url) as session:
        name = session.scalar(text("SELECT current_database()"))
        session.execute(text(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'"))
    db.engine(postgres_url).dispose()
    with db.transaction(postgres_url) as session:
        assert session.scalar(text("SHOW transaction_isolation")) == "read committed"


def test_a_database_whose_connections_are_used_up_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    pool = db.engine(url).pool
    monkeypatch.setattr(pool, "_timeout", 0.01)
    with contextlib.ExitStack() as held:
        for _ in range(pool.size() + pool._max_overflow):  # type: ignore[attr-defined]
            held.enter_context(db.engine(url).connect())
        with pytest.raises(DependencyDown, match="in use"), db.transaction(url) as session:
            session.scalar(text("SELECT 1"))


def test_a_lease_that_was_lost_once_stays_lost() -> None:
    renewed = threading.Event()
    asked: list[float] = []

    def renew() -> bool:
        asked.append(time.monotonic())
        renewed.wait(60)
        return True

    with leases.Keeper("x", renew, lambda: True, 0.2, 0.01) as lease:
        while not lease.lost():
            time.sleep(0.01)
        renewed.set()  # now it can be renewed: what was stopped because it was lost is stopped all the same
        lease.join(60)
        assert (lease.lost(), len(asked)) == (True, 1)


def test_a_lease_outlives_an_error_that_nobody_foresaw() -> None:
    said: list[bool | Exception] = [ValueError("odd"), *[True] * 9999]
    renewed = threading.Event()

    def renew() -> bool:
        answer = said.pop(0)
        if isinstance(answer, Exception):
            raise answer
        renewed.set()
        return answer

    with leases.Keeper("x", renew, lambda: True, 60, 0.01) as lease:
        assert renewed.wait(20)
        assert not lease.lost()


def test_a_connection_whose_ping_fails_is_made_anew_whatever_the_driver_says(postgres_url: str) -> None:
    with db.transaction(postgres_url, reading=True) as session:
        first = session.scalar(select(func.pg_backend_pid()))
    dialect = db.engine(postgres_url).dialect
    said = psycopg.ProgrammingError("can't change 'autocommit' now: connection in transaction status ACTIVE")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialect, "do_ping", Mock(side_effect=said))
        with db.transaction(postgres_url, reading=True) as session:
            assert session.scalar(select(func.pg_backend_pid())) != first
