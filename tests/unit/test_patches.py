"""Why there is no patch, what is due to be tried again, and what patch and reviews say; on SQLite and PostgreSQL alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import select

from hyperagent_common import actions, db, patches, plan, workflows
from hyperagent_common.errors import AgentFailed, HyperagentError, NoPeer, NotReady, WorkRejected
from hyperagent_common.ids import new_id
from hyperagent_common.models import (
    AgentRun,
    CheckResult,
    Patch,
    Project,
    RunnerEvent,
    StepAttempt,
    Verdict,
    Workflow,
    WorkflowStep,
)
from hyperagent_common.patch_models import DeliveryState, PatchDelivery, PatchReview, PatchSkip, ReviewState, SkipKind
from hyperagent_common.settings import Settings
from hyperagent_common.states import Action, ProjectState
from hyperagent_tasks import catchup, claims, delivery, description, reviews
from hyperagent_tasks.radicle.base import Announced, Reviewed, ReviewSpec

WORDS = "Why:\n\n- it subtracts – “übung” 🎉"
PLAN = {
    "kind": plan.KIND,
    "title": "Two",
    "description": WORDS,
    "tasks": [
        {"id": "a", "title": "Mend `add`", "instructions": "a"},
        {"id": "b", "title": "b", "instructions": "b", "depends_on": ["a"]},
    ],
}


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A migrated database of each kind."""
    made = f"sqlite:///{tmp_path / 'h.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    db.upgrade(made)
    yield made
    db.engine(made).dispose()


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Celery:
    """Sends go nowhere."""
    monkeypatch.setattr("hyperagent_common.queue.send_segment", lambda *_args, **_more: None)
    return Celery("test", broker="memory://", set_as_current=False)


class Forge:
    """A forge that answers what it is told to, and keeps what it was asked."""

    name = "stand-in"

    def __init__(self) -> None:
        self.asked: list[ReviewSpec] = []
        self.error: HyperagentError | None = None
        self.spread = Announced(True, 0, NoPeer())

    def review(self, spec: ReviewSpec) -> Reviewed:
        """The review, or the error."""
        if self.error is not None:
            raise self.error
        self.asked.append(spec)
        return Reviewed("f" * 40, "did:key:reviewer", "reviewed", self.spread)

    def announce(self, rid: str) -> Announced:
        """How far it came, or the error."""
        if self.error is not None:
            raise self.error
        return self.spread


class Parts:
    """Settings and forge: all that reviews and deliveries need of a host."""

    def __init__(self, url: str) -> None:
        self.settings = Settings(database_url=url, retry_backoff=5, retry_backoff_max=40)
        self.forge = Forge()


def submitted(url: str, app: Celery) -> str:
    """A workflow of the plan above."""
    with db.transaction(url) as session:
        project = Project(id=new_id(), name=f"p{new_id()[-12:]}", source="/nowhere", default_branch="main", publisher="here")
        project.state, project.created_at = ProjectState.READY, db.now(session)
        session.add(project)
        return workflows.submit(session, app, project, plan.parse(PLAN), max_attempts=3).id


def failed(url: str, app: Celery, workflow_id: str, error: HyperagentError) -> None:
    """Let its first step be given up."""
    with db.transaction(url, reading=True) as session:
        step = session.scalars(select(WorkflowStep).where(WorkflowStep.workflow_id == workflow_id, WorkflowStep.key == "a")).one()
    claims.give_up(url, app, claims.take(url, app, step.id, step.generation, "w", 60), error)


def skip_of(url: str, workflow_id: str) -> PatchSkip | None:
    """Why it has no patch."""
    with db.transaction(url, reading=True) as session:
        return patches.skipped(session, workflow_id)


def told(url: str, workflow_id: str, kind: str) -> list[dict[str, Any]]:
    """What events of a kind say."""
    with db.transaction(url, reading=True) as session:
        wanted = select(RunnerEvent).where(RunnerEvent.workflow_id == workflow_id, RunnerEvent.kind == kind)
        return [event.data for event in session.scalars(wanted.order_by(RunnerEvent.id))]


def published(url: str, workflow_id: str, parts: Parts, *, verdict: str = "approved") -> str:
    """A patch with the first step's commit and its verdict owed; returns the id of its row."""
    with db.transaction(url) as session:
        workflow, moment = session.get_one(Workflow, workflow_id), db.now(session)
        patch = Patch(id=new_id(), workflow_id=workflow_id, forge="stand-in", rid="rad:zx", published_at=moment, bodies=[])
        patch.patch_id = patch.head = "1" * 40
        session.add(patch)
        session.flush()
        committed(session, workflow, 0, "2" * 40, verdict, moment)
        delivery.note(session, parts.settings, patch, Announced(True, 0, NoPeer()), moment)
        reviews.owe(session, parts, patch, workflow.steps[0].id, "3" * 40, moment)  # type: ignore[arg-type]
        return patch.id


