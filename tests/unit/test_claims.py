"""Claims, leases, fences and the reconciler, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from celery import Celery
from sqlalchemy import select

from hyperagent_common import actions, db, plan, settings, workflows
from hyperagent_common.errors import AgentFailed, LeaseLost, ProviderDown
from hyperagent_common.ids import new_id
from hyperagent_common.models import DeadLetter, Project, RunnerEvent, StepAttempt, Workflow, WorkflowStep
from hyperagent_common.states import AttemptState, ProjectState, StepState, WorkflowState
from hyperagent_tasks import claims, resending, upkeep
from hyperagent_tasks.claims import Claim, StepTaken

DIAMOND = {
    "kind": plan.KIND,
    "title": "A diamond",
    "tasks": [
        {"id": "a", "title": "a", "instructions": "a"},
        {"id": "b", "title": "b", "instructions": "b", "depends_on": ["a"]},
        {"id": "c", "title": "c", "instructions": "c", "depends_on": ["a"]},
        {"id": "d", "title": "d", "instructions": "d", "depends_on": ["b", "c"]},
    ],
}
LINE = {**DIAMOND, "tasks": [DIAMOND["tasks"][0], DIAMOND["tasks"][1]]}  # type: ignore[index]


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A migrated database of each kind."""
    made = f"sqlite:///{tmp_path / 'h.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    db.upgrade(made)
    yield made
    db.engine(made).dispose()


class Sent(Celery):
    """A Celery application that keeps what it was asked to send."""

    def __init__(self) -> None:
        super().__init__("test", broker="memory://", set_as_current=False)
        self.segments: list[tuple[str, list[tuple[str, int]]]] = []


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """Sends are noted, not made."""
    made = Sent()
    monkeypatch.setattr("hyperagent_common.queue.send_segment", lambda _app, wf, links: made.segments.append((wf, list(links))))
    return made


def submitted(url: str, app: Celery, document: dict[str, object], *, max_attempts: int = 3) -> str:
    """A workflow of this plan on a project made for it."""
    with db.transaction(url) as session:
        project = Project(
            id=new_id(),
            name=f"p{new_id()[-12:]}",
            source="/nowhere",
            default_branch="main",
            state=ProjectState.READY,
            created_at=db.now(session),
        )
        session.add(project)
        return workflows.submit(session, app, project, plan.parse(document), max_attempts=max_attempts).id


def steps(url: str, workflow_id: str) -> dict[str, WorkflowStep]:
    """The workflow's steps by key."""
    with db.transaction(url, reading=True) as session:
        rows = session.scalars(select(WorkflowStep).where(WorkflowStep.workflow_id == workflow_id))
        return {row.key: row for row in rows}


def take(url: str, app: Celery, step: WorkflowStep, *, generation: int | None = None, lease: float = 60) -> Claim:
    """Claim a step."""
    return claims.take(url, app, step.id, step.generation if generation is None else generation, "w", lease)


def state(url: str, workflow_id: str) -> str:
    """The workflow's state."""
    with db.transaction(url, reading=True) as session:
        return session.get_one(Workflow, workflow_id).state


def advance(url: str, app: Celery, workflow_id: str) -> None:
    """What the last link of a segment does."""
    with db.transaction(url) as session:
        workflows.advance(session, app, workflow_id)


def test_a_line_is_sent_as_one_segment_and_ends_done(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, LINE)
    rows = steps(url, workflow_id)
    assert app.segments == [(workflow_id, [(rows["a"].id, 1), (rows["b"].id, 1)])]
    claims.finish(url, app, take(url, app, rows["a"]), "a" * 40)
    assert steps(url, workflow_id)["b"].state == StepState.QUEUED
    claims.finish(url, app, take(url, app, rows["b"], generation=1), "b" * 40)
    assert state(url, workflow_id) == WorkflowState.RUNNING
    advance(url, app, workflow_id)
    assert state(url, workflow_id) == WorkflowState.DONE
    assert len(app.segments) == 1


