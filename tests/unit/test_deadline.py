"""An attempt's deadline follows its step's own rounds and lists of agents, for its worker and for the reconciler."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from hyperagent_common import choices, db
from hyperagent_common import settings as all_settings
from hyperagent_common.errors import RunnerTimeout
from hyperagent_common.models import StepAttempt, WorkflowStep
from hyperagent_common.settings import Settings
from hyperagent_common.states import StepState
from hyperagent_tasks import coding, deadline, steps, upkeep
from hyperagent_tasks.claims import Claim, Lease
from hyperagent_tasks.runners.base import RunSpec
from hyperagent_tasks.runners.fake import Play
from hyperagent_tasks.spec import StepSpec, Workdir
from tests import desk
from tests.unit.test_claims import LINE, Sent, _Parts, app, submitted, take
from tests.unit.test_claims import steps as steps_of

__all__ = ["app"]
OTHERS = ["opencode:a/1", "claude:b/2", "codex:c/3"]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A migrated database."""
    made = f"sqlite:///{tmp_path / 'h.db'}"
    db.upgrade(made)
    return made


def claimed(url: str, app: Sent, **details: Any) -> Claim:
    """A claimed step whose planner task chooses this."""
    step = steps_of(url, submitted(url, app, LINE))["a"]
    with db.transaction(url) as session:
        session.get_one(WorkflowStep, step.id).planner_task.details = details
    return take(url, app, step)


def aged(url: str, claim: Claim, seconds: float) -> None:
    """The attempt began so long ago."""
    with db.transaction(url) as session:
        session.get_one(StepAttempt, claim.attempt_id).started_at -= timedelta(seconds=seconds)


def test_every_run_that_rounds_and_fallbacks_can_ask_for_has_its_time() -> None:
    made = Settings(agent_max_rounds=1, verify="off", agent_fallback=OTHERS, step_timeout=100, check_timeout=10)
    assert made.attempt_seconds() == 4 * 100 + 10 + 600 + 600
    verified = choices.settle(made.choices(), {"agent_max_rounds": 20, "verify": "on"})
    assert made.attempt_seconds(verified) == (20 + 3 + 40 + 3) * 100 + 20 * (10 + 600) + 600


def test_no_choice_asks_for_more_time_than_celery_gives() -> None:
    made = Settings(agent_fallback=[f"opencode:p/{n}" for n in range(20)])
    longest = choices.settle(made.choices(), {"agent_max_rounds": choices.MAX_ROUNDS, "verify": "always"})
    assert made.attempt_seconds(longest) <= made.longest_attempt
    assert made.attempt_seconds() < made.longest_attempt


@pytest.mark.parametrize("details", [{"agent_max_rounds": 20}, {"agent_max_rounds": 3, "agent_fallback": OTHERS}])
def test_the_reconciler_leaves_an_attempt_the_time_that_its_own_step_gives_it(url: str, app: Sent, details: Any) -> None:
    parts: Any = _Parts(url, app)
    claim = claimed(url, app, **details)
    own = parts.settings.attempt_seconds(choices.settle(parts.settings.choices(), details))
    assert own > parts.settings.attempt_seconds()
    aged(url, claim, own)
    assert upkeep.reconcile(parts)["time_out"] == 0
    aged(url, claim, deadline.LATE_SECONDS + 1)
    assert upkeep.reconcile(parts)["time_out"] == 1


def test_a_step_of_few_rounds_is_late_earlier_than_the_deployments(url: str, app: Sent) -> None:
    parts: Any = _Parts(url, app)
    aged(url, claimed(url, app, agent_max_rounds=1), parts.settings.attempt_seconds() - 600)
    assert upkeep.reconcile(parts)["time_out"] == 1


