"""A planner's run: on record from its first second, within the project's budget, asked once more where its answer is no plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from celery.canvas import Signature

from hyperagent_common import db, plan, queue
from hyperagent_common.errors import DependencyDown
from hyperagent_common.ids import new_id
from hyperagent_common.models import PlanDraft, Project
from hyperagent_common.states import ProjectState
from hyperagent_tasks import planning, spending
from hyperagent_tasks.parts import Parts
from hyperagent_tasks.runners.base import RunSpec
from hyperagent_tasks.runners.fake import Play
from tests import desk
from tests.unit.test_claims import Sent, app
from tests.unit.test_sofar import source

__all__ = ["app", "source"]
PLAN = json.dumps({"kind": plan.KIND, "title": "t", "tasks": [{"id": "a", "title": "a", "instructions": "a"}]})


class Planner:
    """A host whose planner says these answers, one after the other; None: this side stops within it."""

    def __init__(self, tmp_path: Path, app: Sent, source: Path, *answers: str | BaseException, **settings: object) -> None:
        self.url = f"sqlite:///{tmp_path / 'h.db'}"
        db.upgrade(self.url)
        self._answers, self.seen = list(answers), list[int | None]()
        self.parts: Parts = desk.host(self.url, app, self._play, **settings)
        with db.transaction(self.url) as session:
            moment = db.now(session)
            self.project = new_id()
            made = Project(id=self.project, name="p", source=str(source), default_branch="main", state=ProjectState.READY)
            made.created_at = moment
            session.add(made)

    def _play(self, spec: RunSpec) -> Play:
        if spec.role != "agent":
            return Play()
        run = self.parts.gateway.now().run  # type: ignore[attr-defined]
        self.seen.append(run.grant.max_tokens)
        assert len(desk.runs(self.parts)) == len(self.seen)  # the row is there while it runs
        said = self._answers.pop(0)
        run.observed.requests, run.observed.input = 1, 100
        Path(run.grant.log_path).write_text("{}\n")
        (next(m.source for m in spec.mounts if m.target == "/logs") / "n.txt").write_text("n")
        if isinstance(said, BaseException):
            raise said
        run.observed.answer("replay/demo", "Not that." if said == "forged" else said)
        return Play(desk.lines(PLAN if said == "forged" else said, tool=False), stderr=b"e")

    def draft(self) -> PlanDraft:
        """A draft, asked for and written."""
        made = new_id()
        with db.transaction(self.url) as session:
            session.add(PlanDraft(id=made, project_id=self.project, goal="g", created_at=db.now(session)))
        planning.draft(self.parts, made)
        with db.transaction(self.url, reading=True) as session:
            return session.get_one(PlanDraft, made)


Make = Callable[..., Planner]


@pytest.fixture
def made(tmp_path: Path, app: Sent, source: Path) -> Make:
    """Makes a host."""
    return lambda *answers, **settings: Planner(tmp_path, app, source, *answers, **settings)


def test_a_planners_run_and_all_its_logs_are_on_record(made: Make) -> None:
    host = made(PLAN)
    found = host.draft()
    assert found.state == "done", found.reason
    (row,) = desk.runs(host.parts)
    assert (row.end_reason, row.input_tokens, row.finished_at is None) == ("done", 100, False)
    top = host.parts.settings.home / "storage" / Path(row.log_key or "").parent
    kept = {str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()}
    assert kept == {"agent-stream.jsonl", "agent-stderr.txt", "gateway.jsonl", "workflow-logs/n.txt"}


@pytest.mark.parametrize("first", ["", "forged", "A plan? Yes."])
def test_an_answer_that_is_no_plan_is_asked_for_once_more(made: Make, first: str) -> None:
    host = made(first, PLAN)
    found = host.draft()
    assert found.state == "done", found.reason
    assert len(desk.runs(host.parts)) == 2


def test_drafts_count_for_the_projects_budget_and_end_with_it(made: Make) -> None:
    host = made(PLAN, PLAN, budgets={"project": {"tokens": 150}, "step": {"tokens": 1}})
    assert [host.draft().state for _ in range(2)] == ["done", "done"]
    assert host.seen == [150, 50]
    found = host.draft()
    assert (found.state, "The budget of this project is spent: 200 tokens of 150" in str(found.reason)) == ("failed", True)
    assert len(host.seen) == 2
    with db.transaction(host.url, reading=True) as session:
        assert spending._of_project(host.project, session).tokens == 200


def test_a_planner_that_is_broken_off_has_its_end_and_its_tokens(made: Make) -> None:
    host = made(RuntimeError("odd"))
    with pytest.raises(RuntimeError):
        host.draft()
    (row,) = desk.runs(host.parts)
    assert (row.end_reason, row.input_tokens, row.finished_at is None) == ("crashed", 100, False)


def test_a_planner_whose_answer_could_not_be_stored_is_not_asked(made: Make) -> None:
    host = made(PLAN)
    host.parts.__dict__["storage"] = Mock(check=Mock(side_effect=DependencyDown("The storage cannot be used.")))
    found = host.draft()
    assert (found.state, found.reason, host.seen) == ("failed", "The storage cannot be used.", [])


def test_a_drained_draft_goes_back_to_the_host_that_has_its_source(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    host, sent = made(SystemExit()), list[tuple[str, str]]()
    monkeypatch.setattr(Signature, "apply_async", lambda message: sent.append((message.task, message.options["queue"])))
    host.parts.app.conf.task_routes = {}
    with db.transaction(host.url) as session:
        session.get_one(Project, host.project).publisher = "h1"
    with pytest.raises(SystemExit):
        host.draft()
    assert sent == [(queue.DRAFT, "steps.h1")]
