"""One suite for every forge: real Radicle in its container, real Radicle as host processes, and the stand-in."""

from __future__ import annotations

import hashlib
import subprocess
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hyperagent_common import base58
from hyperagent_common.errors import BadInput, DependencyDown, ForgeRefused, NoPeer, NothingToPropose, NotReady, PatchClosed
from hyperagent_tasks import description
from hyperagent_tasks.gitgate import GitGate, new_repository
from hyperagent_tasks.radicle import choose
from hyperagent_tasks.radicle.base import Forge, PatchView, PublishSpec, Registration, ReviewSpec
from hyperagent_tasks.radicle.executor import ContainerExecutor, HostExecutor
from hyperagent_tasks.radicle.forge import RadicleForge
from hyperagent_tasks.radicle.home import NodeConfig
from hyperagent_tasks.radicle.standin import StandInForge
from tests import parts

WHEN = datetime(2026, 1, 1, 12, tzinfo=UTC)
TITLE = '-Mend "add" – übung 🎉  and\nmore'


@dataclass
class Bench:
    """A started forge with a registered repository and two commits on a workflow's branch."""

    forge: Forge
    gate: GitGate
    top: Path
    registration: Registration
    base: str
    commits: list[str]

    def spec(self, count: int, **changes: object) -> PublishSpec:
        """Publish the first `count` commits."""
        made = PublishSpec(
            repo=self.gate.trusted("p"),
            rid=self.registration.rid,
            branch="hyperagent/w",
            base=self.base,
            heads=self.commits[:count],
            title=TITLE,
            body="- first\n- second",
            published_at=WHEN,
        )
        return replace(made, **changes)  # type: ignore[arg-type]


def container_forge(top: Path) -> RadicleForge:
    """Radicle in its container."""
    executor = ContainerExecutor(
        instance=f"t{uuid.uuid4().hex[:8]}",
        image=parts.require_radicle_image(),
        home=top / "rad",
        repos=top / "repos",
        network="bridge",
        passphrase="",
    )
    return RadicleForge(top / "rad", executor, NodeConfig("tester", "test", "0.0.0.0:8776", ()))


def host_forge(top: Path) -> RadicleForge:
    """Radicle as processes of this host."""
    executor = HostExecutor(programs=parts.require_radicle(), helper=choose.HELPER, home=top / "rad", passphrase="")
    return RadicleForge(top / "rad", executor, NodeConfig("tester", "test", "127.0.0.1:0", ()))


