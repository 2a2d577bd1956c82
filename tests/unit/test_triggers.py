"""Triggers: rules read strictly, what an event says is only data, and each event is handled once on every database."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from hyperagent_common import db, plan, projects, triggers
from hyperagent_common import settings as config
from hyperagent_common.forge_models import TriggerEvent, TriggerMark
from hyperagent_common.ids import new_id
from hyperagent_common.models import Project, RunnerEvent, Workflow
from hyperagent_common.states import ProjectState
from hyperagent_common.triggers import COMMENT, PUSH, Happened
from hyperagent_tasks import triggering
from hyperagent_tasks.parts import Parts
from hyperagent_tasks.radicle.base import Activity, Comment
from hyperagent_tasks.radicle.standin import StandInForge
from hyperagent_tasks.triggering import Around

PEER, OWN, STRANGER = (f"did:key:z6Mk{letter * 44}" for letter in "abc")
PATCH = "0" * 40


def rule(on: str = COMMENT, **more: Any) -> dict[str, Any]:
    """A rule without faults."""
    task = {"id": "a", "title": "t", "instructions": "i {{comment}}" if on == COMMENT else "i {{commit}}"}
    made: dict[str, Any] = {"on": on, "plan": {"kind": plan.KIND, "title": "By {{author}}", "tasks": [task]}}
    return {**made, **({"match": "^/fix"} if on == COMMENT else {}), **more}


def comment(text: str, author: str = PEER, name: str = "c1") -> Happened:
    """A comment on a patch."""
    return Happened(COMMENT, f"{PATCH}:{name}", (author,), text, patch=PATCH)


@pytest.mark.parametrize(
    ("value", "field", "word"),
    [
        ({}, "triggers", "must be a list"),
        ([1], "triggers[0]", "must be a mapping"),
        ([rule(colour=1)], "triggers[0].colour", "unknown field"),
        ([rule(name="No")], "triggers[0].name", "a-z"),
        ([rule(name="x"), rule(name="x")], "triggers", "alike"),
        ([{**rule(), "on": "issue"}], "triggers[0].on", "must be one of"),
        ([rule(match="(")], "triggers[0].match", "is no regular expression"),
        ([rule(match="")], "triggers[0].match", "must be a regular expression"),
        ([rule(match="(a+)+$")], "triggers[0].match", "for ever"),
        ([rule(match="(a|a)*$")], "triggers[0].match", "for ever"),
        ([rule(match="a*b*c*d*")], "triggers[0].match", "for ever"),
        ([rule(branch="main")], "triggers[0].branch", "only for push"),
        ([rule(PUSH, branch="a..b")], "triggers[0].branch", "must name a branch"),
        ([rule(**{"from": ["alice"]})], "triggers[0].from", "DIDs"),
        ([rule(**{"from": []})], "triggers[0].from", "DIDs"),
        ([rule(per_hour=0)], "triggers[0].per_hour", "1 to 60"),
        ([{"on": PUSH}], "triggers[0].plan", "must be a mapping"),
        ([rule(plan={**rule()["plan"], "title": "{{comment}}"})], "triggers[0].plan.title", "it takes patch, author"),
        ([rule(PUSH, plan=rule()["plan"])], "triggers[0].plan.tasks[0].instructions", "placeholder comment"),
        (
            [rule(plan={**rule()["plan"], "tasks": [{**rule()["plan"]["tasks"][0], "checks": ["echo {{comment}}"]}]})],
            "triggers[0].plan.tasks[0].checks[0]",
            "takes none",
        ),
    ],
)
def test_a_wrong_rule_is_named(value: Any, field: str, word: str) -> None:
    told = {fault.field: fault.message for fault in triggers.faults(value, "triggers")}
    assert word in told.get(field, ""), told


def test_rules_without_faults_are_read_with_their_defaults() -> None:
    value = [rule(), rule(PUSH, per_hour=2, **{"from": [PEER]})]
    assert triggers.faults(value, "triggers") == []
    first, second = triggers.read(value, "main")
    assert (first.name, first.per_hour, first.authors) == ("trigger-1", 6, ())
    assert (second.name, second.branch, second.authors) == ("trigger-2", "main", (PEER,))


@given(st.text(max_size=6000))
def test_whatever_a_comment_says_it_is_one_line_of_data(text: str) -> None:
    made = triggers.filled(rule()["plan"], comment(text))
    told = made["tasks"][0]["instructions"]
    assert told.isascii()
    assert told.isprintable()
    assert json.loads(told.removeprefix("i ")) == text[: triggers.QUOTED]
    assert plan.parse(made).title == f"By {PEER}"


@pytest.fixture(params=["sqlite", "postgres"])
def parts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Parts]:
    """The parts of a host on a fresh database of each kind, with the project `p`."""
    env = {"HYPERAGENT_HOME": str(tmp_path), "HYPERAGENT_FORGE": "stand-in"}
    if request.param == "postgres":
        env["HYPERAGENT_DATABASE_URL"] = request.getfixturevalue("postgres_url")
    loaded = config.load(env)
    db.upgrade(loaded.db_url)
    with db.transaction(loaded.db_url) as session:
        values = {"name": "p", "source": "/p", "default_branch": "main", "state": ProjectState.READY, "rid": "rad:zp"}
        row = Project(id=new_id(), created_at=db.now(session), settings={"triggers": [rule(per_hour=2)]}, **values)
        session.add(row)
        session.flush()
        projects.mark_triggers(session, row)
    celery = Celery("t", broker="memory://", set_as_current=False)
    celery.conf.task_routes = {}
    yield Parts(loaded, celery)
    db.engine(loaded.db_url).dispose()


def handle(parts: Parts, *found: Happened, delegates: tuple[str, ...] = (PEER,)) -> list[str]:
    """Decide about these events."""
    with db.transaction(parts.settings.db_url, reading=True) as session:
        project_id = session.query(Project.id).scalar()
    return triggering.handle(parts, str(project_id), [(each, None) for each in found], Around(delegates, (OWN,)))


def outcomes(parts: Parts) -> list[tuple[str, str]]:
    """Outcome and rule of every event."""
    with db.transaction(parts.settings.db_url, reading=True) as session:
        return [(row.outcome, row.rule) for row in session.query(TriggerEvent).order_by(TriggerEvent.id)]


def test_an_event_is_handled_once_however_often_and_by_however_many_it_is_seen(parts: Parts) -> None:
    threads = [threading.Thread(target=handle, args=(parts, comment("/fix"), comment("talk", name="c2"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes(parts)) == [("fired", "trigger-1"), ("passed", "")]
    with db.transaction(parts.settings.db_url, reading=True) as session:
        assert session.query(Workflow).count() == 1
        kinds = [row.kind for row in session.query(RunnerEvent).order_by(RunnerEvent.id)]
    assert kinds == ["workflow.submitted", "step.queued", "trigger.fired"]


def test_own_strangers_and_too_many_start_nothing_and_are_told_in_few_words(parts: Parts) -> None:
    flood = [comment("/fix", STRANGER, f"s{i}") for i in range(200)]
    mine = [comment("/fix", OWN, "own"), *(comment("/fix", PEER, f"p{i}") for i in range(5))]
    assert len(handle(parts, *flood, *mine)) == 2
    told = outcomes(parts)
    assert told.count(("refused", "")) == 200
    assert told.count(("refused", "trigger-1")) == 3
    assert told.count(("passed", "")) == 1
    with db.transaction(parts.settings.db_url, reading=True) as session:
        refused = [row.data for row in session.query(RunnerEvent).filter(RunnerEvent.kind == "trigger.refused")]
    assert sorted(entry["count"] for entry in refused) == [3, 200]


def test_without_delegates_nobody_may(parts: Parts) -> None:
    assert handle(parts, comment("/fix"), delegates=()) == []
    assert handle(parts, comment("/fix", name="c2"), delegates=(OWN,)) == []
    assert {outcome for outcome, _ in outcomes(parts)} == {"refused"}


def test_a_removed_project_starts_nothing_and_rules_taken_away_forget_where_they_were(parts: Parts) -> None:
    url = parts.settings.db_url
    with db.transaction(url) as session:
        project = session.query(Project).one()
        projects.apply(session, project.id, None, {"settings": {"triggers": None}})
    with db.transaction(url) as session:
        assert session.query(TriggerMark).count() == 0
        projects.remove(session, "p", None)
    assert handle(parts, comment("/fix")) == []
    assert outcomes(parts) == []


class Network(StandInForge):
    """A network in which people comment and push, and reading may fail."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts.settings.home / "rad", parts.gitgate)
        self.now, self.said, self.unread = Activity(OWN, (PEER,)), list[Comment](), list[str]()
        self.asked = list[list[str]]()

    def activity(self, rid: str, branches: Sequence[str]) -> Activity:
        """What is there now."""
        return self.now

    def comments(self, rid: str, patches: Sequence[str]) -> tuple[list[Comment], list[str]]:
        """What was said where it can be read."""
        self.asked.append(list(patches))
        readable = [c for c in self.said if c.patch in patches and c.patch not in self.unread]
        return readable, [p for p in patches if p in self.unread]

    def comment(self, patch: str, name: str, at: datetime) -> None:
        """Somebody comments."""
        self.said.append(Comment(patch, name, PEER, int(at.timestamp() * 1000), "/fix it"))
        self.now = replace(self.now, patches={**self.now.patches, patch: name})