def test_a_join_is_sent_once_when_both_branches_are_done(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, DIAMOND)
    rows = steps(url, workflow_id)
    claims.finish(url, app, take(url, app, rows["a"]), None)
    advance(url, app, workflow_id)
    for key in ("b", "c"):
        claims.finish(url, app, take(url, app, steps(url, workflow_id)[key]), None)
        advance(url, app, workflow_id)
        advance(url, app, workflow_id)
    sent = [links[0][0] for _, links in app.segments]
    assert sorted(sent) == sorted(rows[k].id for k in "abcd")


def test_what_a_step_made_ready_needs_no_last_link_while_another_branch_moves(url: str, app: Sent) -> None:
    tasks = [*DIAMOND["tasks"], {"id": "e", "title": "e", "instructions": "e"}]  # type: ignore[misc]
    workflow_id = submitted(url, app, {**DIAMOND, "tasks": tasks})
    rows = steps(url, workflow_id)
    take(url, app, rows["e"])  # runs for hours
    for key, follow in (("a", "bc"), ("b", ""), ("c", "d")):
        claims.finish(url, app, take(url, app, steps(url, workflow_id)[key]), None)  # and its chain's last link is lost
        assert all(steps(url, workflow_id)[ready].state == StepState.QUEUED for ready in follow)
    advance(url, app, workflow_id)
    assert sorted(links[0][0] for _, links in app.segments) == sorted(row.id for row in rows.values())


def test_nothing_is_made_ready_by_a_step_that_ends_in_a_paused_workflow(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, DIAMOND)
    claim = take(url, app, steps(url, workflow_id)["a"])
    with db.transaction(url) as session:
        workflows.pause(session, workflows.locked(session, workflow_id))
    claims.finish(url, app, claim, None)
    assert {row.state for key, row in steps(url, workflow_id).items() if key != "a"} == {StepState.PENDING}
    assert len(app.segments) == 1


def test_only_one_of_many_claimants_gets_the_step(url: str, app: Sent) -> None:
    step = steps(url, submitted(url, app, LINE))["a"]
    won: list[Claim] = []
    lost: list[StepTaken] = []

    def claim() -> None:
        try:
            won.append(take(url, app, step))
        except StepTaken as taken:
            lost.append(taken)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(won), len(lost)) == (1, 7)
    assert not any(taken.done for taken in lost)


def test_a_message_of_an_older_generation_is_refused(url: str, app: Sent) -> None:
    step = steps(url, submitted(url, app, LINE))["a"]
    with pytest.raises(StepTaken):
        take(url, app, step, generation=0)


def test_a_duplicate_of_a_done_step_lets_the_chain_go_on(url: str, app: Sent) -> None:
    step = steps(url, submitted(url, app, LINE))["a"]
    claims.finish(url, app, take(url, app, step), None)
    with pytest.raises(StepTaken) as taken:
        take(url, app, step)
    assert taken.value.done


