"""Every agent run has an end in its row, with what the gateway saw, whatever ended it and whoever has to write it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import Mock

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from sqlalchemy import update

from hyperagent_common import actions, db
from hyperagent_common.errors import BadInput, DependencyDown, LeaseLost
from hyperagent_common.models import StepAttempt, WorkflowStep
from hyperagent_common.states import Action, AttemptState
from hyperagent_tasks import conversing, endings, reaper
from hyperagent_tasks.parts import Parts
from hyperagent_tasks.runners import profile
from hyperagent_tasks.runners.base import RunSpec
from hyperagent_tasks.runners.fake import Play
from hyperagent_tasks.spec import Workdir
from tests import desk
from tests.unit.test_claims import LINE, Sent, app, steps, submitted, take

__all__ = ["app"]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A migrated database."""
    made = f"sqlite:///{tmp_path / 'h.db'}"
    db.upgrade(made)
    return made


def spend(parts: Parts, tokens: int = 100) -> None:
    """The agent under way asks its model once; the gateway's books and its call log say so."""
    run = parts.gateway.now().run  # type: ignore[attr-defined]
    run.observed.requests, run.observed.input, run.observed.output = 1, tokens, 10
    run.observed.answer("replay/demo", desk.SAID)
    entry = {
        "agent_run": run.grant.agent_run_id,
        "number": 1,
        "tokens": {"input": tokens, "output": 10, "cached": 0},
        "cost": None,
    }
    Path(run.grant.log_path).write_text(json.dumps(entry) + '\n{"agent_run": "cut')


def test_a_run_that_ends_well_has_its_end_and_its_figures(url: str, app: Sent) -> None:
    def play(_spec: RunSpec) -> Play:
        spend(parts)
        return Play(desk.lines())

    parts = desk.host(url, app, play)
    step, work, lease = desk.claimed(parts, take(url, app, steps(url, submitted(url, app, LINE))["a"]))
    assert conversing.run(parts, step, desk.turn(work), lease).outcome.ok
    (row,) = desk.runs(parts)
    assert (row.end_reason, row.input_tokens, row.exit_code, row.finished_at is None) == ("done", 100, 0, False)
    assert {"agent-stream.jsonl", "gateway.jsonl"} <= set(desk.artifacts(parts))


def test_a_gateway_started_anew_is_a_dependency_down_and_the_tokens_are_booked(url: str, app: Sent) -> None:
    def play(_spec: RunSpec) -> Play:
        spend(parts)
        parts.gateway.restart()  # type: ignore[attr-defined]
        return Play(
            json.dumps({"type": "error", "error": {"name": "APIError", "data": {"statusCode": 401}}}).encode(), exit_code=1
        )

    parts = desk.host(url, app, play)
    step, work, lease = desk.claimed(parts, take(url, app, steps(url, submitted(url, app, LINE))["a"]))
    with pytest.raises(DependencyDown, match="started anew"):
        conversing.run(parts, step, desk.turn(work), lease)
    (row,) = desk.runs(parts)
    assert (row.end_reason, row.requests, row.input_tokens, row.output_tokens) == ("provider", 1, 100, 10)


def begun(url: str, app: Sent) -> str:
    """A submitted workflow."""
    return submitted(url, app, LINE)


@pytest.mark.parametrize(("ago", "reaped"), [(-60, False), (60, True)])
def test_a_look_of_the_host_itself_is_reaped_once_it_is_late(url: str, app: Sent, ago: int, reaped: bool) -> None:
    parts = desk.host(url, app, lambda _spec: Play())
    told = {profile.ROLE: "probe", profile.DEADLINE: (datetime.now(UTC) - timedelta(seconds=ago)).isoformat()}
    parts.__dict__["runner"] = Mock(reap=lambda keep: [] if keep(told) else ["box"])
    assert reaper.reap(parts)["containers"] == reaped


