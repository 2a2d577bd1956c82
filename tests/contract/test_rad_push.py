"""`rad-push` on real Radicle: every state that a killed push or registration leaves is mended by the next call."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time

import pytest

from hyperagent_tasks.gitgate import GitGate, new_repository
from hyperagent_tasks.radicle.choose import HELPER
from tests import parts
from tests.contract.rad_home import Home


def test_a_push_without_a_node_is_kept_and_says_so(home: Home) -> None:
    code, said = home.publish(1)
    assert (code, said["outcome"], said["did"], said["announced"]) == (4, "node-down", "opened", False)
    assert home.patch()["title"] == "Mend it"
    assert home.patch()["body"] == "b"


def test_the_trusted_repository_is_only_read(home: Home) -> None:
    before = {path: path.read_bytes() for path in home.repo.rglob("*") if path.is_file()}
    home.publish(1)
    home.publish(2)
    assert {path: path.read_bytes() for path in home.repo.rglob("*") if path.is_file()} == before


def test_killed_before_the_signature_the_next_call_signs(home: Home) -> None:
    before = home.own("rad/sigrefs").read_text()
    home.publish(1)
    patch = home.patch()["patch"]
    home.own("rad/sigrefs").write_text(before)
    assert patch not in home.signed()
    assert home.publish(1)[1]["did"] == "found"
    assert home.signed().count(patch) == 2
    assert "hyperagent/signing" not in home.signed()


def test_killed_between_patch_and_branch_the_next_call_makes_the_branch(home: Home) -> None:
    before = home.own("rad/sigrefs").read_text()
    home.publish(1)
    patch = home.patch()["patch"]
    home.own(f"heads/patches/{patch}").unlink()
    home.own("rad/sigrefs").write_text(before)
    assert home.publish(1)[1]["did"] == "found"
    assert home.signed().count(patch) == 2
    assert home.heads() == [home.commits[0]]


def test_killed_between_branch_and_revision_the_next_call_makes_the_revision(home: Home) -> None:
    patch = home.publish(1)[1]["patch"]
    state = [(name, home.own(name).read_text()) for name in (f"cobs/xyz.radicle.patch/{patch}", "rad/sigrefs")]
    with_cache = home.cache_as_now()
    home.publish(2)
    for name, text in state:  # the branch stays at the second commit
        home.own(name).write_text(text)
    with_cache()
    assert home.heads() == [home.commits[0]]
    assert home.publish(2)[1]["did"] == "revised"
    assert home.heads() == list(home.commits[:2])
    assert f"{home.commits[1]} refs/heads/patches/{patch}" in home.signed()


def test_killed_before_rad_cached_the_patch_it_is_found_in_storage(home: Home) -> None:
    with_cache = home.cache_as_now()
    opened = home.publish(1)[1]
    with_cache()
    assert home.patch()["patch"] == opened["patch"]
    with_cache()
    again = home.publish(1)[1]
    assert (again["did"], again["patch"]) == ("found", opened["patch"])


def test_killed_before_rad_cached_the_revision_no_second_one_is_made(home: Home) -> None:
    home.publish(1)
    with_cache = home.cache_as_now()
    home.publish(2)
    with_cache()
    assert home.publish(2)[1]["did"] == "found"
    assert home.heads() == list(home.commits[:2])


@pytest.mark.parametrize("verb", [["label", "--add", "x"], ["comment", "--message", "hm"], ["ready", "--undo"]])
def test_what_a_person_did_to_the_patch_survives_a_publish(home: Home, verb: list[str]) -> None:
    patch = home.publish(1)[1]["patch"]
    done = home.run("rad", "patch", verb[0], patch, *verb[1:], "--repo", home.rid, "--no-announce")
    assert done.returncode == 0, done.stderr
    before = home.own(f"cobs/xyz.radicle.patch/{patch}").read_text()
    assert home.publish(1)[1]["did"] == "found"
    assert home.own(f"cobs/xyz.radicle.patch/{patch}").read_text() == before
    assert home.publish(2)[1]["patch"] == patch
    assert home.heads() == list(home.commits[:2])


def test_killed_before_the_title_the_next_call_sets_it(home: Home) -> None:
    patch = home.publish(1)[1]["patch"]
    home.run("rad", "patch", "edit", patch, "--repo", home.rid, "-m", "HyperAgent hyperagent/w", "--no-announce")
    assert home.publish(1)[1]["title"] == "Mend it"


def test_a_lock_file_left_by_a_killed_push_is_removed_once_it_is_old(home: Home) -> None:
    left = home.own("rad/sigrefs.lock")
    left.touch()
    os.utime(left, (time.time() - 120,) * 2)
    assert home.publish(1)[1]["did"] == "opened"
    assert not left.exists()


def test_a_lock_file_of_a_living_writer_is_waited_for_and_left(home: Home) -> None:
    left = home.own("rad/sigrefs.lock")
    left.touch()
    code, said = home.publish(1)
    assert (code, said["outcome"]) == (9, "push-failed")
    assert left.exists()
    left.unlink()
    assert home.publish(1)[1]["patch"] == home.patch()["patch"]
    assert home.signed().count(home.patch()["patch"]) == 2


def test_a_patch_id_that_is_nowhere_is_looked_past(home: Home) -> None:
    opened = home.publish(1)[1]
    again = home.publish(2, patch="0" * 40)[1]
    assert (again["did"], again["patch"]) == ("revised", opened["patch"])


def test_an_older_head_is_found_and_moves_nothing_back(home: Home) -> None:
    home.publish(1)
    home.publish(2)
    code, said = home.publish(1)
    assert (code, said["did"], said["head"]) == (4, "found", home.commits[0])
    assert home.own(f"heads/patches/{said['patch']}").read_text().strip() == home.commits[1]


def test_nothing_to_propose_has_its_own_outcome(home: Home) -> None:
    code, said = home.publish(1, heads=[home.base])
    assert (code, said["outcome"]) == (15, "nothing")
    assert "already included" in said["error"]


def test_a_commit_that_is_nowhere_is_rejected(home: Home) -> None:
    assert home.publish(1, heads=["1" * 40])[0] == 6


def test_a_held_lock_ends_in_its_own_exit_code(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    name = home.top / "rad" / "hyperagent" / f"{home.rid.removeprefix('rad:')}.lock"
    text = HELPER.read_text().replace("LOCK_SECONDS, LEFTOVER", "_, LEFTOVER").replace("\nMARKS", "\nLOCK_SECONDS = 1\nMARKS")
    copy = home.top / "rad-push"
    copy.write_text(text)
    monkeypatch.setattr("tests.contract.rad_home.HELPER", copy)
    copy.chmod(0o755)
    with name.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, said = home.publish(1)
    assert (code, said["outcome"]) == (8, "locked")


def test_a_half_made_registration_is_set_aside_and_made_anew(home: Home) -> None:
    (home.storage / "refs" / "rad" / "id").unlink()
    code, said = home.register()
    assert (code, said["rid"], said["head"]) == (0, home.rid, home.base)
    assert list((home.top / "rad" / "hyperagent" / "broken").iterdir())


def test_a_registration_that_lost_its_record_is_taken_up(home: Home) -> None:
    shutil.rmtree(home.top / "rad" / "hyperagent" / "publish")
    code, said = home.register()
    assert (code, said["rid"]) == (0, home.rid)


def test_a_registration_killed_before_its_first_push_gets_its_branch(home: Home) -> None:
    home.own("heads/main").unlink()
    (home.storage / "refs" / "heads" / "main").unlink()
    code, said = home.register()
    assert (code, said["head"]) == (0, home.base)


def test_another_history_under_the_same_name_is_rejected(home: Home) -> None:
    other = GitGate(home.top / "others")
    other.trusted("p")
    new_repository(home.top / "elsewhere", {"b": b"2\n"}, message="other")
    other.refresh("p", home.top / "elsewhere", "main")
    repo = str(home.top / "others" / "p.git")
    code, said = home.push("register", repo=repo, name="p", description="d", branch="main")
    assert (code, said["outcome"]) == (6, "rejected")
    assert home.rid in said["error"]


def test_another_history_in_the_same_place_is_never_the_repository_that_was_registered_there(home: Home) -> None:
    new_repository(home.top / "elsewhere", {"b": b"2\n"}, message="other")
    head = GitGate(home.top / "repos").refresh("p", home.top / "elsewhere", "main")
    assert (home.register()[0], home.register()[1]["outcome"]) == (6, "rejected")
    code, said = home.push("register", repo=str(home.repo), name="p", description="another", branch="main")
    assert (code, said["head"]) == (0, head)
    assert said["rid"] != home.rid


@pytest.mark.parametrize(
    ("spec", "word"),
    [({"rid": "rad:q"}, "rid"), ({"heads": []}, "heads"), ({"title": "a\0b"}, "title"), ({"key": "ü"}, "key")],
)
def test_a_wrong_spec_names_the_field(home: Home, spec: dict[str, object], word: str) -> None:
    code, said = home.publish(1, **spec)
    assert (code, said["outcome"]) == (2, "bad-input")
    assert word in said["error"]


def test_without_a_profile_it_says_not_registered(home: Home) -> None:
    home.env["RAD_HOME"] = str(home.top / "none")
    assert home.publish(1)[0] == 3


def test_a_person_pushes_a_branch_with_rad_push_from_anywhere_in_a_checkout(home: Home) -> None:
    checkout = home.top / "p"
    assert home.run("rad", "checkout", home.rid, cwd=home.top).returncode == 0
    home.run("git", "commit", "--allow-empty", "-qm", "by hand", cwd=checkout)
    head = home.run("git", "rev-parse", "HEAD", cwd=checkout).stdout.strip()
    (checkout / "deep" / "down").mkdir(parents=True)
    done = home.run("rad", "push", "--json", cwd=checkout / "deep" / "down")
    said = json.loads(done.stdout.splitlines()[0])
    assert (said["outcome"], said["ref"], said["head"]) == ("node-down", "refs/heads/main", head)
    home.run("git", "reset", "-q", "--hard", "HEAD~1", cwd=checkout)
    home.run("git", "commit", "--allow-empty", "-qm", "another", cwd=checkout)
    done = home.run(str(HELPER), "--json", cwd=checkout)
    assert done.returncode == 10, done.stdout
    assert home.push("registration", rid=home.rid)[1]["head"] == head


@pytest.mark.parametrize("argv", [["rad-push"], ["rad", "push"]])
def test_rad_push_in_the_runner_image_says_one_json_line(argv: list[str]) -> None:
    client = parts.require_docker()
    made = client.containers.create(parts.require_runner_image(), [*argv, "--json"], network_mode="none")
    try:
        made.start()
        code = made.wait(timeout=60)["StatusCode"]
        line, *more = made.logs(stderr=False).decode().splitlines()
    finally:
        made.remove(force=True)
    said = json.loads(line)
    assert (said["ok"], said["outcome"]) == (False, "not-registered")
    assert said["mend"]
    if argv == ["rad-push"]:
        assert (code, more) == (3, [])
    else:  # rad makes one code of all failures, and says so in a line of its own
        assert (code, len(more)) == (1, 1)


def test_with_a_node_and_no_peer_it_is_announced(home: Home) -> None:
    config = json.loads((home.top / "rad" / "config.json").read_text())
    config["preferredSeeds"] = []
    config["node"] |= {"network": "test", "listen": ["127.0.0.1:0"], "peers": {"type": "static"}, "connect": []}
    (home.top / "rad" / "config.json").write_text(json.dumps(config))
    assert home.run("rad", "node", "start").returncode == 0
    code, said = home.publish(1)
    assert (code, said["outcome"], said["announced"], said["synced_with"]) == (5, "no-peer", True, [])
    assert home.push("status")[1]["node"] is True
