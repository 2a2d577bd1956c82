"""Plans and the order of steps: pure, so tested by property."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperagent_common import plan, states
from hyperagent_common.errors import BadInput
from hyperagent_common.states import StepState, StepView


def document(*tasks: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A plan document."""
    return {"kind": plan.KIND, "title": "t", "tasks": [{"title": "t", "instructions": "i", **t} for t in tasks], **more}


def faults(value: object) -> dict[str, str]:
    """Faults by field."""
    with pytest.raises(BadInput) as refused:
        plan.parse(value)
    return {fault.field: fault.message for fault in refused.value.faults}


def test_a_plan_is_ordered_by_what_it_needs() -> None:
    parsed = plan.parse(document({"id": "b", "depends_on": ["a"]}, {"id": "a"}))
    assert [task.id for task in parsed.tasks] == ["a", "b"]


def test_every_fault_is_named_at_once() -> None:
    told = faults(
        document(
            {"id": "a", "depends_on": ["b"], "colour": "red"},
            {"id": "b", "depends_on": ["a", "nobody"]},
            {"id": "a", "agent_type": "poet"},
            {"id": "No Good", "checks": "make"},
            size=1,
        )
    )
    assert "colour" in told["tasks[0].colour"] or "unknown field" in told["tasks[0].colour"]
    assert "nobody" in told["tasks[1].depends_on"]
    assert "tasks[0]" in told["tasks[2].id"]
    assert "poet" in told["tasks[2].agent_type"]
    assert set(told) >= {"size", "tasks[3].id", "tasks[3].checks"}
    assert "a -> b -> a" in told["tasks"] or "b -> a -> b" in told["tasks"]


@pytest.mark.parametrize(
    "value", [None, [], "x", {}, {"kind": plan.KIND, "title": "t", "tasks": []}, document({"id": "a", "title": "x\x00"})]
)
def test_garbage_is_refused(value: object) -> None:
    assert faults(value)


def test_a_planner_task_that_needs_itself_is_told_so() -> None:
    assert "itself" in faults(document({"id": "a", "depends_on": ["a"]}))["tasks[0].depends_on"]


def test_the_digest_is_of_the_content_not_of_the_writing() -> None:
    assert plan.parse(document({"id": "a"})).digest() == plan.parse(document({"id": "a", "checks": []})).digest()
    assert plan.parse(document({"id": "a"})).digest() != plan.parse(document({"id": "b"})).digest()


@st.composite
def dags(draw: st.DrawFn) -> list[StepView]:
    """Steps that need only earlier ones."""
    size = draw(st.integers(1, 12))
    made = []
    for number in range(size):
        needs = draw(st.lists(st.integers(0, number - 1), unique=True, max_size=3)) if number else []
        made.append(StepView(f"s{number}", tuple(f"s{n}" for n in needs), StepState.PENDING))
    return made


@given(dags())
def test_segments_carry_every_step_once_and_never_before_what_it_needs(steps: list[StepView]) -> None:
    state = {s.key: StepState.PENDING for s in steps}

    def now() -> list[StepView]:
        return [StepView(s.key, s.needs, state[s.key]) for s in steps]

    carried: list[str] = []
    for _ in range(len(steps) + 1):
        heads = states.ready(now())
        for head in heads:
            for key in states.segment(now(), head):
                assert all(state[n] is StepState.DONE for n in next(s.needs for s in steps if s.key == key))
                state[key] = StepState.DONE
                carried.append(key)
    assert sorted(carried) == sorted(state)
    assert states.workflow_state(now()) is states.WorkflowState.DONE


@given(dags())
def test_a_dag_has_no_cycle_and_an_order(steps: list[StepView]) -> None:
    needs = {s.key: list(s.needs) for s in steps}
    assert states.cycle(needs) == []
    order = states.order(needs)
    assert all(order.index(n) < order.index(k) for k, wanted in needs.items() for n in wanted)


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef"), max_size=3), min_size=1))
def test_a_cycle_that_is_told_is_one(needs: dict[str, list[str]]) -> None:
    loop = states.cycle(needs)
    for here, there in zip(loop, [*loop[1:], *loop[:1]], strict=True):
        assert there in needs[here]
    if not loop:
        known = {k: [n for n in v if n in needs] for k, v in needs.items()}
        assert len(states.order(known)) == len(needs)


def test_every_cycle_of_a_plan_is_named_at_once() -> None:
    needs = {"a": ["b"], "b": ["a", "c"], "c": ["b"], "d": ["e"], "e": ["d", "nobody"]}
    tasks = [{"id": key, "title": key, "instructions": key, "depends_on": on} for key, on in needs.items()]
    with pytest.raises(BadInput) as refused:
        plan.parse({"kind": plan.KIND, "title": "t", "tasks": tasks})
    told = [fault.message.rpartition(": ")[2] for fault in refused.value.faults if "cycle" in fault.message]
    assert told == ["a -> b -> a", "b -> c -> b", "d -> e -> d"]
    assert any("'nobody'" in fault.message for fault in refused.value.faults)


def test_a_plan_of_nothing_but_cycles_is_refused_soon() -> None:
    keys = [f"t{number}" for number in range(plan.MAX_TASKS)]
    tasks = [{"id": key, "title": key, "instructions": key, "depends_on": keys} for key in keys]
    with pytest.raises(BadInput) as refused:
        plan.parse({"kind": plan.KIND, "title": "t", "tasks": tasks})
    assert len([fault for fault in refused.value.faults if "cycle" in fault.message]) == plan.MAX_CYCLES


def test_a_failed_step_lets_independent_steps_finish_first() -> None:
    failed = StepView("a", (), StepState.FAILED)
    waiting = StepView("b", ("a",), StepState.PENDING)
    moving = StepView("c", (), StepState.RUNNING)
    assert states.workflow_state([failed, waiting, moving]) is states.WorkflowState.RUNNING
    assert states.workflow_state([failed, waiting]) is states.WorkflowState.FAILED
