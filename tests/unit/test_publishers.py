"""What is left of a committed step is the publisher's host's: it is waited for while it works, however busy it is."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hyperagent_common import db, queue
from hyperagent_common.errors import DependencyDown
from hyperagent_common.models import Worker, Workflow, WorkflowStep
from hyperagent_common.states import StepState
from hyperagent_tasks import checks, claims, heartbeat, upkeep
from hyperagent_tasks.parts import instance
from hyperagent_tasks.runners.fake import Play
from tests import desk
from tests.unit.test_claims import LINE, Sent, _Parts, app, steps, submitted, take, url

__all__ = ["app", "url"]
PUBLISHER = "host-a"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch, app: Sent) -> list[str]:
    """To whom each segment was sent; empty: to any host."""
    found: list[str] = []
    monkeypatch.setattr(queue, "send_segment", lambda _app, _workflow, _links, to="": found.append(to))
    return found


def committed(url: str, app: Sent) -> WorkflowStep:
    """A queued step whose commit is made, of a project that `PUBLISHER` publishes."""
    workflow_id = submitted(url, app, LINE)
    with db.transaction(url) as session:
        session.get_one(Workflow, workflow_id).project.publisher = PUBLISHER
        session.get_one(WorkflowStep, steps(url, workflow_id)["a"].id).commit = "c" * 40
    return steps(url, workflow_id)["a"]


def seen(url: str, *, ago: float = 0, stopped: bool = False) -> None:
    """The publisher's worker reported so long ago."""
    with db.transaction(url) as session:
        moment = db.now(session) - timedelta(seconds=ago)
        row: dict[str, Any] = {"host": "h", "started_at": moment, "parts": {"instance": PUBLISHER}}
        session.merge(Worker(id="w", last_seen=moment, stopped_at=moment if stopped else None, **row))


def waited(claim: claims.Claim) -> claims.Claim:
    """The claim of a step that waited longer than anybody's patience."""
    return replace(claim, blocked_since=claim.claimed_at - timedelta(days=1))


def blocked_since(url: str, step: WorkflowStep) -> datetime | None:
    """As the row says."""
    return steps(url, step.workflow_id)[step.key].blocked_since


def test_a_publisher_that_is_only_busy_is_waited_for_without_end(url: str, app: Sent, sent: list[str]) -> None:
    parts: Any = _Parts(url, app)
    step = committed(url, app)
    seen(url)
    claims.forward(parts.settings, app, waited(take(url, app, step)), PUBLISHER)
    assert sent[-1] == PUBLISHER
    row = steps(url, step.workflow_id)["a"]
    assert (row.state, row.blocked_since) == (StepState.QUEUED, None)
    assert take(url, app, row).waited == 0


@pytest.mark.parametrize("silence", [{"ago": 300}, {"stopped": True}, None])
def test_a_publisher_that_is_silent_is_waited_for_as_long_as_any_dependency(
    url: str, app: Sent, sent: list[str], silence: dict[str, Any] | None
) -> None:
    parts: Any = _Parts(url, app)
    step = committed(url, app)
    if silence is not None:
        seen(url, **silence)
    claims.forward(parts.settings, app, take(url, app, step), PUBLISHER)
    assert blocked_since(url, step) is not None
    with pytest.raises(DependencyDown, match="does not take the step"):
        claims.forward(parts.settings, app, waited(take(url, app, steps(url, step.workflow_id)["a"])), PUBLISHER)


def test_a_committed_step_is_sent_again_to_the_host_that_publishes_while_that_works(url: str, app: Sent, sent: list[str]) -> None:
    parts: Any = _Parts(url, app)
    step = committed(url, app)
    for silence, commit, to in ((0, "c" * 40, PUBLISHER), (300, "c" * 40, ""), (0, None, "")):
        seen(url, ago=silence)
        with db.transaction(url) as session:
            row = session.get_one(WorkflowStep, step.id)
            row.commit, row.queued_at = commit, db.now(session) - timedelta(hours=1)
            row.sent_at = row.queued_at
        assert upkeep.reconcile(parts)["resend"] == 1
        assert sent[-1] == to


def test_a_workers_row_says_which_host_it_is_of(tmp_path: Path, app: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "examine", lambda _parts: [])
    made = f"sqlite:///{tmp_path / 'h.db'}"
    db.upgrade(made)
    parts = desk.host(made, app, lambda _spec: Play())
    heartbeat.beat(parts, "w")
    with db.transaction(made, reading=True) as session:
        assert session.get_one(Worker, "w").parts["instance"] == instance(parts.settings)


def test_a_worker_that_cannot_choose_its_parts_yet_hides_no_other(
    url: str, app: Sent, sent: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = checks.Check("parts", False, "No engine answers.")
    monkeypatch.setattr(checks, "examine", lambda _parts: [away])
    parts = desk.host(url, app, lambda _spec: Play(), home=tmp_path)
    heartbeat.beat(parts, "new")
    with db.transaction(url) as session:
        assert session.get_one(Worker, "new").parts == {}
        session.add(Worker(id="old", host="h", started_at=db.now(session), last_seen=db.now(session), parts=None))
    step = committed(url, app)
    seen(url)
    claims.forward(parts.settings, app, take(url, app, step), PUBLISHER)
    assert sent[-1] == PUBLISHER
