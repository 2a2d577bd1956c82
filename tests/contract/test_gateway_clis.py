"""What the gateway does for each real CLI where its provider fails: no call is executed twice, a run moves to another model.

opencode 1.18 before a gateway that gave calls on at once wrote `once` twice here and then had no turn left to ask for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.agent_bench import ALL, DONE, Bench, make
from tests.contract.test_gateway import Served, start

APPEND = {"text": "I note it.", "calls": [{"op": "shell", "command": "echo once >> hello.txt"}]}
AFTER_THE_CALL = {"opencode": 2, "mock": 2, "codex": 6, "claude": 7, "gemini": 1}
"""Events of the answer up to and with the call; Gemini's call comes with the end."""
SPENT = {"turn": 1, "status": 402, "message": "insufficient_quota"}


class Moving(Served):
    """A gateway whose grants may all be moved to `replay/second`."""

    def grant(self, **changes: Any) -> Any:
        """A token and its grant."""
        return super().grant(fallback=("replay/second",), **changes)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway with a script for each CLI, and two that follow each other."""
    scenarios = tmp_path_factory.mktemp("scenarios")
    faults: dict[str, list[dict[str, Any]]] = {"first": [SPENT], "second": []}
    for name, events in AFTER_THE_CALL.items():
        faults[name] = [{"turn": 0, "attempts": 1, "stall_at": events, "stall_s": 4, "cut_after": events}]
    for name, each in faults.items():
        document = {"scenario": name, "scripts": {"*": {"*": {"turns": [APPEND, DONE], "faults": each}}}}
        (scenarios / f"{name}.yaml").write_text(yaml.safe_dump(document))
    yield from start(tmp_path_factory.mktemp("g"), scenarios, {})


@pytest.fixture(params=ALL)
def bench(request: pytest.FixtureRequest, tmp_path: Path, gateway: Served) -> Iterator[Bench]:
    """Each agent in each runner it is meant for."""
    yield from make(request.param, tmp_path, gateway)


def test_a_tool_call_of_a_cut_answer_is_executed_once(bench: Bench) -> None:
    ran = bench.run(bench.name, timeout=280)
    assert ran.outcome.ok, (ran.outcome, ran.observed.failures)
    assert (ran.ws / "hello.txt").read_text() == "once\n"
    assert [failure["class"] for failure in ran.observed.failures] == ["transport"]
    assert ran.observed.last_failure is None


def test_a_provider_without_quota_is_left_in_the_middle_of_a_conversation(bench: Bench) -> None:
    bench.gateway = Moving(bench.gateway.client, bench.gateway.home)
    ran = bench.run("first", timeout=280)
    assert ran.outcome.ok, (ran.outcome, ran.observed.failures)
    assert (ran.ws / "hello.txt").read_text() == "once\n"
    assert [(switch["to"], switch["why"]) for switch in ran.observed.switches] == [("replay/second", "quota")]
    assert ran.observed.answered == {"replay/first": 1, "replay/second": 1}
