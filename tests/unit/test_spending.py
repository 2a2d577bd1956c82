"""Budgets at a step, on SQLite: what counts as spent, and that only a person's resume gives a budget once more."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from hyperagent_common import actions, db
from hyperagent_common.choices import Amount, Choice
from hyperagent_common.errors import BudgetSpent
from hyperagent_common.ids import new_id
from hyperagent_common.models import AgentRun, Workflow
from hyperagent_common.settings import Settings
from hyperagent_common.states import Action, StepState, WorkflowState
from hyperagent_tasks import budget, claims, coding, judging, spec, spending
from hyperagent_tasks.agents.base import AgentOutcome, EndReason
from hyperagent_tasks.claims import Claim
from hyperagent_tasks.conversing import Ran, Turn
from hyperagent_tasks.gateway.dialects.base import Usage
from hyperagent_tasks.gateway.grants import Observed
from hyperagent_tasks.parts import Chosen, Parts
from hyperagent_tasks.runners.fake import Play
from hyperagent_tasks.spec import Place, StepSpec, Workdir
from tests import desk
from tests.unit.test_claims import DIAMOND, LINE, Sent, app, state, steps, submitted, take

__all__ = ["app"]
N = 1000


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A migrated database."""
    made = f"sqlite:///{tmp_path / 'h.db'}"
    db.upgrade(made)
    return made


def parts(url: str, app: Sent, **limits: dict[str, Any]) -> Parts:
    """A host with these budgets."""
    home = Path(url.removeprefix("sqlite:///")).parent
    return Parts(Settings(home=home, database_url=url, budgets=limits), app, Chosen("process", "mock", "stand-in"))


def claimed(parts: Parts, workflow_id: str, key: str = "a") -> StepSpec:
    """A step of the workflow, claimed."""
    url = parts.settings.db_url
    claim = take(url, parts.app, steps(url, workflow_id)[key])
    with db.transaction(url, reading=True) as session:
        return spec.read(session, claim, parts.settings)


def used(url: str, claim: Claim, tokens: int) -> None:
    """An agent run of the claim that used so much."""
    with db.transaction(url) as session:
        moment = db.now(session)
        run = AgentRun(id=new_id(), attempt_id=claim.attempt_id, role="coder", provider="mock", model="replay/m")
        run.input_tokens, run.output_tokens, run.started_at, run.finished_at = tokens, 0, moment, moment + timedelta(seconds=1)
        session.add(run)


def pauses(parts: Parts, step: StepSpec) -> BudgetSpent:
    """The step finds its budget spent and pauses its workflow."""
    with pytest.raises(BudgetSpent) as spent:
        spending.left(parts, step)
    claims.hold(parts.settings.db_url, step.claim, spent.value)
    return spent.value


def act(parts: Parts, workflow_id: str, action: Action, by: str = "ann") -> Workflow:
    """A person's action."""
    with db.transaction(parts.settings.db_url) as session:
        return actions.take(session, parts.app, workflow_id, action, budget=3, by=by)


def into_project(url: str, one: str, other: str) -> None:
    """Both workflows are of one project."""
    with db.transaction(url) as session:
        session.get_one(Workflow, other).project_id = session.get_one(Workflow, one).project_id


@pytest.mark.parametrize("then", [None, Action.CANCEL])
def test_a_pause_gives_nobody_the_projects_budget_again(url: str, app: Sent, then: Action | None) -> None:
    host = parts(url, app, project={"tokens": N})
    one, other = submitted(url, app, LINE), submitted(url, app, LINE)
    into_project(url, one, other)
    mine, theirs = claimed(host, one), claimed(host, other)
    used(url, mine.claim, N + 200)
    pauses(host, mine)
    if then:
        act(host, one, then)
    with pytest.raises(BudgetSpent, match="1200 tokens of 1000"):
        spending.left(host, theirs)


def test_a_resume_gives_the_budget_once_more_however_many_steps_found_it_spent(url: str, app: Sent) -> None:
    host = parts(url, app, workflow={"tokens": N})
    workflow_id = submitted(url, app, DIAMOND)
    claims.finish(url, app, claimed(host, workflow_id).claim, "a" * 40)
    with db.transaction(url) as session:
        workflow = session.get_one(Workflow, workflow_id)
        for step in workflow.steps[1:3]:
            step.state, step.generation = StepState.QUEUED, 1
    left, right = claimed(host, workflow_id, "b"), claimed(host, workflow_id, "c")
    used(url, left.claim, N)
    for step in (left, right):
        pauses(host, step)
    assert state(url, workflow_id) == WorkflowState.PAUSED
    act(host, workflow_id, Action.RESUME)
    again = claimed(host, workflow_id, "b")
    assert spending.left(host, again).tokens == N
    used(url, again.claim, N)
    pauses(host, again)
    act(host, workflow_id, Action.RESUME)
    assert spending.left(host, claimed(host, workflow_id, "c")).tokens == N


