"""Claims, people and the reconciler against a small model, in any order: hypothesis plays them on both databases."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import func, select

from hyperagent_common import actions, db
from hyperagent_common.errors import AgentFailed, Conflict, DependencyDown, HyperagentError, LeaseLost, RunnerTimeout
from hyperagent_common.models import DeadLetter, RunnerEvent, StepAttempt, Workflow, WorkflowStep
from hyperagent_common.states import Action, AttemptState
from hyperagent_tasks import claims, upkeep
from hyperagent_tasks.claims import Claim, StepTaken
from tests.unit.test_claims import Sent, _Parts, advance, app, steps, submitted, url

__all__ = ["app", "url"]
BUDGET = 2
EXAMPLES, LENGTH = 20, 25
SHAPES = [
    {"a": [], "b": ["a"], "c": ["b"]},
    {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]},
    {"a": [], "b": [], "c": ["a", "b"], "d": ["c"]},
]
ENDED = {"done", "failed", "cancelled"}
ERRORS: list[HyperagentError] = [RunnerTimeout("late"), AgentFailed("no"), DependencyDown("away")]


@dataclass
class ModelStep:
    """A step as the model knows it."""

    needs: list[str]
    state: str = "pending"
    generation: int = 0
    fence: int = 0
    attempts: int = 0
    budget: int = BUDGET
    expired: bool = False

    def queue(self) -> None:
        """Queued anew."""
        self.state, self.generation, self.expired = "queued", self.generation + 1, False


@dataclass
class Model:
    """A workflow as it should be."""

    steps: dict[str, ModelStep]
    state: str = "running"
    version: int = 1
    letters: set[str] = field(default_factory=set)

    def ready(self) -> list[ModelStep]:
        """Pending steps whose needs are done."""
        pending = [step for step in self.steps.values() if step.state == "pending"]
        return [step for step in pending if all(self.steps[need].state == "done" for need in step.needs)]

    def advance(self) -> None:
        """Queue what became ready, end what ended."""
        if self.state in ENDED:
            return
        if self.state == "running":
            for step in self.ready():
                step.queue()
        states = {step.state for step in self.steps.values()}
        ended = "done" if states == {"done"} else "failed" if "failed" in states else "cancelled"
        if not states & {"queued", "running"} and not self.ready() and states - {"pending"}:
            self.move(ended)

    def move(self, state: str) -> None:
        """Another state under a new version."""
        self.state, self.version = state, self.version + 1

    def follow(self) -> None:
        """What became ready is queued with the end of the step that made it so."""
        for step in self.ready() if self.state == "running" else ():
            step.queue()

    def fail(self, key: str) -> None:
        """The step is given up."""
        self.steps[key].state = "failed"
        self.letters.add(key)
        self.advance()

    def again(self, keys: list[str]) -> None:
        """Failed steps get a new budget."""
        for key in keys:
            step = self.steps[key]
            step.state, step.budget = "pending", step.attempts + BUDGET
            self.letters.discard(key)
        if self.state == "failed":
            self.move("running")
        self.advance()


class Play(RuleBasedStateMachine):
    """The rules; `url` and `app` are set by the test."""

    url: str
    app: Sent

    @initialize(shape=st.sampled_from(SHAPES))
    def submit(self, shape: dict[str, list[str]]) -> None:
        """A workflow."""
        tasks = [{"id": key, "title": key, "instructions": key, "depends_on": needs} for key, needs in shape.items()]
        document = {"kind": "hyperagent/plan", "title": "t", "tasks": tasks}
        self.app.segments.clear()
        self.workflow = submitted(self.url, self.app, document, max_attempts=BUDGET)
        self.ids = {key: row.id for key, row in steps(self.url, self.workflow).items()}
        self.model = Model({key: ModelStep(needs) for key, needs in shape.items()})
        self.model.advance()
        self.held: list[Claim] = []

    def current(self, claim: Claim) -> ModelStep | None:
        """The model's step while the claim is the newest."""
        step = self.model.steps[claim.key]
        return step if step.state == "running" and step.fence == claim.fence else None

    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """Any message ever sent, again or for the first time, or one of a generation to come."""
        links = sorted({link for _, segment in self.app.segments for link in segment})
        step_id, generation = data.draw(st.sampled_from(links))
        self.claim(step_id, generation + data.draw(st.sampled_from([0, 0, 0, 0, 0, 1, -1])))

    def claim(self, step_id: str, generation: int) -> None:
        """Claim, as the model says it must go."""
        key = next(key for key, known in self.ids.items() if known == step_id)
        step = self.model.steps[key]
        free = step.state == "queued" or (step.state == "running" and step.expired)
        wanted = self.model.state == "running" and free and step.generation == generation
        if wanted:
            step.state, step.expired = "running", False
            step.fence, step.attempts = step.fence + 1, step.attempts + 1
        if not wanted or step.attempts > step.budget:
            with pytest.raises(StepTaken) as taken:
                claims.take(self.url, self.app, step_id, generation, "w", 3600)
            assert taken.value.done == (step.state == "done")
            if wanted:
                self.model.fail(key)
            return
        claim = claims.take(self.url, self.app, step_id, generation, "w", 3600)
        assert (claim.key, claim.fence, claim.number) == (key, step.fence, step.attempts)
        self.held.append(claim)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        """Any claim ever made ends its step: only the newest may."""
        claim = data.draw(st.sampled_from(self.held))
        step = self.current(claim)
        try:
            claims.finish(self.url, self.app, claim, "c" * 40)
        except LeaseLost:
            assert step is None
            return
        assert step is not None
        step.state = "done"
        self.model.follow()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), error=st.sampled_from(ERRORS))
    def fail(self, data: st.DataObject, error: HyperagentError) -> None:
        """Any claim ever made fails."""
        claim = data.draw(st.sampled_from(self.held))
        step = self.current(claim)
        claims.fail(self.url, self.app, claim, error, patience=1e9)
        if step is None:
            return
        if isinstance(error, AgentFailed) or (isinstance(error, RunnerTimeout) and claim.last):
            self.model.fail(claim.key)
        else:
            step.state, step.expired = "queued", False
            step.budget += isinstance(error, DependencyDown)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def hand_over(self, data: st.DataObject) -> None:
        """A worker is drained."""
        claim = data.draw(st.sampled_from(self.held))
        step = self.current(claim)
        try:
            claims.hand_over(self.url, self.app, claim)
        except LeaseLost:
            assert step is None
            return
        assert step is not None
        step.queue()
        step.budget += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        """A heartbeat renews the lease of whoever still holds the step, and of nobody else."""
        claim = data.draw(st.sampled_from(self.held))
        step = self.current(claim)
        assert claims.holds(self.url, claim) == (step is not None)
        assert claims.beat(self.url, claim, 3600) == (step is not None)
        if step is not None:
            step.expired = False

    @precondition(lambda self: any(s.state == "running" for s in self.model.steps.values()))
    @rule(data=st.data())
    def silence(self, data: st.DataObject) -> None:
        """Time passes, and a worker says nothing."""
        key = data.draw(st.sampled_from([k for k, s in self.model.steps.items() if s.state == "running"]))
        self.model.steps[key].expired = True
        with db.transaction(self.url) as session:
            row = session.get_one(WorkflowStep, self.ids[key])
            row.lease_until = db.now(session) - timedelta(hours=1)

    @rule()
    def reconcile(self) -> None:
        """The reconciler looks."""
        model = self.model
        idle = model.state == "running" and not {s.state for s in model.steps.values()} & {"queued", "running"}
        for key, step in model.steps.items():
            if step.state == "running" and step.expired:
                step.fence += 1
                if step.attempts >= step.budget:
                    model.fail(key)
                else:
                    step.queue()
        if idle:
            model.advance()
        upkeep.reconcile(_Parts(self.url, self.app))  # type: ignore[arg-type]

    @rule()
    def last_link(self) -> None:
        """The last link of a segment, at any time."""
        self.model.advance()
        advance(self.url, self.app, self.workflow)

    @rule(action=st.sampled_from(list(Action)), stale=st.sampled_from([0, 0, 0, 1]))
    def ask(self, action: Action, stale: int) -> None:
        """A person asks something of the workflow, perhaps of an older version."""
        model = self.model
        allowed = {"pause": {"running"}, "resume": {"paused"}, "cancel": {"running", "paused"}, "retry": {"failed"}}
        wanted = not stale and model.state in allowed[action]
        with nullcontext() if wanted else pytest.raises(Conflict, match=model.state), db.transaction(self.url) as session:
            actions.take(session, self.app, self.workflow, action, budget=BUDGET, version=model.version - stale)
        if wanted:
            self.done(action)

    def done(self, action: Action) -> None:
        """What the action does to the model."""
        model = self.model
        if action is Action.PAUSE:
            model.move("paused")
        elif action is Action.RESUME:
            model.move("running")
            for step in model.steps.values():
                if step.state == "queued":
                    step.queue()
            model.advance()
        elif action is Action.RETRY:
            model.again([key for key, step in model.steps.items() if step.state == "failed"])
        else:
            for step in model.steps.values():
                if step.state not in ENDED:
                    step.state, step.fence, step.generation = "cancelled", step.fence + 1, step.generation + 1
            model.move("cancelled")

    @rule(data=st.data())
    def retry_step(self, data: st.DataObject) -> None:
        """A person retries one step."""
        key = data.draw(st.sampled_from(sorted(self.ids)))
        wanted = self.model.steps[key].state == "failed" and self.model.state in ("running", "paused", "failed")
        try:
            with db.transaction(self.url) as session:
                actions.retry_step(session, self.app, self.workflow, key, budget=BUDGET)
        except Conflict:
            assert not wanted
            return
        assert wanted
        self.model.again([key])

    @precondition(lambda self: self.model.letters)
    @rule(replay=st.booleans())
    def letter(self, replay: bool) -> None:
        """A person answers the newest open dead letter, twice."""
        with db.transaction(self.url, reading=True) as session:
            mine = DeadLetter.step_id.in_(self.ids.values())
            opened = select(DeadLetter).where(mine, DeadLetter.resolved_at.is_(None)).order_by(DeadLetter.id.desc())
            letter = session.scalars(opened).first()
        assert letter is not None
        key = next(key for key, known in self.ids.items() if known == letter.step_id)
        refused = replay and self.model.state == "cancelled"
        for again in (False, True):
            try:
                with db.transaction(self.url) as session:
                    if replay:
                        actions.replay(session, self.app, letter.id, budget=BUDGET)
                    else:
                        actions.discard(session, letter.id)
            except Conflict:
                assert again or refused
                continue
            assert (again, refused) == (False, False)
            self.model.again([key]) if replay else self.model.letters.discard(key)

    @invariant()
    def the_rows_are_as_the_model_says(self) -> None:
        """States, numbers, open letters and running attempts."""
        if not hasattr(self, "model"):
            return
        model, rows = self.model, steps(self.url, self.workflow)
        seen = {k: (r.state, r.generation, r.fence, r.attempt_count, r.max_attempts + r.free_attempts) for k, r in rows.items()}
        assert seen == {k: (s.state, s.generation, s.fence, s.attempts, s.budget) for k, s in model.steps.items()}
        with db.transaction(self.url, reading=True) as session:
            workflow = session.get_one(Workflow, self.workflow)
            assert (workflow.state, workflow.version) == (model.state, model.version)
            mine = DeadLetter.step_id.in_(self.ids.values())
            opened = session.scalars(select(DeadLetter.step_id).where(mine, DeadLetter.resolved_at.is_(None))).all()
            assert sorted(opened) == sorted(self.ids[key] for key in model.letters)
            running = (StepAttempt.step_id.in_(self.ids.values()), StepAttempt.state == AttemptState.RUNNING)
            held = session.scalars(select(StepAttempt.step_id).where(*running)).all()
            assert sorted(held) == sorted(self.ids[k] for k, s in model.steps.items() if s.state == "running")
            done = (RunnerEvent.workflow_id == self.workflow, RunnerEvent.kind == "step.done")
            told = session.scalar(select(func.count()).select_from(RunnerEvent).where(*done))
            assert told == sum(s.state == "done" for s in model.steps.values())

    @invariant()
    def a_queued_step_of_a_running_workflow_has_its_message(self) -> None:
        """Nothing waits for a message that nobody sends."""
        if hasattr(self, "model") and self.model.state == "running":
            links = {link for _, segment in self.app.segments for link in segment}
            queued = {(self.ids[key], s.generation) for key, s in self.model.steps.items() if s.state == "queued"}
            assert queued <= links

    def teardown(self) -> None:
        """From wherever it stands, a willing worker brings the workflow to its end."""
        if not hasattr(self, "model"):
            return
        for _ in range(60):
            if self.model.state in ("done", "cancelled"):
                break
            if self.model.state in ("paused", "failed"):
                self.ask(Action.RESUME if self.model.state == "paused" else Action.RETRY, 0)
            for step in self.model.steps.values():
                step.expired = step.state == "running"
            self._all_silent()
            self.reconcile()
            for key, step in self.model.steps.items():
                if step.state == "queued":
                    self.claim(self.ids[key], step.generation)
                    with suppress(LeaseLost):
                        claims.finish(self.url, self.app, self.held[-1], "c" * 40)
                        step.state = "done"
                        self.model.follow()
            self.retry_failed()
            self.last_link()
        self.the_rows_are_as_the_model_says()
        assert self.model.state in ("done", "cancelled")

    def _all_silent(self) -> None:
        with db.transaction(self.url) as session:
            running = (WorkflowStep.workflow_id == self.workflow, WorkflowStep.state == "running")
            for row in session.scalars(select(WorkflowStep).where(*running)):
                row.lease_until = db.now(session) - timedelta(hours=1)

    def retry_failed(self) -> None:
        """Every failed step gets another chance."""
        failed = [key for key, step in self.model.steps.items() if step.state == "failed"]
        for key in failed if self.model.state == "running" else []:
            with db.transaction(self.url) as session:
                actions.retry_step(session, self.app, self.workflow, key, budget=BUDGET)
            self.model.again([key])


def test_whatever_order_things_happen_in_the_rows_are_as_the_model_says(url: str, app: Sent) -> None:
    attributes: dict[str, Any] = {"url": url, "app": app}
    machine = type("Played", (Play,), attributes)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=LENGTH,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],  # shrinking would take minutes; to look closer, add Phase.shrink
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
