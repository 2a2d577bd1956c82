"""Which parts a host chooses, and what it says where those it chose before cannot be used now."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from docker.errors import DockerException, ImageNotFound

from hyperagent_common import settings
from hyperagent_common.errors import DependencyDown, HyperagentError, NotReady
from hyperagent_common.settings import Settings
from hyperagent_tasks import parts, requirements
from hyperagent_tasks.parts import Parts
from hyperagent_tasks.radicle import choose as forges
from hyperagent_tasks.runners.fake import FakeRunner

AWAY, MISSING = DependencyDown("The Docker engine is not running.", mend="Start it."), NotReady("No image.", mend="Build it.")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A host that ran agents in Docker and published to Radicle before; whose engine is away now."""
    loaded = settings.load({"HYPERAGENT_HOME": str(tmp_path)})
    loaded.run_dir.mkdir()
    (loaded.run_dir / "chosen.json").write_text(json.dumps({"sandbox": "docker", "agent": "opencode", "forge": "radicle"}))
    monkeypatch.setattr(parts, "make_runner", lambda *_: FakeRunner(fault=AWAY))
    monkeypatch.setattr(forges, "missing", lambda _: AWAY)
    return loaded


@pytest.mark.parametrize("chosen", [{"forge": "stand-in"}, {"sandbox": "docker"}])
def test_an_engine_that_is_away_is_waited_for_where_it_was_there_before(host: Settings, chosen: dict[str, str]) -> None:
    asked = Parts(replace(host, **chosen))  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(DependencyDown, match=r"before, and now it cannot be used: The Docker engine is not") as told:
            _ = asked.chosen
        assert told.value.mend.startswith("Start it. Or set HYPERAGENT_")
    assert requirements.lacking(asked) is None  # the worker starts


def test_once_it_is_back_the_same_worker_goes_on(host: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Parts(host)
    with pytest.raises(DependencyDown):
        _ = asked.chosen
    monkeypatch.setattr(parts, "make_runner", lambda *_: FakeRunner())
    monkeypatch.setattr(forges, "missing", lambda _: None)
    assert (asked.chosen.sandbox, asked.chosen.forge) == ("docker", "radicle")


def test_what_is_missing_is_not_said_to_be_away(host: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forges, "missing", lambda _: MISSING)
    with pytest.raises(NotReady, match="Patches went to Radicle on this host before"):
        parts.choose(replace(host, sandbox="process"))
    monkeypatch.setattr(parts, "make_runner", lambda *_: FakeRunner(fault=MISSING))
    with pytest.raises(NotReady, match="Agents ran in Docker on this host before"):
        parts.choose(replace(host, forge="stand-in"))


@pytest.mark.parametrize(
    ("error", "kind"), [(ImageNotFound("no"), NotReady), (DockerException("no"), DependencyDown), (None, type(None))]
)
def test_an_engine_without_the_image_is_told_from_no_engine(
    host: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception | None, kind: type[HyperagentError]
) -> None:
    class Images:
        def get(self, _name: str) -> None:
            if error:
                raise error

    monkeypatch.undo()
    monkeypatch.setattr(forges, "host_programs", lambda: None)
    monkeypatch.setattr("docker.from_env", lambda timeout: type("Client", (), {"images": Images()}))
    assert type(forges.missing(host)) is kind