@pytest.fixture(params=["container", "host", "stand-in"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A bench of each kind; the path is short, for sockets."""
    top = Path(f"/tmp/ha-forge-{uuid.uuid4().hex[:6]}")
    gate = GitGate(top / "repos")
    gate.trusted("p")
    forge: Forge
    if request.param == "stand-in":
        forge = StandInForge(top / "rad", gate)
    else:
        forge = container_forge(top) if request.param == "container" else host_forge(top)
    try:
        forge.start()
        yield made_bench(forge, gate, top)
    finally:
        forge.stop()
        subprocess.run(["rm", "-rf", str(top)], check=False, timeout=60)


def made_bench(forge: Forge, gate: GitGate, top: Path) -> Bench:
    """Register a repository and make two commits."""
    new_repository(top / "source", {"a": b"1\n"}, message="first")
    base = gate.refresh("p", top / "source", "main")
    registration = forge.register(gate.trusted("p"), name="p", description="p", default_branch="main")
    gate.follow("p", "hyperagent/w", base)
    tree = gate._tree(gate.trusted("p"), base)
    commits: list[str] = []
    for step in ("s1", "s2"):
        onto = commits[-1] if commits else base
        trailers = {"Hyperagent-Step": step}
        commits.append(gate.commit("p", "hyperagent/w", onto, tree, message=step, trailers=trailers, when=WHEN).commit)
    return Bench(forge, gate, top, registration, base, commits)


def test_registering_again_is_the_same_registration(bench: Bench) -> None:
    again = bench.forge.register(bench.gate.trusted("p"), name="p", description="p", default_branch="main")
    assert again == bench.registration
    assert bench.forge.registration(again.rid) == again
    assert again.head == bench.base


def test_a_patch_is_opened_once_and_revised(bench: Bench) -> None:
    opened = bench.forge.publish(bench.spec(1))
    assert opened.did == "opened"
    found = bench.forge.publish(bench.spec(1, patch_id=opened.patch_id))
    assert (found.did, found.patch_id, found.revision_id) == ("found", opened.patch_id, opened.revision_id)
    revised = bench.forge.publish(bench.spec(2, patch_id=opened.patch_id))
    assert (revised.did, revised.patch_id) == ("revised", opened.patch_id)
    view = bench.forge.patch(bench.registration.rid, opened.patch_id)
    assert view is not None
    assert [head for _, head in view.revisions] == bench.commits
    assert view.title == TITLE.replace("\n", " ")
    assert view.body == "- first\n- second"
    assert view.state == "open"


TITLES = {
    "a\n  b": "a b",
    "a \r\n\n b\n": "a b",
    "a\u2028b": "a\u2028b",
    "a\x85b": "a\x85b",
    " \n ": "hyperagent/w",
    " a  b ": "a  b",
}


@pytest.mark.parametrize("title", TITLES, ids=ascii)
def test_a_title_is_one_line_and_otherwise_as_it_was_given(bench: Bench, title: str) -> None:
    opened = bench.forge.publish(bench.spec(1, title=title))
    assert seen(bench, opened.patch_id).title == TITLES[title]


def test_the_id_of_a_repository_is_one_that_the_api_takes(bench: Bench) -> None:
    made = [bench.registration.rid]
    for number in range(20 if isinstance(bench.forge, StandInForge) else 1):
        name = f"n{number}"
        made.append(bench.forge.register(bench.gate.trusted("p"), name=name, description=name, default_branch="main").rid)
    assert all(base58.is_rid(rid) for rid in made), made


def test_a_record_lost_after_opening_finds_the_same_patch(bench: Bench) -> None:
    opened = bench.forge.publish(bench.spec(1))
    again = bench.forge.publish(bench.spec(1))
    assert (again.did, again.patch_id) == ("found", opened.patch_id)
    later = bench.forge.publish(bench.spec(2))
    assert (later.did, later.patch_id) == ("revised", opened.patch_id)


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_a_commit_that_a_later_revision_holds_is_found_in_it(bench: Bench, known: bool) -> None:
    later = bench.forge.publish(bench.spec(2))
    found = bench.forge.publish(bench.spec(1, patch_id=later.patch_id if known else None))
    assert (found.did, found.patch_id, found.revision_id, found.head) == (
        "found", later.patch_id, later.revision_id, bench.commits[1],
    )  # fmt: skip
    assert [head for _, head in seen(bench, later.patch_id).revisions] == bench.commits[1:]


def test_publishes_at_once_end_in_one_patch(bench: Bench) -> None:
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.append(bench.forge.publish(bench.spec(1)).patch_id)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert len(made) == 4
    assert len(set(made)) == 1
    view = bench.forge.patch(bench.registration.rid, made[0])
    assert view is not None
    assert len(view.revisions) == 1


def by_hand(bench: Bench, patch_id: str, **changes: str) -> None:
    """What a person does to a patch: a new title, or a state."""
    rid = bench.registration.rid
    if isinstance(bench.forge, StandInForge):
        bench.forge.by_hand(rid, patch_id, **changes)
        return
    title = ["rad", "patch", "edit", patch_id, f"--message={changes.get('title')}", f"--message={changes.get('body', '')}"]
    archive = ["rad", "patch", "archive", patch_id]
    argv = [*(archive if "state" in changes else title), "--repo", rid, "--no-announce"]
    assert bench.forge._executor.call(argv).exit_code == 0  # type: ignore[attr-defined]


def test_a_title_a_person_edited_survives(bench: Bench) -> None:
    opened = bench.forge.publish(bench.spec(1))
    by_hand(bench, opened.patch_id, title="By hand")
    bench.forge.publish(bench.spec(2, patch_id=opened.patch_id))
    view = seen(bench, opened.patch_id)
    assert view.title == "By hand"
    assert len(view.revisions) == 2


def seen(bench: Bench, patch_id: str) -> PatchView:
    """The patch as the forge tells it."""
    view = bench.forge.patch(bench.registration.rid, patch_id)
    assert view is not None
    return view


def test_the_description_grows_where_it_is_ours(bench: Bench) -> None:
    opened = bench.forge.publish(bench.spec(1, body="one"))
    ours = [hashlib.sha256(b"one").hexdigest()]
    bench.forge.publish(bench.spec(2, patch_id=opened.patch_id, body="one\n\n<!-- two -->", ours=ours))
    assert seen(bench, opened.patch_id).body == "one\n\n<!-- two -->"
    by_hand(bench, opened.patch_id, title="By hand", body="my words")
    bench.forge.publish(bench.spec(2, patch_id=opened.patch_id, body="three", ours=ours))
    assert seen(bench, opened.patch_id).body == "my words"


def test_a_verdict_is_one_review_under_another_identity(bench: Bench) -> None:
    opened = bench.forge.publish(bench.spec(1))
    spec = ReviewSpec(bench.registration.rid, opened.patch_id, opened.revision_id, "accept", 'good – "really" 🎉\n\n- a')
    first = bench.forge.review(spec)
    again = bench.forge.review(spec)
    assert (first.did, again.did, again.review_id) == ("reviewed", "found", first.review_id)
    edited = bench.forge.review(replace(spec, summary="better"))
    assert (edited.did, edited.review_id) == ("edited", first.review_id)
    bench.forge.publish(bench.spec(2, patch_id=opened.patch_id))
    view = seen(bench, opened.patch_id)
    assert [(r.revision_id, r.verdict, r.summary) for r in view.reviews] == [(opened.revision_id, "accept", "better")]
    assert view.reviews[0].reviewer == first.reviewer
    assert first.reviewer not in ("", view.author, bench.forge.health().did)


def test_the_longest_texts_we_make_are_kept_whole(bench: Bench) -> None:
    text = description.fit(['"–🎉\n' * 20_000], "tail", "there")
    assert len(text.encode()) > 40_000
    opened = bench.forge.publish(bench.spec(1, body=text, ours=["0" * 64] * 500))
    bench.forge.review(ReviewSpec(bench.registration.rid, opened.patch_id, opened.revision_id, "accept", text))
    view = seen(bench, opened.patch_id)
    assert view.body == text
    assert view.reviews[0].summary == text


def test_a_review_of_what_is_not_there_is_refused_for_good(bench: Bench) -> None:
    opened = bench.forge.publish(bench.spec(1))
    with pytest.raises(ForgeRefused):
        bench.forge.review(ReviewSpec(bench.registration.rid, opened.patch_id, "1" * 40, "accept", "x"))


def test_a_closed_patch_takes_no_revision(bench: Bench) -> None:
    opened = bench.forge.publish(bench.spec(1))
    by_hand(bench, opened.patch_id, state="archived")
    with pytest.raises(PatchClosed):
        bench.forge.publish(bench.spec(2, patch_id=opened.patch_id))
    assert bench.forge.publish(bench.spec(1, patch_id=opened.patch_id)).did == "found"


def test_a_commit_of_the_default_branch_is_nothing_to_propose(bench: Bench) -> None:
    with pytest.raises(NothingToPropose):
        bench.forge.publish(bench.spec(1, heads=[bench.base]))


def test_what_no_peer_holds_is_told_with_its_class(bench: Bench) -> None:
    spread = bench.forge.publish(bench.spec(1)).spread
    assert spread.synced_with == 0
    if isinstance(bench.forge, StandInForge):
        assert spread.trouble is None
        return
    assert isinstance(spread.trouble, NoPeer)
    assert isinstance(bench.forge.announce(bench.registration.rid).trouble, NoPeer)


def test_an_unknown_repository_is_refused_for_good(bench: Bench) -> None:
    unknown = "rad:z3gqcJUoA1n9HaHKufZs5FCSGazv5"
    with pytest.raises(ForgeRefused):
        bench.forge.publish(bench.spec(1, rid=unknown))
    assert bench.forge.registration(unknown) is None
    assert bench.forge.patch(bench.registration.rid, "0" * 40) is None


def test_a_repository_without_commits_is_bad_input(bench: Bench) -> None:
    with pytest.raises(BadInput, match="no commits"):
        bench.forge.register(bench.gate.trusted("empty"), name="e", description="e", default_branch="main")


def test_health_and_check_tell_a_stopped_node(bench: Bench) -> None:
    assert bench.forge.health().running
    bench.forge.check()
    if isinstance(bench.forge, StandInForge):
        return
    bench.forge.stop()
    health = bench.forge.health()
    assert not health.running
    assert health.faults
    with pytest.raises(DependencyDown, match="does not answer"):
        bench.forge.check()
    assert bench.forge.start().running
    bench.forge.check()


def test_starting_again_changes_nothing(bench: Bench) -> None:
    before = bench.forge.health()
    assert bench.forge.start().nid == before.nid


def test_the_stand_in_says_loudly_what_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    StandInForge(tmp_path, GitGate(tmp_path / "repos"))
    assert "forge.stand-in" in caplog.text


@pytest.mark.parametrize("dirt", ["storage-only", "half-key", "garbage-key", "garbage-config"])
def test_a_dirty_home_is_named_and_left_as_it_is(dirt: str) -> None:
    top = Path(f"/tmp/ha-dirt-{uuid.uuid4().hex[:6]}")
    home = top / "rad"
    (home / "keys").mkdir(parents=True)
    if dirt == "storage-only":
        (home / "storage").mkdir()
    else:
        (home / "keys" / "radicle").write_text("not a key")
        if dirt != "half-key":
            (home / "keys" / "radicle.pub").write_text("ssh-ed25519 AAAA")
        (home / "config.json").write_text("[")
    before = {p: p.read_bytes() for p in home.rglob("*") if p.is_file()}
    try:
        with pytest.raises(NotReady) as refused:
            container_forge(top).start()
        assert refused.value.mend
        assert {p: p.read_bytes() for p in home.rglob("*") if p.is_file()} == before
    finally:
        subprocess.run(["rm", "-rf", str(top)], check=False, timeout=60)