@pytest.fixture
def network(parts: Parts) -> Network:
    """The forge of `parts`."""
    made = Network(parts)
    parts.__dict__["forge"] = made
    return made


def look(parts: Parts) -> list[str]:
    """One look at the project."""
    with db.transaction(parts.settings.db_url, reading=True) as session:
        project = session.query(Project).one()
    return triggering.scan(parts, project)


def test_a_comment_on_a_patch_that_cannot_be_read_once_is_not_lost_and_hides_no_other(parts: Parts, network: Network) -> None:
    look(parts)
    now = datetime.now(UTC)
    network.comment("1" * 40, "c1", now)
    network.comment("2" * 40, "c2", now)
    network.unread = ["1" * 40]
    assert len(look(parts)) == 1
    network.unread = []
    assert len(look(parts)) == 1
    assert look(parts) == []
    assert network.asked[-1] == []


def test_a_patch_that_never_can_be_read_is_tried_ever_more_rarely(parts: Parts, network: Network) -> None:
    network.comment("1" * 40, "c1", datetime.now(UTC))
    network.unread = ["1" * 40]
    for _ in range(40):
        look(parts)
    tries = [number for number, asked in enumerate(network.asked) if asked]
    assert tries == [0, 1, 2, 4, 8, 16, 32]


def test_what_was_said_before_the_rule_starts_nothing_though_it_is_read_late(parts: Parts, network: Network) -> None:
    network.comment("1" * 40, "old", datetime.now(UTC) - timedelta(hours=1))
    network.unread = ["1" * 40]
    look(parts)
    network.unread = []
    network.comment("1" * 40, "new", datetime.now(UTC))
    assert len(look(parts)) == 1
    assert sorted(outcomes(parts)) == [("before", ""), ("fired", "trigger-1")]


