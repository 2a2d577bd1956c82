"""Pause, resume, cancel, retry and dead letters, on SQLite and PostgreSQL alike; the reconciler's pure decision."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from hyperagent_common import actions, db, projects, workflows
from hyperagent_common.errors import (
    AgentFailed,
    Conflict,
    DependencyDown,
    LeaseLost,
    NotFound,
    Permanent,
    ProviderDown,
    RunnerTimeout,
)
from hyperagent_common.events import EventKind
from hyperagent_common.models import DeadLetter, RunnerEvent, StepAttempt, Workflow
from hyperagent_common.states import Action, AttemptState, StepState, WorkflowState
from hyperagent_tasks import claims, upkeep
from hyperagent_tasks.claims import StepTaken
from hyperagent_tasks.upkeep import Limits, Stuck
from tests.unit.test_claims import DIAMOND, LINE, Sent, advance, app, state, steps, submitted, take, url

__all__ = ["app", "url"]
BUDGET = 3


def act(url: str, app: Sent, workflow_id: str, action: Action, **how: object) -> Workflow:
    """Do an action in a transaction of its own."""
    with db.transaction(url) as session:
        return actions.take(session, app, workflow_id, action, budget=BUDGET, **how)  # type: ignore[arg-type]


def letters(url: str) -> list[DeadLetter]:
    """Every dead letter."""
    with db.transaction(url, reading=True) as session:
        return list(session.query(DeadLetter).order_by(DeadLetter.id))


def failed(url: str, app: Sent, workflow_id: str, key: str = "a") -> None:
    """Let a step fail for good."""
    claims.fail(url, app, take(url, app, steps(url, workflow_id)[key]), AgentFailed("no"))


def test_a_paused_workflow_begins_nothing_and_goes_on_where_it_was(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, DIAMOND)
    running = take(url, app, steps(url, workflow_id)["a"])
    act(url, app, workflow_id, Action.PAUSE, by="ann")
    claims.finish(url, app, running, "a" * 40)
    advance(url, app, workflow_id)
    assert {s.state for s in steps(url, workflow_id).values()} == {StepState.DONE, StepState.PENDING}
    sent = len(app.segments)
    act(url, app, workflow_id, Action.RESUME)
    assert {k: s.state for k, s in steps(url, workflow_id).items()} == {"a": "done", "b": "queued", "c": "queued", "d": "pending"}
    assert len(app.segments) == sent + 2


def test_a_queued_step_cannot_be_claimed_while_paused_and_is_sent_again_afterwards(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, LINE)
    act(url, app, workflow_id, Action.PAUSE)
    before = steps(url, workflow_id)["a"]
    with pytest.raises(StepTaken):
        take(url, app, before)
    act(url, app, workflow_id, Action.RESUME)
    with pytest.raises(StepTaken):
        take(url, app, before)  # the message from before the pause names an older generation
    assert take(url, app, steps(url, workflow_id)["a"]).number == 1


def test_cancel_fences_off_whoever_runs(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, DIAMOND)
    claim = take(url, app, steps(url, workflow_id)["a"])
    act(url, app, workflow_id, Action.CANCEL, reason="wrong plan")
    assert not claims.holds(url, claim)
    assert not claims.beat(url, claim, 60)
    for write in (lambda: claims.finish(url, app, claim, "a" * 40), lambda: claims.release(url, claim, ProviderDown("x"))):
        with pytest.raises(LeaseLost):
            write()
    assert {(s.state, s.lease_until) for s in steps(url, workflow_id).values()} == {(StepState.CANCELLED, None)}
    with db.transaction(url, reading=True) as session:
        attempt = session.get_one(StepAttempt, claim.attempt_id)
        assert (attempt.state, attempt.error_type) == (AttemptState.ABANDONED, "cancelled")
        assert session.get_one(Workflow, workflow_id).reason == "wrong plan"


@pytest.mark.parametrize("ended", [WorkflowState.DONE, WorkflowState.CANCELLED, WorkflowState.FAILED])
@pytest.mark.parametrize("action", list(Action))
def test_an_action_that_the_state_does_not_allow_names_the_state_and_changes_nothing(
    url: str, app: Sent, ended: WorkflowState, action: Action
) -> None:
    workflow_id = submitted(url, app, LINE)
    if ended is WorkflowState.DONE:
        claims.finish(url, app, take(url, app, steps(url, workflow_id)["a"]), "a" * 40)
        claims.finish(url, app, take(url, app, steps(url, workflow_id)["b"]), "b" * 40)
        advance(url, app, workflow_id)
    elif ended is WorkflowState.CANCELLED:
        act(url, app, workflow_id, Action.CANCEL)
    else:
        failed(url, app, workflow_id)
    assert state(url, workflow_id) == ended
    if ended is WorkflowState.FAILED and action is Action.RETRY:
        return
    before = steps(url, workflow_id)
    with pytest.raises(Conflict, match=ended.value):
        act(url, app, workflow_id, action)
    after = steps(url, workflow_id)
    assert {k: (s.state, s.generation, s.fence) for k, s in after.items()} == {
        k: (s.state, s.generation, s.fence) for k, s in before.items()
    }


def test_a_stale_version_is_refused_and_the_right_one_is_taken(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, LINE)
    with pytest.raises(Conflict, match="version 1, not at version 7"):
        act(url, app, workflow_id, Action.PAUSE, version=7)
    assert act(url, app, workflow_id, Action.PAUSE, version=1).version == 2
    with pytest.raises(Conflict):
        act(url, app, workflow_id, Action.RESUME, version=1)
    assert act(url, app, workflow_id, Action.RESUME, version=2).version == 3


def test_a_step_retried_while_its_workflow_runs_makes_the_version_that_was_seen_stale(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, DIAMOND)
    claims.finish(url, app, take(url, app, steps(url, workflow_id)["a"]), "a" * 40)
    advance(url, app, workflow_id)
    failed(url, app, workflow_id, "b")
    with db.transaction(url, reading=True) as session:
        seen = session.get_one(Workflow, workflow_id).version
    assert state(url, workflow_id) == WorkflowState.RUNNING
    with db.transaction(url) as session:
        assert actions.retry_step(session, app, workflow_id, "b", budget=BUDGET, version=seen).version == seen + 1
    with pytest.raises(Conflict, match=f"version {seen + 1}, not at version {seen}"):
        act(url, app, workflow_id, Action.CANCEL, version=seen)


def test_a_failed_workflow_is_retried_with_a_new_budget_and_its_letters_are_closed(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, LINE)
    for _ in range(2):
        for _attempt in range(BUDGET):
            claims.fail(url, app, take(url, app, steps(url, workflow_id)["a"]), ProviderDown("no"))
        assert state(url, workflow_id) == WorkflowState.FAILED
        act(url, app, workflow_id, Action.RETRY)
        assert steps(url, workflow_id)["a"].state == StepState.QUEUED
    assert [letter.resolution for letter in letters(url)] == ["replayed", "replayed"]
    claims.finish(url, app, take(url, app, steps(url, workflow_id)["a"]), "a" * 40)
    claims.finish(url, app, take(url, app, steps(url, workflow_id)["b"]), "b" * 40)
    advance(url, app, workflow_id)
    assert state(url, workflow_id) == WorkflowState.DONE


def test_a_dead_letter_is_replayed_or_discarded_once(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, LINE)
    failed(url, app, workflow_id)
    letter = letters(url)[0]
    with db.transaction(url) as session:
        seen = workflows.locked(session, workflow_id).version
        actions.discard(session, letter.id, by="ann")
    with pytest.raises(Conflict, match="at version"):
        act(url, app, workflow_id, Action.RETRY, version=seen)
    for again in (actions.discard, lambda s, i: actions.replay(s, app, i, budget=BUDGET)):
        with pytest.raises(Conflict, match="discarded"), db.transaction(url) as session:
            again(session, letter.id)
    assert state(url, workflow_id) == WorkflowState.FAILED
    with pytest.raises(NotFound), db.transaction(url) as session:
        actions.discard(session, "nothing")
    act(url, app, workflow_id, Action.RETRY)
    failed(url, app, workflow_id)
    with db.transaction(url) as session:
        actions.replay(session, app, letters(url)[1].id, budget=BUDGET)
    assert state(url, workflow_id) == WorkflowState.RUNNING


def test_only_a_failed_step_is_retried(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, DIAMOND)
    for key, error in (("a", Conflict), ("zz", NotFound)):
        with pytest.raises(error), db.transaction(url) as session:
            actions.retry_step(session, app, workflow_id, key, budget=BUDGET)
    failed(url, app, workflow_id)
    with db.transaction(url) as session:
        actions.retry_step(session, app, workflow_id, "a", budget=BUDGET)
    assert steps(url, workflow_id)["a"].state == StepState.QUEUED


def test_nothing_of_a_removed_project_is_retried(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, LINE)
    failed(url, app, workflow_id)
    letter, name = letters(url)[0].id, _remove_project(url, workflow_id)
    for again in (
        lambda s: actions.take(s, app, workflow_id, Action.RETRY, budget=BUDGET),
        lambda s: actions.retry_step(s, app, workflow_id, "a", budget=BUDGET),
        lambda s: actions.replay(s, app, letter, budget=BUDGET),
    ):
        with pytest.raises(Conflict, match=f"The project {name} is removed"), db.transaction(url) as session:
            again(session)
    assert (state(url, workflow_id), steps(url, workflow_id)["a"].state) == (WorkflowState.FAILED, StepState.FAILED)
    assert letters(url)[0].resolved_at is None


def _remove_project(url: str, workflow_id: str) -> str:
    with db.transaction(url) as session:
        name = session.get_one(Workflow, workflow_id).project.name
        projects.remove(session, name, None)
        return name


def test_many_callers_at_once_cancel_once(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, DIAMOND)
    said: list[str] = []

    def call() -> None:
        try:
            act(url, app, workflow_id, Action.CANCEL)
            said.append("done")
        except Conflict:
            said.append("refused")

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(said) == ["done"] + ["refused"] * 5


def test_cancel_and_finish_at_the_same_time_agree(url: str, app: Sent) -> None:
    for _ in range(8):
        workflow_id = submitted(url, app, LINE)
        claim = take(url, app, steps(url, workflow_id)["a"])
        lost: list[bool] = []

        def finish(claim: claims.Claim = claim, lost: list[bool] = lost) -> None:
            try:
                claims.finish(url, app, claim, "a" * 40)
            except LeaseLost:
                lost.append(True)

        thread = threading.Thread(target=finish)
        thread.start()
        act(url, app, workflow_id, Action.CANCEL)
        thread.join(30)
        found = steps(url, workflow_id)
        assert found["a"].state == (StepState.CANCELLED if lost else StepState.DONE)
        assert found["b"].state == StepState.CANCELLED


def test_waiting_for_a_dependency_costs_no_attempt_until_patience_ends(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, LINE)
    for _ in range(3 * BUDGET):
        assert isinstance(
            claims.fail(url, app, take(url, app, steps(url, workflow_id)["a"]), DependencyDown("away")), DependencyDown
        )
    row = steps(url, workflow_id)["a"]
    assert (row.state, row.free_attempts, row.reason) == (StepState.QUEUED, 3 * BUDGET, "away")
    assert row.blocked_since is not None
    told = claims.fail(url, app, take(url, app, row), DependencyDown("away"), patience=0)
    assert isinstance(told, Permanent)
    assert steps(url, workflow_id)["a"].state == StepState.FAILED


def test_another_failure_ends_the_waiting_and_counts(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, LINE)
    claims.fail(url, app, take(url, app, steps(url, workflow_id)["a"]), DependencyDown("away"))
    claims.fail(url, app, take(url, app, steps(url, workflow_id)["a"]), RunnerTimeout("late"))
    row = steps(url, workflow_id)["a"]
    assert (row.blocked_since, row.free_attempts, row.attempt_count) == (None, 1, 2)


def test_a_drained_worker_hands_its_step_over_at_no_cost(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, LINE)
    claim = take(url, app, steps(url, workflow_id)["a"])
    claims.hand_over(url, app, claim)
    row = steps(url, workflow_id)["a"]
    assert (row.state, row.free_attempts, row.lease_until) == (StepState.QUEUED, 1, None)
    assert app.segments[-1][1][0] == (row.id, row.generation)
    with pytest.raises(LeaseLost):
        claims.finish(url, app, claim, None)


def test_an_expired_step_without_attempts_left_becomes_a_dead_letter_by_the_reconciler(url: str, app: Sent) -> None:
    from tests.unit.test_claims import _Parts

    workflow_id = submitted(url, app, LINE, max_attempts=1)
    claim = take(url, app, steps(url, workflow_id)["a"], lease=-1)
    parts = _Parts(url, app)
    assert upkeep.reconcile(parts)["give_up"] == 1  # type: ignore[arg-type]
    assert state(url, workflow_id) == WorkflowState.FAILED
    assert "stopped answering" in letters(url)[0].reason
    with pytest.raises(LeaseLost):
        claims.finish(url, app, claim, None)


def test_the_reconciler_ends_an_attempt_that_beats_for_ever(url: str, app: Sent) -> None:
    from tests.unit.test_claims import _Parts

    workflow_id = submitted(url, app, LINE)
    claim = take(url, app, steps(url, workflow_id)["a"])
    with db.transaction(url) as session:
        session.get_one(StepAttempt, claim.attempt_id).started_at -= timedelta(days=1)
    assert upkeep.reconcile(_Parts(url, app))["time_out"] == 1  # type: ignore[arg-type]
    assert not claims.holds(url, claim)


def test_the_reconciler_moves_a_workflow_whose_last_link_was_lost(url: str, app: Sent) -> None:
    from tests.unit.test_claims import _Parts

    workflow_id = submitted(url, app, LINE)
    for key in "ab":
        claims.finish(url, app, take(url, app, steps(url, workflow_id)[key]), "a" * 40)
    assert upkeep.reconcile(_Parts(url, app))["advance"] == 1  # type: ignore[arg-type]
    assert state(url, workflow_id) == WorkflowState.DONE
    assert not any(upkeep.reconcile(_Parts(url, app)).values())  # type: ignore[arg-type]


NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = Limits(requeue_after=60, backoff_max=30)
moments = st.none() | st.integers(-100_000, 100_000).map(lambda s: NOW + timedelta(seconds=s))
stuck = st.builds(
    Stuck, step_id=st.just("s"), workflow_id=st.just("w"), state=st.sampled_from(list(StepState)),
    generation=st.integers(0, 9), fence=st.integers(0, 9), queued_at=moments, sent_at=moments, lease_until=moments, late=moments,
    attempts=st.integers(0, 9), budget=st.integers(1, 9), committed=st.booleans(),
)  # fmt: skip


@given(stuck)
def test_the_decision_touches_only_what_moves_and_never_a_step_that_is_well(step: Stuck) -> None:
    action = upkeep.decide([step], NOW, LIMITS).get("s")
    if step.state not in (StepState.QUEUED, StepState.RUNNING):
        assert action is None
    if step.state is StepState.RUNNING and step.lease_until and step.lease_until >= NOW and (step.late or NOW) >= NOW:
        assert action is None
    if step.state is StepState.QUEUED and step.sent_at and step.sent_at >= NOW - timedelta(seconds=60):
        assert action is None
    if action is not None and step.state is StepState.QUEUED:
        assert action is upkeep.Action.RESEND


@given(stuck)
def test_whatever_stands_still_long_enough_is_acted_upon(step: Stuck) -> None:
    later = NOW + timedelta(days=30)
    action = upkeep.decide([step], later, LIMITS).get("s")
    moving = step.state in (StepState.QUEUED, StepState.RUNNING)
    assert (action is not None) == moving
    if step.state is StepState.RUNNING:
        assert (action is upkeep.Action.GIVE_UP) == (step.attempts >= step.budget)


def test_why_somebody_resumed_is_told(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, LINE)
    act(url, app, workflow_id, Action.PAUSE)
    act(url, app, workflow_id, Action.RESUME, reason="the key is new")
    with db.transaction(url, reading=True) as session:
        told = session.scalars(select(RunnerEvent).where(RunnerEvent.kind == EventKind.WORKFLOW_RESUMED)).one()
    assert told.data["reason"] == "the key is new"
