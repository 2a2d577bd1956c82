"""Radicle homes and repositories that are not as they should be, on real Radicle: one sentence each, nothing half-registered."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperagent_common.errors import BadInput, DiskFull, HyperagentError, KeyLocked, NodeDown, NotReady, NotRegistered
from hyperagent_tasks.gitgate import GitGate, new_repository
from hyperagent_tasks.radicle import home as homes
from hyperagent_tasks.radicle.executor import ContainerExecutor
from hyperagent_tasks.radicle.forge import RadicleForge
from hyperagent_tasks.radicle.home import NodeConfig
from tests import parts

NOBODY_HAS = "rad:z3gqcJUoA1n9HaHKufZs5FCSGazv5"


@pytest.fixture
def top() -> Iterator[Path]:
    """A short path, for sockets."""
    made = Path(f"/tmp/ha-bad-{uuid.uuid4().hex[:6]}")
    made.mkdir()
    yield made
    shutil.rmtree(made, ignore_errors=True)


def forge_of(top: Path, passphrase: str = "") -> RadicleForge:
    """Radicle in its container, as hosts have it."""
    (top / "repos").mkdir(exist_ok=True)
    executor = ContainerExecutor(
        instance=f"t{top.name[-6:]}",
        image=parts.require_radicle_image(),
        home=top / "rad",
        repos=top / "repos",
        network="bridge",
        passphrase=passphrase,
    )
    return RadicleForge(top / "rad", executor, NodeConfig("tester", "test", "0.0.0.0:8776", ()), passphrase=bool(passphrase))


def repository(top: Path) -> Path:
    """A trusted repository with one commit."""
    gate = GitGate(top / "repos")
    new_repository(top / "source", {"a": b"1\n"}, message="first")
    gate.refresh("p", top / "source", "main")
    return gate.trusted("p")


def test_a_key_with_a_passphrase_needs_it_and_the_right_one(top: Path) -> None:
    right = forge_of(top, "correct horse")
    try:
        assert right.start().running
        did = right.identities()[0].did
        right.stop()
        with pytest.raises(NotReady, match="has a passphrase, and none is given") as none:
            forge_of(top).start()
        assert "HYPERAGENT_RADICLE_PASSPHRASE_FILE" in none.value.mend
        wrong = forge_of(top, "battery staple")
        for call in (wrong.start, wrong.check):
            with pytest.raises(KeyLocked, match="does not open the Radicle key") as locked:
                call()
            assert "battery" not in str(locked.value)
        with pytest.raises(NodeDown):
            right.check()
        assert right.start().did == did
    finally:
        right.stop()


def test_a_key_without_a_passphrase_takes_none(top: Path) -> None:
    forge = forge_of(top)
    forge.start()
    forge.stop()
    with pytest.raises(NotReady, match="has no passphrase, and one is given"):
        forge_of(top, "needless").start()


def test_a_home_without_a_node_is_told_and_keeps_its_identity(top: Path) -> None:
    forge = forge_of(top)
    forge.start()
    forge.stop()
    with pytest.raises(NodeDown, match="does not answer") as down:
        forge.check()
    assert "hyperagent up" in down.value.mend
    assert forge.identities()[0].did.startswith("did:key:z6Mk")
    assert forge.identities()[0].alias == "tester"
    for call in (lambda: forge.standing([]), lambda: forge.fetch(NOBODY_HAS, seconds=2)):
        with pytest.raises(NodeDown):
            call()


def test_the_did_of_a_home_is_what_rad_says(top: Path) -> None:
    forge = forge_of(top)
    try:
        forge.start()
        said = forge._executor.call(["rad", "self", "--did"]).stdout.strip()
        assert homes.did(top / "rad") == said
    finally:
        forge.stop()


def test_a_home_too_long_for_a_socket_names_the_setting(top: Path) -> None:
    (top / ("x" * 100)).mkdir()
    forge = forge_of(top / ("x" * 100))
    with pytest.raises(NotReady, match="too long for a Unix socket by") as long:
        forge.start()
    assert "HYPERAGENT_RADICLE_HOME" in long.value.mend
    assert not (top / ("x" * 100) / "rad").exists()


@pytest.fixture
def small(top: Path) -> Iterator[Path]:
    """A disk of 200 MB."""
    if os.geteuid() != 0:
        parts.missing("the right to mount a small disk", "run the tests as root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(top)], capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    yield top
    subprocess.run(["umount", "-l", str(top)], check=True, timeout=30)


def test_a_full_disk_is_told_before_and_in_the_middle_and_registers_nothing(small: Path) -> None:
    forge, repo = forge_of(small), repository(small)
    try:
        forge.start()
        filler = small / "filler"
        with filler.open("wb") as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(b"\0" * (1 << 16))
                file.flush()
        with pytest.raises(DiskFull, match=r"Only 0 MiB are free for the Radicle home"):
            forge.check()
        with pytest.raises(DiskFull) as full:
            forge.register(repo, name="p", description="p", default_branch="main")
        assert full.value.mend
        filler.unlink()
        made = forge.register(repo, name="p", description="p", default_branch="main")
        assert forge.registration(made.rid) == made
        assert [path.name for path in (small / "rad" / "storage").iterdir()] == [made.rid.removeprefix("rad:")]
    finally:
        forge.stop()


@pytest.fixture
def forge(top: Path) -> Iterator[RadicleForge]:
    """A started node."""
    made = forge_of(top)
    made.start()
    yield made
    made.stop()


@pytest.mark.parametrize("description", ['Grüße "an alle" \\ und `mehr`', "日本語 – ' $HOME", "-starts with a dash"])
def test_a_description_arrives_as_it_was_written(forge: RadicleForge, top: Path, description: str) -> None:
    made = forge.register(repository(top), name="n.a-m_e", description=description, default_branch="main")
    payload = json.loads(forge._executor.call(["rad", "inspect", made.rid, "--payload"]).stdout)
    assert payload["xyz.radicle.project"]["description"] == description
    assert payload["xyz.radicle.project"]["name"] == "n.a-m_e"


@pytest.mark.parametrize(
    ("rid", "kind", "word"),
    [
        (NOBODY_HAS, NotRegistered, "connected to no peer"),
        ("rad:z0OIl", BadInput, "rid: must read rad:z and 20 bytes in base58"),
        ("rad:zzzzzzzzzzzzzzzzzzzzzzzzzzz", HyperagentError, ""),
        ("z3gqcJUoA1n9HaHKufZs5FCSGazv5", BadInput, "rid: must read rad:z and 20 bytes in base58"),
    ],
)
def test_a_wrong_radicle_id_is_told_and_leaves_nothing(
    forge: RadicleForge, top: Path, rid: str, kind: type[HyperagentError], word: str
) -> None:
    with pytest.raises(kind) as refused:
        forge.fetch(rid, seconds=2)
    assert word in str(refused.value)
    assert list((top / "rad" / "storage").iterdir()) == []
    assert list((top / "rad" / "hyperagent").glob("fetching/*")) == []
    assert "rad:" not in forge._executor.call(["rad", "seed"]).stdout


def test_a_fetch_killed_in_the_middle_is_swept_by_the_next(forge: RadicleForge, top: Path) -> None:
    fetching = top / "rad" / "hyperagent" / "fetching"
    fetching.mkdir(parents=True, exist_ok=True)
    mark = fetching / NOBODY_HAS.removeprefix("rad:")
    mark.touch()
    os.utime(mark, (1, 1))
    half = forge.storage(NOBODY_HAS)
    (half / "refs").mkdir(parents=True)
    assert forge._executor.call(["rad", "seed", NOBODY_HAS, "--scope", "all", "--no-fetch"]).exit_code == 0
    with pytest.raises(NotRegistered):
        forge.fetch("rad:z42hL2jL4XNk6K8oHQaSWfMgCL7ji", seconds=1)
    assert not mark.exists()
    assert not half.exists()
    assert NOBODY_HAS not in forge._executor.call(["rad", "seed"]).stdout
    assert forge.registration(NOBODY_HAS) is None


@pytest.mark.parametrize("branch", ["a b", "a..b", "x.lock", "-x", "@{1}", "é\x07"])
def test_a_branch_git_refuses_is_refused(forge: RadicleForge, top: Path, branch: str) -> None:
    with pytest.raises(HyperagentError):
        forge.register(repository(top), name="p", description="p", default_branch=branch)
    assert list((top / "rad" / "storage").iterdir()) == []