def test_a_steps_budget_is_given_to_that_step_alone(url: str, app: Sent) -> None:
    host = parts(url, app, step={"tokens": N})
    workflow_id = submitted(url, app, LINE)
    step = claimed(host, workflow_id)
    used(url, step.claim, N + 1)
    pauses(host, step)
    act(host, workflow_id, Action.RESUME)
    assert spending.left(host, claimed(host, workflow_id)).tokens == N - 1
    with db.transaction(url, reading=True) as session:
        other = replace(step, claim=replace(step.claim, step_id=steps(url, workflow_id)["b"].id))
        assert spending.spent(session, other, "step").grants == 0


def test_who_resumes_from_a_pause_of_their_own_was_not_asked_for_a_budget(url: str, app: Sent) -> None:
    host = parts(url, app, step={"tokens": N})
    workflow_id = submitted(url, app, LINE)
    step = claimed(host, workflow_id)
    used(url, step.claim, N)
    act(host, workflow_id, Action.PAUSE)
    pauses(host, step)
    act(host, workflow_id, Action.RESUME)
    again = claimed(host, workflow_id)
    pauses(host, again)
    act(host, workflow_id, Action.RESUME)
    assert spending.left(host, claimed(host, workflow_id)).tokens == N


def ended(of: str) -> Ran:
    """A run that the gateway ended because a budget was spent."""
    seen = Observed()
    seen.fail("budget", "so much of so much", 400, of=of)
    outcome = judging.seen_by_gateway(AgentOutcome(EndReason.BUDGET, "Spent."), seen)
    return Ran(new_id(), "mock", "replay/m", "", None, outcome, seen, None, None)  # type: ignore[arg-type]


def test_a_run_that_spent_its_rest_asks_a_person_though_others_were_given_more_meanwhile(url: str, app: Sent) -> None:
    host = parts(url, app, workflow={"tokens": N})
    step = claimed(host, submitted(url, app, LINE))
    turn = Turn("coder", 1, 1, Choice("mock", "replay/m"), "", "", Path(), Place(Path(), ""), spending.left(host, step))
    bench = coding.Bench(host, step, Workdir(Path()), None)  # type: ignore[arg-type]
    with pytest.raises(BudgetSpent) as spent:
        bench._budgets_hold(turn, ended("tokens"))
    assert spent.value.scope == "workflow"
    bench._budgets_hold(turn, ended("requests"))  # not a person's to give: the agent ran in circles


def test_the_scope_of_each_rest_is_known() -> None:
    limits = budget.left({"step": Amount(tokens=9, usd=1), "project": Amount(tokens=5)}, {})
    assert dict(limits.scopes) == {"tokens": "project", "usd": "step"}


def test_runs_of_unknown_cost_are_named_where_a_budget_in_dollars_is_spent(url: str, app: Sent) -> None:
    host = parts(url, app, workflow={"usd": 1.0})
    step = claimed(host, submitted(url, app, LINE))
    for cost in (None, 1.5):
        with db.transaction(url) as session:
            moment = db.now(session)
            run = AgentRun(id=new_id(), attempt_id=step.claim.attempt_id, role="coder", provider="mock", model="replay/m")
            run.requests, run.cost_usd, run.started_at, run.finished_at = 2, cost, moment, moment
            session.add(run)
    with pytest.raises(BudgetSpent, match=r"1.50 US dollars of 1.00 US dollars, and 1 agent runs of unknown cost"):
        spending.left(host, step)


def test_two_steps_at_once_share_their_workflows_budget(url: str, app: Sent) -> None:
    workflow_id = submitted(url, app, DIAMOND)
    host = desk.host(url, app, lambda _spec: play(), budgets={"workflow": {"tokens": N}})
    claims.finish(url, app, claimed(host, workflow_id).claim, "a" * 40)
    with db.transaction(url) as session:
        for row in session.get_one(Workflow, workflow_id).steps[1:3]:
            row.state, row.generation = StepState.QUEUED, 1
    both = [desk.claimed(host, claimed(host, workflow_id, key).claim) for key in ("b", "c")]
    got: list[int] = []

    def play() -> Play:
        entry = host.gateway.gateway.of_run(max(host.gateway.grants()))  # type: ignore[attr-defined]
        if len(host.gateway.grants()) == 1:  # within the first run the second has its own, from end to end
            entry.purse.book(Usage(600, 0), None)
            got.append(600)
            with pytest.raises(BudgetSpent) as spent:
                coding.Bench(host, both[1][0], both[1][1], both[1][2]).ask("coder", 1, "Do it.", both[1][1].ws)
            assert spent.value.scope == "workflow"
            assert entry.purse.refusal() is not None
            return Play(b"", exit_code=1)
        while entry.purse.refusal() is None:
            entry.purse.book(Usage(300, 0), None)
            got.append(300)
        return Play(b"", exit_code=1)

    with pytest.raises(BudgetSpent, match="workflow"):
        coding.Bench(host, both[0][0], both[0][1], both[0][2]).ask("coder", 1, "Do it.", both[0][1].ws)
    assert got == [600, 300, 300]  # one request too many, not a budget each