def committed(session: Any, workflow: Workflow, position: int, commit: str, decision: str, moment: datetime) -> None:
    """A step's commit with an attempt, a verdict and a check."""
    step = workflow.steps[position]
    attempt = StepAttempt(id=new_id(), step_id=step.id, number=1, fence=9, worker="w", started_at=moment)
    run = AgentRun(id=new_id(), attempt_id=attempt.id, role="verifier", provider="opencode", model="m/x", started_at=moment)
    session.add(attempt)
    session.flush()
    session.add(run)
    session.flush()
    said = Verdict(id=new_id(), attempt_id=attempt.id, agent_run_id=run.id, round=1, decision=decision, created_at=moment)
    said.summary, said.findings = f"Well <!-- {step.key} -->\nindeed.", [{"message": "Terse.", "path": "a.py", "line": 3}]
    session.add(said)
    session.add(CheckResult(attempt_id=attempt.id, round=1, position=0, command="echo `x`", passed=True))
    step.commit = commit
    session.flush()


def review_of(url: str, patch_id: str) -> list[PatchReview]:
    """The reviews of a patch."""
    with db.transaction(url, reading=True) as session:
        return list(session.scalars(select(PatchReview).where(PatchReview.patch_id == patch_id).order_by(PatchReview.id)))


def delivery_of(url: str, patch_id: str) -> PatchDelivery:
    """Who holds it."""
    with db.transaction(url, reading=True) as session:
        return session.scalars(select(PatchDelivery).where(PatchDelivery.patch_id == patch_id)).one()


@pytest.mark.parametrize(("error", "kind"), [(WorkRejected("bad work"), SkipKind.VERDICT), (AgentFailed("no"), SkipKind.ENDED)])
def test_a_workflow_that_fails_before_any_patch_says_why(url: str, app: Celery, error: HyperagentError, kind: SkipKind) -> None:
    workflow_id = submitted(url, app)
    failed(url, app, workflow_id, error)
    skip = skip_of(url, workflow_id)
    assert skip is not None
    assert (skip.kind, skip.reason) == (kind, f"Step a: {error.message}")
    assert [t["skip"] for t in told(url, workflow_id, "patch.skipped")] == [kind]


def test_a_cancelled_workflow_says_why_it_has_no_patch(url: str, app: Celery) -> None:
    workflow_id = submitted(url, app)
    with db.transaction(url) as session:
        actions.take(session, app, workflow_id, Action.CANCEL, budget=1)
    skip = skip_of(url, workflow_id)
    assert skip is not None
    assert (skip.kind, "cancelled" in skip.reason) == (SkipKind.ENDED, True)


def test_a_workflow_with_a_patch_keeps_it_when_a_later_step_is_rejected(url: str, app: Celery) -> None:
    workflow_id = submitted(url, app)
    published(url, workflow_id, Parts(url))
    failed(url, app, workflow_id, WorkRejected("bad work"))
    assert skip_of(url, workflow_id) is None


def test_a_verdict_is_posted_once_and_told(url: str, app: Celery) -> None:
    workflow_id, parts = submitted(url, app), Parts(url)
    patch_id = published(url, workflow_id, parts)
    reviews.post(parts, patch_id)  # type: ignore[arg-type]
    reviews.post(parts, patch_id)  # type: ignore[arg-type]
    assert len(parts.forge.asked) == 1
    assert parts.forge.asked[0].verdict == "accept"
    assert "Well <!-- a -->\nindeed.\n- [minor] a.py:3: Terse." in parts.forge.asked[0].summary
    (row,) = review_of(url, patch_id)
    assert (row.state, row.reviewer, row.next_at) == (ReviewState.POSTED, "did:key:reviewer", None)
    assert [t["reviewer"] for t in told(url, workflow_id, "patch.reviewed")] == ["did:key:reviewer"]


def test_only_an_approval_is_owed_to_the_patch(url: str, app: Celery) -> None:
    patch_id = published(url, submitted(url, app), Parts(url), verdict="changes_requested")
    assert review_of(url, patch_id) == []