def test_who_lost_the_lease_can_write_nothing(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, LINE)
    step = steps(url, workflow_id)["a"]
    old = take(url, app, step, lease=-1)
    new = take(url, app, step)
    assert new.fence > old.fence
    for write in (
        lambda: claims.finish(url, app, old, "a" * 40),
        lambda: claims.release(url, old, ProviderDown()),
        lambda: claims.give_up(url, app, old, AgentFailed()),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert not claims.beat(url, old, 60)
    assert claims.beat(url, new, 60)
    assert steps(url, workflow_id)["a"].commit is None


def test_a_fault_that_may_pass_queues_the_step_again(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, LINE)
    step = steps(url, workflow_id)["a"]
    error = claims.fail(url, app, take(url, app, step), ProviderDown("429"))
    assert isinstance(error, ProviderDown)
    row = steps(url, workflow_id)["a"]
    assert (row.state, row.generation, row.attempt_count) == (StepState.QUEUED, 1, 1)
    assert take(url, app, step).number == 2


def test_a_spent_budget_becomes_one_dead_letter_and_fails_the_workflow(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, LINE, max_attempts=2)
    step = steps(url, workflow_id)["a"]
    for _ in range(2):
        last = claims.fail(url, app, take(url, app, step), ProviderDown("the provider said 429"))
    assert not isinstance(last, ProviderDown)
    assert state(url, workflow_id) == WorkflowState.FAILED
    with db.transaction(url, reading=True) as session:
        letters = session.scalars(select(DeadLetter).where(DeadLetter.step_id == step.id)).all()
    assert len(letters) == 1
    assert "the provider said 429" in letters[0].reason
    with pytest.raises(StepTaken):
        take(url, app, step)


def test_workers_that_die_silently_spend_the_budget_too(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, LINE, max_attempts=2)
    step = steps(url, workflow_id)["a"]
    for _ in range(2):
        take(url, app, step, lease=-1)
    with pytest.raises(StepTaken):
        take(url, app, step)
    assert state(url, workflow_id) == WorkflowState.FAILED


def test_an_unforeseen_error_is_given_up_with_its_name(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, LINE)
    claims.fail(url, app, take(url, app, steps(url, workflow_id)["a"]), KeyError("oh"))
    reason = steps(url, workflow_id)["a"].reason
    assert reason is not None
    assert "KeyError" in reason


def test_a_lease_thread_renews_and_notices_a_loss(url: str, app: Sent) -> None:
    step = steps(url, submitted(url, app, LINE))["a"]
    claim = take(url, app, step, lease=1)
    with claims.Lease(url, claim, 1, 0.1) as lease:
        lease.join(1.5)
        assert not lease.lost()
        with db.transaction(url) as session:
            session.get_one(WorkflowStep, step.id).fence += 1
        lease.join(5)
        assert lease.lost()


def test_every_state_change_has_its_event_in_the_same_transaction(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, LINE)
    claim = take(url, app, steps(url, workflow_id)["a"])
    with pytest.raises(RuntimeError), claims.fenced(url, claim) as (session, step):
        step.commit = "c" * 40
        session.flush()
        raise RuntimeError
    claims.finish(url, app, claim, "a" * 40)
    with db.transaction(url, reading=True) as session:
        kinds = session.scalars(
            select(RunnerEvent.kind).where(RunnerEvent.workflow_id == workflow_id).order_by(RunnerEvent.id)
        ).all()
        attempt = session.get_one(StepAttempt, claim.attempt_id)
    assert kinds == ["workflow.submitted", "step.queued", "step.claimed", "step.done", "step.queued"]
    assert attempt.state == AttemptState.SUCCEEDED


def test_the_reconciler_expires_a_silent_worker_and_sends_the_step_again(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, LINE)
    claim = take(url, app, steps(url, workflow_id)["a"], lease=-1)
    parts = _Parts(url, app)
    assert upkeep.reconcile(parts)["expire"] == 1
    row = steps(url, workflow_id)["a"]
    assert (row.state, row.generation) == (StepState.QUEUED, 2)
    assert app.segments[-1][1][0] == (row.id, 2)
    assert upkeep.reconcile(parts)["expire"] == 0
    with pytest.raises(LeaseLost):
        claims.finish(url, app, claim, None)


def test_the_reconciler_sends_again_what_nobody_heard_of(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, LINE)
    parts = _Parts(url, app)
    assert upkeep.reconcile(parts)["resend"] == 0
    with db.transaction(url) as session:
        row = session.get_one(WorkflowStep, steps(url, workflow_id)["a"].id)
        row.sent_at = db.now(session) - timedelta(hours=1)
    assert upkeep.reconcile(parts)["resend"] == 1
    assert len(app.segments) == 2
    assert app.segments[0] == app.segments[1]


def test_no_clock_but_the_databases_decides_about_leases() -> None:
    for module in (claims, upkeep, resending, actions, workflows):
        code = inspect.getsource(module)
        assert not re.search(r"datetime\.(now|utcnow)|time\.time\(|date\.today", code), module.__name__


class _Parts:
    """Only what the reconciler asks of `Parts`; nobody answers at its broker."""

    def __init__(self, url: str, app: Celery) -> None:
        self.app = app
        self.settings = settings.load({"HYPERAGENT_HOME": "/nonexistent/h", "HYPERAGENT_DATABASE_URL": url})
