"""What the CLI gives of a draft, without an API."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hyperagent_api.cli import work
from hyperagent_common import plan as plans

PLAN = {"kind": plans.KIND, "title": "t", "tasks": [{"id": "a", "title": "a", "instructions": "ä"}]}
DRAFT = {"id": "d", "state": "done", "project": "p", "plan": PLAN, "reason": None}


@pytest.mark.parametrize("as_json", [False, True])
def test_the_file_of_a_draft_is_a_plan_that_can_be_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    out = tmp_path / "plan"
    work._give(DRAFT, out, as_json)
    assert plans.parse(work.read_plan(str(out))).title == "t"
    told = capsys.readouterr()
    assert f"hyperagent run {out}" in told.err
    assert (json.loads(told.out) == DRAFT) if as_json else told.out == ""


def test_without_a_file_a_plan_or_the_draft_itself_is_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    work._give(DRAFT, None, True)
    assert json.loads(capsys.readouterr().out) == DRAFT
    work._give(DRAFT, None, False)
    assert capsys.readouterr().out.startswith("kind: ")