def test_a_second_verdict_on_one_revision_makes_one_review_of_both(url: str, app: Celery) -> None:
    workflow_id, parts = submitted(url, app), Parts(url)
    patch_id = published(url, workflow_id, parts)
    reviews.post(parts, patch_id)  # type: ignore[arg-type]
    with db.transaction(url) as session:
        workflow, moment = session.get_one(Workflow, workflow_id), db.now(session)
        committed(session, workflow, 1, "4" * 40, "approved", moment)
        reviews.owe(session, parts, session.get_one(Patch, patch_id), workflow.steps[1].id, "3" * 40, moment)  # type: ignore[arg-type]
    reviews.post(parts, patch_id)  # type: ignore[arg-type]
    assert [row.state for row in review_of(url, patch_id)] == [ReviewState.POSTED] * 2
    assert all(mark in parts.forge.asked[-1].summary for mark in ("<!-- a -->", "<!-- b -->"))
    assert len(told(url, workflow_id, "patch.reviewed")) == 2


@pytest.mark.parametrize(("error", "state"), [(NoPeer("x"), ReviewState.PENDING), (NotReady("x"), ReviewState.REFUSED)])
def test_a_review_that_fails_is_noted_and_tried_again_where_that_may_help(
    url: str, app: Celery, error: HyperagentError, state: ReviewState
) -> None:
    workflow_id, parts = submitted(url, app), Parts(url)
    patch_id = published(url, workflow_id, parts)
    parts.forge.error = error
    for _ in range(2):
        reviews.post(parts, patch_id)  # type: ignore[arg-type]
    (row,) = review_of(url, patch_id)
    assert (row.state, row.error_type, row.reason) == (state, error.type, "x")
    assert (row.next_at is None) == (state == ReviewState.REFUSED)
    assert row.tries == (1 if state == ReviewState.REFUSED else 2)
    kind = "patch.review_refused" if state == ReviewState.REFUSED else "patch.review_waits"
    assert told(url, workflow_id, kind)[0]["error_type"] == error.type


def test_what_is_due_goes_to_the_publishing_host_once(url: str, app: Celery) -> None:
    workflow_id, parts = submitted(url, app), Parts(url)
    published(url, workflow_id, parts)
    with db.transaction(url) as session:
        later = db.now(session) + timedelta(hours=1)
        project_id = session.get_one(Workflow, workflow_id).project_id
        assert list(patches.due(session, db.now(session), timedelta(hours=2))) == []
        assert list(patches.due(session, later, timedelta(hours=2))) == [(project_id, "here")]
        assert list(patches.due(session, later, timedelta(hours=2))) == []


def test_catching_up_posts_and_announces_until_a_peer_holds_it(url: str, app: Celery) -> None:
    workflow_id, parts = submitted(url, app), Parts(url)
    patch_id = published(url, workflow_id, parts)
    with db.transaction(url, reading=True) as session:
        project_id = session.get_one(Workflow, workflow_id).project_id
    parts.forge.error = NotReady("no engine")
    catchup.catch_up(parts, project_id)  # type: ignore[arg-type]
    found = delivery_of(url, patch_id)
    assert (found.state, found.error_type, found.tries) == (DeliveryState.KEPT, "not-ready", 2)
    parts.forge.error, parts.forge.spread = None, Announced(True, 2)
    catchup.catch_up(parts, project_id)  # type: ignore[arg-type]
    found = delivery_of(url, patch_id)
    assert (found.state, found.synced_with, found.next_at, found.reason) == (DeliveryState.HELD, 2, None, None)
    assert [t["synced_with"] for t in told(url, workflow_id, "patch.held")] == [2]


def test_the_description_is_of_the_steps_that_have_commits(url: str, app: Celery) -> None:
    workflow_id = submitted(url, app)
    published(url, workflow_id, Parts(url))
    with db.transaction(url, reading=True) as session:
        text = description.body(session, session.get_one(Workflow, workflow_id), "http://here:1")
    here = f"http://here:1/api/v1/workflows/{workflow_id}"
    assert text.startswith(f"{WORDS}\n\n## Mend `add`\n\nApproved by opencode with m/x:\n\n> Well <!-- a -->\n> indeed.\n")
    assert "- passed: `` echo `x` ``\n" in text
    assert f"- commit `{'2' * 40}`, [provenance]({here}/steps/a/provenance)" in text
    assert "## b" not in text
    assert f"[{workflow_id}]({here})" in text


@pytest.mark.parametrize("letter", ["x", "ü", "🎉", '"', "\n"])
def test_a_text_too_long_is_cut_and_says_so(letter: str) -> None:
    whole = description.fit(["x" * 50_000], "tail", "there")
    assert whole == "x" * 50_000 + "\n\ntail"
    text = description.fit([f"{letter}" * 100_000 + "end"], "tail", "there")
    assert len(json.dumps(text, ensure_ascii=False).encode()) <= description.LIMIT
    assert text.endswith("(cut here; the whole is at there)\n\ntail")