def test_a_cancelled_run_is_closed_by_the_reaper_with_its_tokens_and_its_logs(url: str, app: Sent) -> None:
    def play(_spec: RunSpec) -> Play:
        spend(parts)
        (work.ws / ".hyperagent" / "workflow-logs").mkdir(parents=True)
        (work.ws / ".hyperagent" / "workflow-logs" / "n.txt").write_text("I was here.")
        with db.transaction(url) as session:
            actions.take(session, app, workflow_id, Action.CANCEL, budget=1)
        lease.stop()  # as its thread does within a second
        return Play(desk.lines(), stderr=b"half")

    parts, workflow_id = desk.host(url, app, play), begun(url, app)
    step, work, lease = desk.claimed(parts, take(url, app, steps(url, workflow_id)["a"]))
    with pytest.raises(LeaseLost):
        conversing.run(parts, step, desk.turn(work), lease)
    (row,) = desk.runs(parts)
    assert (row.finished_at, desk.artifacts(parts)) == (None, {})  # who lost the lease writes nothing
    reaper.reap(parts)
    (row,) = desk.runs(parts)
    assert (row.end_reason, row.input_tokens, row.output_tokens) == ("cancelled", 100, 10)
    stored = {"agent-stream.jsonl", "agent-stderr.txt", "gateway.jsonl", "workflow-logs/n.txt"}
    assert set(desk.artifacts(parts)) == stored
    assert not work.root.exists()
    reaper.reap(parts)
    assert len(desk.artifacts(parts)) == len(stored)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(SystemExit(), "cancelled"), (SoftTimeLimitExceeded(), "timed_out"), (BadInput("too long"), "crashed")],
)
def test_a_run_that_this_side_breaks_off_has_its_end_and_its_tokens(
    url: str, app: Sent, error: BaseException, reason: str
) -> None:
    def play(_spec: RunSpec) -> Play:
        spend(parts)
        raise error

    parts = desk.host(url, app, play)
    step, work, lease = desk.claimed(parts, take(url, app, steps(url, begun(url, app))["a"]))
    with pytest.raises(type(error)):
        conversing.run(parts, step, desk.turn(work), lease)
    (row,) = desk.runs(parts)
    assert (row.end_reason, row.input_tokens, row.finished_at is None) == (reason, 100, False)
    assert "gateway.jsonl" in desk.artifacts(parts)


def killed(url: str, app: Sent, tokens: int) -> tuple[Parts, Workdir]:
    """A host whose worker was killed in the middle of a run; its attempt is given up."""

    class Killed(BaseException):
        pass

    def play(_spec: RunSpec) -> Play:
        spend(parts, tokens)
        with db.transaction(url) as session:
            session.get_one(WorkflowStep, step.claim.step_id).fence += 1
        raise Killed

    parts = desk.host(url, app, play)
    step, work, lease = desk.claimed(parts, take(url, app, steps(url, begun(url, app))["a"]))
    with pytest.raises(LeaseLost):
        conversing.run(parts, step, desk.turn(work), lease)
    with db.transaction(url) as session:
        attempt = session.get_one(StepAttempt, step.claim.attempt_id)
        attempt.state, attempt.finished_at, attempt.worker = AttemptState.ABANDONED, db.now(session), parts.worker
    return parts, work


def test_the_run_of_a_killed_worker_is_closed_from_the_call_log_where_the_gateway_has_forgotten_it(url: str, app: Sent) -> None:
    parts, _work = killed(url, app, 70)
    parts.gateway.restart()  # type: ignore[attr-defined]
    reaper.reap(parts)
    (row,) = desk.runs(parts)
    assert (row.end_reason, row.input_tokens) == ("crashed", 70)


def test_another_hosts_run_is_left_to_it_for_an_hour(url: str, app: Sent) -> None:
    parts, _work = killed(url, app, 70)
    parts.gateway.restart()  # type: ignore[attr-defined]
    with db.transaction(url) as session:
        session.execute(update(StepAttempt).values(worker="elsewhere:1"))
    reaper.reap(parts)
    with db.transaction(url) as session:
        assert endings.give_up(session, db.now(session)) == 0
        assert endings.give_up(session, db.now(session) + timedelta(hours=2)) == 1
    (row,) = desk.runs(parts)
    assert (row.end_reason, row.input_tokens, row.finished_at is None) == ("crashed", None, False)
