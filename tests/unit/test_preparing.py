"""What a step needs is looked at before an agent spends anything; what only this host lacks is waited for."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from hyperagent_common import db
from hyperagent_common.errors import DependencyDown, NotReady, Permanent
from hyperagent_common.models import Project, WorkflowStep
from hyperagent_common.states import StepState
from hyperagent_tasks import steps
from hyperagent_tasks.parts import Parts
from hyperagent_tasks.runners.fake import Play
from tests import desk
from tests.unit.test_claims import LINE, Sent, app, submitted
from tests.unit.test_claims import steps as rows

__all__ = ["app"]


@pytest.fixture
def host(tmp_path: Path, app: Sent) -> Parts:
    """A host with a submitted workflow, whose project the forge knows."""
    url = f"sqlite:///{tmp_path / 'h.db'}"
    db.upgrade(url)
    submitted(url, app, LINE)
    with db.transaction(url) as session:
        session.query(Project).update({"rid": "rad:z1"})
    return desk.host(url, app, lambda _spec: Play())


def run(host: Parts) -> WorkflowStep:
    """The first step after an attempt that came to nothing, before any container."""
    with db.transaction(host.settings.db_url, reading=True) as session:
        row = session.query(WorkflowStep).filter_by(key="a").one()
    with pytest.raises((DependencyDown, Permanent)):
        steps.run_step(host, row.id, row.generation)
    assert not host.runner.specs  # type: ignore[attr-defined]
    return rows(host.settings.db_url, row.workflow_id)["a"]


@pytest.mark.parametrize("part", ["runner", "forge"])
def test_a_part_that_only_this_host_lacks_is_waited_for_at_no_cost(host: Parts, part: str) -> None:
    pruned = NotReady("The image is not on this host.", mend="Build it.")
    host.__dict__[part] = Mock(wraps=getattr(host, part), check=Mock(side_effect=pruned), specs=[])
    row = run(host)
    assert (row.state, row.free_attempts) == (StepState.QUEUED, 1)
    assert row.reason == "The image is not on this host. Build it."


def test_a_storage_that_is_away_is_noticed_before_an_agent_works_for_it(host: Parts) -> None:
    host.__dict__["storage"] = Mock(check=Mock(side_effect=DependencyDown("The storage cannot be used.")))
    row = run(host)
    assert (row.state, row.free_attempts) == (StepState.QUEUED, 1)
    assert "storage" in str(row.reason)


def test_what_no_host_has_is_still_a_dead_letter_at_once(host: Parts) -> None:
    with db.transaction(host.settings.db_url) as session:
        session.query(Project).update({"rid": None})
    assert run(host).state == StepState.FAILED
