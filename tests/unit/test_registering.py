"""Registering a project on its host, with the stand-in forge and real git, on SQLite and PostgreSQL alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from hyperagent_common import db
from hyperagent_common import settings as config
from hyperagent_common.forge_models import ProjectChange
from hyperagent_common.ids import new_id
from hyperagent_common.models import Project
from hyperagent_common.states import ProjectState
from hyperagent_tasks import handover, projects
from hyperagent_tasks.gitgate import new_repository
from hyperagent_tasks.parts import Parts


@pytest.fixture(params=["sqlite", "postgres"])
def parts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Parts]:
    """The parts of a host on a fresh database of each kind, and repositories `a` and `b`."""
    env = {"HYPERAGENT_HOME": str(tmp_path / "home"), "HYPERAGENT_FORGE": "stand-in"}
    if request.param == "postgres":
        env["HYPERAGENT_DATABASE_URL"] = request.getfixturevalue("postgres_url")
    (tmp_path / "home").mkdir()
    loaded = config.load(env)
    db.upgrade(loaded.db_url)
    for name in ("a", "b"):
        new_repository(tmp_path / name, {name: b"1\n"}, message=name)
    celery = Celery("t", broker="memory://", set_as_current=False)
    yield Parts(loaded, celery)
    db.engine(loaded.db_url).dispose()


def row(parts: Parts, name: str, source: Path | str) -> Project:
    """A project that asks to be registered."""
    with db.transaction(parts.settings.db_url) as session:
        asked = {"name": name, "source": str(source), "default_branch": "", "state": ProjectState.REGISTERING}
        made = Project(id=new_id(), created_at=db.now(session), settings={}, **asked)
        session.add(made)
    return made


def read(parts: Parts, project: Project) -> Project:
    """The project as it is now."""
    with db.transaction(parts.settings.db_url, reading=True) as session:
        return session.get_one(Project, project.id)


def test_a_project_is_registered_once(parts: Parts, tmp_path: Path) -> None:
    asked = row(parts, "p", tmp_path / "a")
    projects.register(parts, asked.id)
    first = read(parts, asked)
    assert (first.state, first.default_branch) == (ProjectState.READY, "main")
    projects.register(parts, asked.id)
    assert read(parts, asked).rid == first.rid


def test_what_was_registered_from_a_source_the_row_no_longer_names_is_not_its_repository(parts: Parts, tmp_path: Path) -> None:
    asked = row(parts, "p", tmp_path / "a")
    with db.transaction(parts.settings.db_url) as session:
        session.get_one(Project, asked.id).source = str(tmp_path / "b")
    projects._ready(parts, asked, "rad:zofa", "main")
    projects._write(parts.settings.db_url, asked, state=ProjectState.FAILED)
    now = read(parts, asked)
    assert (now.state, now.rid, now.source) == (ProjectState.REGISTERING, None, str(tmp_path / "b"))


def test_a_row_that_was_removed_meanwhile_is_no_fault(parts: Parts, tmp_path: Path) -> None:
    asked = row(parts, "p", tmp_path / "a")
    with db.transaction(parts.settings.db_url) as session:
        session.delete(session.get_one(Project, asked.id))
    projects._ready(parts, asked, "rad:zofa", "main")
    projects.register(parts, asked.id)


@pytest.mark.parametrize("spelt", ["link", "link/../b/../a"])
def test_one_repository_is_one_project_whichever_way_leads_to_it(parts: Parts, tmp_path: Path, spelt: str) -> None:
    (tmp_path / "link").symlink_to("a")
    first, other = row(parts, "p", tmp_path / "a"), row(parts, "q", f"{tmp_path}/{spelt}")
    projects.register(parts, first.id)
    projects.register(parts, other.id)
    told = read(parts, other)
    assert (told.state, told.faults[0]["type"]) == (ProjectState.FAILED, "conflict")
    assert "'p'" in told.faults[0]["message"]


def test_a_change_whose_message_comes_twice_is_applied_once_and_stays_done(parts: Parts, tmp_path: Path) -> None:
    asked, url = row(parts, "p", tmp_path / "a"), parts.settings.db_url
    projects.register(parts, asked.id)
    with db.transaction(url) as session:
        now = db.now(session)
        change = ProjectChange(id=new_id(), project_id=asked.id, version=read(parts, asked).version, values={}, created_at=now)
        session.add(change)
    with pytest.MonkeyPatch.context() as patch:
        verified = projects._verified

        def slow(*said: Any) -> str:
            patch.setattr(projects, "_verified", verified)
            projects.change(parts, change.id)  # the second delivery, while the first is still at work
            return verified(*said)

        patch.setattr(projects, "_verified", slow)
        projects.change(parts, change.id)
    with db.transaction(url, reading=True) as session:
        found = session.get_one(ProjectChange, change.id)
        assert (found.state, found.faults) == ("done", [])
    assert read(parts, asked).version == change.version + 1


def test_a_head_that_was_seen_before_another_wrote_a_newer_one_is_not_written(parts: Parts, tmp_path: Path) -> None:
    project = row(parts, "a", tmp_path / "a")
    projects.register(parts, project.id)
    newer = "e" * 40

    def head() -> str | None:
        with db.transaction(parts.settings.db_url, reading=True) as session:
            return session.get_one(Project, project.id).head

    first = head()
    assert first
    with db.transaction(parts.settings.db_url) as session:
        session.get_one(Project, project.id).head = newer
    handover.keep_default(parts, project.id, "a", first, None)
    assert head() == newer
    handover.keep_default(parts, project.id, "a", first, newer)
    assert head() == first
