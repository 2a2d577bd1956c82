"""What is chosen for a step: layers, verify that cannot be undone, budgets that only tighten, fallback decided purely."""

from __future__ import annotations

from typing import Any

import pytest

from hyperagent_common import choices, plan
from hyperagent_common.choices import Amount, Choice
from hyperagent_common.errors import BadInput
from hyperagent_common.settings import Settings
from hyperagent_tasks import budget, fallback
from hyperagent_tasks.budget import Spent
from hyperagent_tasks.fallback import Next, Stop

BASE = Settings().choices()
LIST = [Choice("opencode", "a/m"), Choice("claude", "b/m")]


def test_an_inner_layer_overrides_an_outer_one() -> None:
    found = choices.settle(BASE, {"agent_model": "p/one"}, {"agent_model": "p/two", "agent_max_rounds": 5}, {})
    assert found.coder.model == "p/two"
    assert found.verifier == found.planner == found.coder
    assert found.rounds == 5


def test_the_verifier_may_have_an_agent_of_its_own() -> None:
    found = choices.settle(BASE, {"verifier_model": "p/judge"})
    assert found.verifier.model == "p/judge"
    assert found.coder.model == "replay/demo"


@pytest.mark.parametrize(
    ("layers", "verify"),
    [
        (["on"], True),
        (["on", None, "off"], False),
        (["on", "always", "off"], True),
        (["always", False], True),
        (["off"], False),
        (["off", "always", False], True),
        (["off", True], True),
    ],
)
def test_verify_always_cannot_be_undone_further_in(layers: list[Any], verify: bool) -> None:
    assert choices.settle(BASE, *[{} if v is None else {"verify": v} for v in layers]).verify is verify


def test_budgets_only_get_tighter() -> None:
    outer = {"budgets": {"step": {"tokens": 100}, "project": {"usd": 5}}}
    found = choices.settle({**BASE, **outer}, {"budgets": {"step": {"tokens": 1000, "usd": 1}}})
    assert found.budgets == {"step": Amount(tokens=100, usd=1), "project": Amount(usd=5)}


@pytest.mark.parametrize(
    "wrong",
    [
        {"agent_model": "nomodel"},
        {"agent_max_rounds": 0},
        {"agent_max_rounds": True},
        {"agent_fallback": ["opencode"]},
        {"agent_fallback": [{"provider": "opencode"}]},
        {"verify": "always"},
        {"verify": 3},
        {"budgets": {"step": {"tokens": -1}}},
        {"budgets": {"year": {"tokens": 1}}},
        {"prompts": {"coder": "x"}},
    ],
)
def test_a_plan_with_a_wrong_choice_is_refused_by_name(wrong: dict[str, Any]) -> None:
    task = {"id": "a", "title": "A", "instructions": "Do a."}
    for document in ({"settings": wrong, "tasks": [task]}, {"tasks": [{**task, "metadata": wrong}]}):
        with pytest.raises(BadInput) as error:
            plan.parse({"kind": plan.KIND, "title": "T", **document})
        assert any(next(iter(wrong)) in fault.field for fault in error.value.faults)


@pytest.mark.parametrize("reason", ["quota", "auth", "rate_limit", "provider", "crashed", "model_not_found", "timed_out"])
def test_an_outage_passes_the_work_on(reason: str) -> None:
    found = fallback.decide(reason, LIST, 1)
    assert isinstance(found, Next)
    assert found.choice == LIST[1]


@pytest.mark.parametrize("reason", ["no_change", "refused", "budget", "cancelled", "context", "done"])
def test_what_another_agent_would_not_mend_stops(reason: str) -> None:
    assert isinstance(fallback.decide(reason, LIST, 1), Stop)


def test_the_end_of_the_list_and_a_spent_budget_stop() -> None:
    assert isinstance(fallback.decide("quota", LIST, 2), Stop)
    assert isinstance(fallback.decide("quota", LIST, 1, budget_left=False), Stop)


def test_the_smallest_rest_over_all_scopes_is_left() -> None:
    limits = {"step": Amount(tokens=100, usd=2), "project": Amount(tokens=1000, seconds=60)}
    spent = {"step": Spent(tokens=40, usd=0.5), "project": Spent(tokens=950, seconds=10)}
    found = budget.left(limits, spent)
    assert (found.tokens, found.usd, found.seconds, found.spent) == (50, 1.5, 50, None)


def test_a_spent_budget_is_named_and_a_resume_gives_it_once_more() -> None:
    limits = {"workflow": Amount(tokens=100)}
    found = budget.left(limits, {"workflow": Spent(tokens=120)})
    assert (found.scope, found.tokens) == ("workflow", 0)
    assert "120 tokens of 100" in str(found.spent)
    assert budget.left(limits, {"workflow": Spent(tokens=120, grants=1)}).tokens == 80


def test_publish_is_false_where_the_project_or_the_plan_says_so() -> None:
    assert choices.settle(BASE).publish
    assert not choices.settle(BASE, {"publish": False}, {"publish": True}).publish
    assert not choices.settle(BASE, {}, {"publish": False}, {}).publish


def test_publish_is_no_matter_of_a_planner_task_and_is_true_or_false() -> None:
    assert [f.field for f in choices.faults({"publish": "no"}, "settings.")] == ["settings.publish"]
    assert [f.field for f in choices.faults({"publish": False}, "tasks[0].metadata.")] == ["tasks[0].metadata.publish"]
    assert choices.faults({"publish": False}, "settings.") == []