def pushed(network: Network, branch: str, *, canonical: str = "", **heads: str) -> None:
    """Heads of a branch: the canonical one, where there is one, and the peer's and the stranger's own."""
    own = {{"peer": PEER, "stranger": STRANGER}[who]: head * 40 for who, head in heads.items()}
    branches = {branch: canonical * 40} if canonical else {}
    network.now = replace(network.now, branches=branches, heads={branch: own})


def ruled(parts: Parts, *rules: dict[str, Any]) -> None:
    """The project has these rules."""
    with db.transaction(parts.settings.db_url) as session:
        session.query(Project).one().settings = {"triggers": list(rules)}


def fired(parts: Parts) -> list[str]:
    """Subjects of the events that started a workflow."""
    with db.transaction(parts.settings.db_url, reading=True) as session:
        rows = session.query(TriggerEvent).filter_by(outcome="fired").order_by(TriggerEvent.id)
        return [row.subject for row in rows]


def test_a_push_to_a_branch_without_a_canonical_head_is_each_delegates_own(parts: Parts, network: Network) -> None:
    ruled(parts, rule(PUSH, branch="develop"))
    pushed(network, "develop", stranger="a")
    look(parts)
    pushed(network, "develop", stranger="b", peer="c")
    look(parts)
    pushed(network, "develop", stranger="b", peer="d")
    look(parts)
    look(parts)
    assert fired(parts) == [f"develop:{head * 40}:{PEER}" for head in "cd"]
    assert len(outcomes(parts)) == 2


def test_a_push_by_somebody_named_who_is_no_delegate_counts_and_only_once(parts: Parts, network: Network) -> None:
    ruled(parts, rule(PUSH, name="named", **{"from": [STRANGER]}), rule(PUSH, name="delegates"))
    pushed(network, "main", canonical="a", peer="a", stranger="a")
    look(parts)
    pushed(network, "main", canonical="a", peer="a", stranger="b")
    look(parts)
    assert fired(parts) == [f"main:{'b' * 40}:{STRANGER}"]
    pushed(network, "main", canonical="b", peer="b", stranger="b")
    look(parts)
    assert outcomes(parts) == [("fired", "named"), ("fired", "delegates")]


def test_what_a_delegate_pushes_beside_the_canonical_head_starts_nothing(parts: Parts, network: Network) -> None:
    ruled(parts, rule(PUSH), rule(PUSH, **{"from": [PEER]}))
    pushed(network, "main", canonical="a", peer="a")
    look(parts)
    pushed(network, "main", canonical="a", peer="b", stranger="c")
    look(parts)
    assert outcomes(parts) == []
