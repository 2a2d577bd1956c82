"""Every agent run has an end in its row, with what the gateway saw, whatever ended it and whoever has to write it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hyperagent_common import db
from hyperagent_common.errors import DependencyDown
from hyperagent_tasks import conversing
from hyperagent_tasks.parts import Parts
from hyperagent_tasks.runners.base import RunSpec
from hyperagent_tasks.runners.fake import Play
from tests import desk
from tests.unit.test_claims import LINE, Sent, app, steps, submitted, take

__all__ = ["app"]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A migrated database."""
    made = f"sqlite:///{tmp_path / 'h.db'}"
    db.upgrade(made)
    return made


def spend(parts: Parts, tokens: int = 100) -> None:
    """The agent under way asks its model once; the gateway's books and its call log say so."""
    run = parts.gateway.now().run  # type: ignore[attr-defined]
    run.observed.requests, run.observed.input, run.observed.output = 1, tokens, 10
    run.observed.answer("replay/demo", desk.SAID)
    entry = {
        "agent_run": run.grant.agent_run_id,
        "number": 1,
        "tokens": {"input": tokens, "output": 10, "cached": 0},
        "cost": None,
    }
    Path(run.grant.log_path).write_text(json.dumps(entry) + '\n{"agent_run": "cut')


def test_a_run_that_ends_well_has_its_end_and_its_figures(url: str, app: Sent) -> None:
    def play(_spec: RunSpec) -> Play:
        spend(parts)
        return Play(desk.lines())

    parts = desk.host(url, app, play)
    step, work, lease = desk.claimed(parts, take(url, app, steps(url, submitted(url, app, LINE))["a"]))
    assert conversing.run(parts, step, desk.turn(work), lease).outcome.ok
    (row,) = desk.runs(parts)
    assert (row.end_reason, row.input_tokens, row.exit_code, row.finished_at is None) == ("done", 100, 0, False)
    assert {"agent-stream.jsonl", "gateway.jsonl"} <= set(desk.artifacts(parts))


def test_a_gateway_started_anew_is_a_dependency_down_and_the_tokens_are_booked(url: str, app: Sent) -> None:
    def play(_spec: RunSpec) -> Play:
        spend(parts)
        parts.gateway.restart()  # type: ignore[attr-defined]
        return Play(
            json.dumps({"type": "error", "error": {"name": "APIError", "data": {"statusCode": 401}}}).encode(), exit_code=1
        )

    parts = desk.host(url, app, play)
    step, work, lease = desk.claimed(parts, take(url, app, steps(url, submitted(url, app, LINE))["a"]))
    with pytest.raises(DependencyDown, match="started anew"):
        conversing.run(parts, step, desk.turn(work), lease)
    (row,) = desk.runs(parts)
    assert (row.end_reason, row.requests, row.input_tokens, row.output_tokens) == ("provider", 1, 100, 10)