def test_an_attempt_keeps_the_deadline_it_began_with_whatever_is_chosen_meanwhile(
    url: str, app: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = desk.host(url, app, lambda _spec: Play())
    claim = claimed(url, app, agent_max_rounds=20)
    own = parts.settings.attempt_seconds(choices.settle(parts.settings.choices(), {"agent_max_rounds": 20}))

    def hops(*_: Any) -> str:
        with db.transaction(url) as session:
            session.get_one(WorkflowStep, claim.step_id).planner_task.details = {"agent_max_rounds": 1}
        return "c" * 40

    monkeypatch.setattr(steps, "_hops", hops)
    steps.carry_out(parts, claim, Lease(url, claim, 60, 10))
    with db.transaction(url, reading=True) as session:
        attempt = session.get_one(StepAttempt, claim.attempt_id)
    assert attempt.deadline is not None
    assert own <= (attempt.deadline - attempt.started_at).total_seconds() < own + 60
    aged(url, claim, own + deadline.LATE_SECONDS)  # by the choices as they are now it is late, and was long ago
    assert upkeep.reconcile(parts)["time_out"] == 0
    with db.transaction(url) as session:
        kept = session.get_one(StepAttempt, claim.attempt_id)
        kept.deadline = db.now(session) - timedelta(seconds=deadline.LATE_SECONDS + 1)
    assert upkeep.reconcile(parts)["time_out"] == 1


def late_host(url: str, app: Sent, monkeypatch: pytest.MonkeyPatch, seconds: float) -> Any:
    """A host whose steps take so long, on which a round and a run have a twentieth of a second."""
    monkeypatch.setattr(all_settings, "AROUND_SECONDS", 0.0)
    monkeypatch.setattr(steps, "_hops", lambda *_: time.sleep(seconds) or "c" * 40)
    return desk.host(url, app, lambda _spec: Play(), step_timeout=0.05, check_timeout=0.05)


def test_a_late_attempt_is_ended_and_its_step_is_tried_again(url: str, app: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = late_host(url, app, monkeypatch, 30)
    step = steps_of(url, submitted(url, app, LINE))["a"]
    with pytest.raises(RunnerTimeout, match="did not end within 1 s"):
        steps.run_step(parts, step.id, step.generation)
    row = next(iter(steps_of(url, step.workflow_id).values()))
    assert (row.state, row.attempt_count) == (StepState.QUEUED, 1)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_the_same_time_is_enough_for_a_step_that_chose_more_rounds(url: str, app: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = late_host(url, app, monkeypatch, 1.0)
    step = steps_of(url, submitted(url, app, LINE))["a"]
    with db.transaction(url) as session:
        session.get_one(WorkflowStep, step.id).planner_task.details = {"agent_max_rounds": 20}
    assert steps.run_step(parts, step.id, step.generation) == "c" * 40


def test_the_last_of_a_list_is_reached_where_all_before_it_time_out(url: str, app: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    def play(_run: RunSpec) -> Play:
        asked.append(1)
        return Play(seconds=30) if len(asked) < 4 else Play(desk.lines())

    def hops(_parts: Any, _claim: Claim, step: StepSpec, lease: Lease) -> str:
        work = Workdir(parts.settings.home / "work" / step.claim.attempt_id)
        work.make()
        return coding.Bench(parts, step, work, lease).ask("coder", 1, "Do it.", work.ws).model

    asked: list[int] = []
    monkeypatch.setattr(all_settings, "AROUND_SECONDS", 1.0)
    monkeypatch.setattr(steps, "_hops", hops)
    parts = desk.host(url, app, play, step_timeout=2.0, check_timeout=0.1)
    step = steps_of(url, submitted(url, app, LINE))["a"]
    others = [{"provider": "mock", "model": f"replay/{name}"} for name in ("b", "c", "last")]
    with db.transaction(url) as session:
        chosen = {"agent_max_rounds": 1, "verify": False, "agent_fallback": others}
        session.get_one(WorkflowStep, step.id).planner_task.details = chosen
    assert steps.run_step(parts, step.id, step.generation) == "replay/last"
    assert [run.end_reason for run in desk.runs(parts)] == ["timed_out"] * 3 + ["done"]


def test_a_process_that_does_not_listen_is_killed() -> None:
    deaf = (
        "import signal, time; from hyperagent_tasks import deadline\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])\n"
        "with deadline.within(0.1, grace=0.2): time.sleep(30)\n"
    )
    assert subprocess.run([sys.executable, "-c", deaf], timeout=20).returncode == -signal.SIGKILL


def test_what_is_in_time_is_not_told_anything() -> None:
    with deadline.within(0.05):
        pass
    time.sleep(0.1)
    with pytest.raises(SoftTimeLimitExceeded), deadline.within(0.05):
        time.sleep(5)
