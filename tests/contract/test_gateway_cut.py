"""A stream that is cut after a tool call, with time enough to execute it: each real CLI must execute it once, not twice.

opencode 1.18 before a gateway that gave calls on at once wrote `once` twice here and then had no turn left to ask for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.contract.agent_bench import ALL, DONE, Bench, make
from tests.contract.test_gateway import Served, start

APPEND = {"text": "I note it.", "calls": [{"op": "shell", "command": "echo once >> hello.txt"}]}
AFTER_THE_CALL = {"opencode": 2, "mock": 2, "codex": 6, "claude": 7, "gemini": 1}
"""Events of the answer up to and with the call; Gemini's call comes with the end."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway with a script for each CLI."""
    scenarios = tmp_path_factory.mktemp("scenarios")
    for name, events in AFTER_THE_CALL.items():
        fault = {"turn": 0, "attempts": 1, "stall_at": events, "stall_s": 4, "cut_after": events}
        script = {"turns": [APPEND, DONE], "faults": [fault]}
        document = {"scenario": name, "scripts": {"*": {"*": script}}}
        (scenarios / f"{name}.yaml").write_text(yaml.safe_dump(document))
    yield from start(tmp_path_factory.mktemp("g"), scenarios, {})


@pytest.fixture(params=ALL)
def bench(request: pytest.FixtureRequest, tmp_path: Path, gateway: Served) -> Iterator[Bench]:
    """Each agent in each runner it is meant for."""
    yield from make(request.param, tmp_path, gateway)


def test_a_tool_call_of_a_cut_answer_is_executed_once(bench: Bench) -> None:
    ran = bench.run(bench.name, timeout=200)
    assert ran.outcome.ok, (ran.outcome, ran.observed.failures)
    assert (ran.ws / "hello.txt").read_text() == "once\n"
    assert [failure["class"] for failure in ran.observed.failures] == ["transport"]
    assert ran.observed.last_failure is None
