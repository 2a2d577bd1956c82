"""`rad-push review` and what a person may do to a patch, on real Radicle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from typing import Any

import pytest

from tests.contract.rad_home import Home


def revision_of(home: Home, count: int = 1) -> dict[str, str]:
    """A patch with its newest revision, as fields of a review's spec."""
    said = home.publish(count)[1]
    return {"rid": home.rid, "patch": said["patch"], "revision": said["revision"]}


def reviewed(home: Home, there: dict[str, str], **changes: str) -> tuple[int, dict[str, Any]]:
    """Review it."""
    return home.push("review", **{**there, "verdict": "accept", "summary": "good", "alias": "verifier", "wait": 0.0, **changes})


def reviews(home: Home) -> list[dict[str, Any]]:
    """Every review of the one patch."""
    return list(home.patch()["reviews"])


def test_a_review_is_said_once_under_a_key_of_its_own(home: Home) -> None:
    there = revision_of(home)
    code, said = reviewed(home, there)
    assert (code, said["outcome"], said["did"]) == (4, "node-down", "reviewed")
    again = reviewed(home, there)[1]
    assert (again["did"], again["review"], again["reviewer"]) == ("found", said["review"], said["reviewer"])
    assert said["reviewer"] != f"did:key:{home.nid}"
    assert [(r["reviewer"], r["revision"], r["verdict"]) for r in reviews(home)] == [
        (said["reviewer"], there["revision"], "accept")
    ]


def test_the_second_review_of_a_revision_replaces_the_text_of_the_first(home: Home) -> None:
    there = revision_of(home)
    first = reviewed(home, there)[1]
    second = reviewed(home, there, summary='other <!-- kept --> "words"\n\n– übung 🎉')[1]
    assert (second["did"], second["review"]) == ("edited", first["review"])
    assert [r["summary"] for r in reviews(home)] == ['other <!-- kept --> "words"\n\n– übung 🎉']


def test_each_revision_has_its_own_review(home: Home) -> None:
    reviewed(home, revision_of(home, 1))
    reviewed(home, revision_of(home, 2), summary="better")
    assert [r["summary"] for r in reviews(home)] == ["good", "better"]
    assert home.heads() == list(home.commits[:2])


def test_a_publish_after_a_review_keeps_it(home: Home) -> None:
    there = revision_of(home)
    reviewed(home, there)
    home.publish(1, patch=None)
    home.publish(2)
    assert [r["revision"] for r in reviews(home)] == [there["revision"]]


def test_killed_before_the_signature_the_next_review_signs(home: Home) -> None:
    there = revision_of(home)
    nid = reviewed(home, there)[1]["reviewer"].removeprefix("did:key:")
    sigrefs = home.storage / "refs" / "namespaces" / nid / "refs" / "rad" / "sigrefs"
    before = sigrefs.read_text()
    reviewed(home, there, summary="later")
    sigrefs.write_text(before)
    assert reviewed(home, there, summary="later")[0] == 4
    tip = (sigrefs.parents[1] / "cobs" / "xyz.radicle.patch" / there["patch"]).read_text().strip()
    blob = home.run("git", "-C", str(home.storage), "cat-file", "blob", f"refs/namespaces/{nid}/refs/rad/sigrefs:refs")
    assert f"{tip} refs/cobs/xyz.radicle.patch/{there['patch']}" in blob.stdout


def test_killed_before_rad_cached_the_review_no_second_one_is_made(home: Home) -> None:
    there = revision_of(home)
    reviewed(home, there)
    cobs, kept = home.top / "rad" / "hyperagent" / "reviewer" / "cobs", home.top / "kept"
    there = revision_of(home, 2)
    shutil.copytree(cobs, kept)
    reviewed(home, there)
    shutil.rmtree(cobs)
    shutil.copytree(kept, cobs)
    assert reviewed(home, there)[1]["did"] == "found"
    assert len(reviews(home)) == 2


def test_a_reviewer_with_the_publishers_key_is_rejected(home: Home) -> None:
    there = revision_of(home)
    reviewer = home.top / "rad" / "hyperagent" / "reviewer"
    reviewer.mkdir(parents=True)
    shutil.copytree(home.top / "rad" / "keys", reviewer / "keys")
    shutil.copy(home.top / "rad" / "config.json", reviewer / "config.json")
    code, said = reviewed(home, there)
    assert (code, said["outcome"]) == (6, "rejected")
    assert "publisher's" in said["error"]
    assert str(reviewer) in said["mend"]
    assert reviews(home) == []


def test_a_review_of_what_is_not_there_is_rejected(home: Home) -> None:
    there = revision_of(home)
    assert reviewed(home, {**there, "revision": "1" * 40})[0] == 6
    assert reviewed(home, {**there, "patch": "1" * 40})[0] == 6
    assert reviewed(home, there, verdict="maybe")[0] == 2


def test_a_long_text_is_kept_whole(home: Home) -> None:
    text = "\n".join(f'{n} "quoted" – ü 🎉 <!-- c -->' for n in range(1500))
    assert len(text.encode()) > 50_000
    home.publish(1, body=text, title='-dash "quotes" – übung 🎉')
    assert home.patch()["body"] == text
    assert home.patch()["title"] == '-dash "quotes" – übung 🎉'
    reviewed(home, revision_of(home), summary=text)
    assert reviews(home)[0]["summary"] == text


def test_a_title_of_many_lines_becomes_one(home: Home) -> None:
    home.publish(1, title="\r\none\n  two\t\nthree\n")
    assert home.patch()["title"] == "one two three"


def test_the_description_grows_where_it_is_ours_and_a_persons_stays(home: Home) -> None:
    home.publish(1, body="one", title="T")
    digest = hashlib.sha256(b"one").hexdigest()
    home.publish(2, body="one\ntwo", ours=[digest], title="U")
    assert (home.patch()["title"], home.patch()["body"]) == ("T", "one\ntwo")
    patch = home.patch()["patch"]
    home.run("rad", "patch", "edit", patch, "--repo", home.rid, "-m", "By hand", "-m", "my words", "--no-announce")
    home.publish(3, body="three", ours=[digest, hashlib.sha256(b"one\ntwo").hexdigest()])
    assert (home.patch()["title"], home.patch()["body"]) == ("By hand", "my words")
    assert len(home.heads()) == 3


def test_a_description_a_person_emptied_stays_empty(home: Home) -> None:
    patch = home.publish(1)[1]["patch"]
    home.run("rad", "patch", "edit", patch, "--repo", home.rid, "-m", "Only a title", "--no-announce")
    home.publish(2, body="again")
    assert (home.patch()["title"], home.patch()["body"]) == ("Only a title", "")


@pytest.mark.parametrize("state", ["archived", "merged"])
def test_a_patch_a_person_closed_takes_no_revision_and_says_so(home: Home, state: str) -> None:
    patch = home.publish(1)[1]["patch"]
    if state == "archived":
        assert home.run("rad", "patch", "archive", patch, "--repo", home.rid, "--no-announce").returncode == 0
    else:
        checkout = home.top / "p"
        home.run("rad", "checkout", home.rid, cwd=home.top)
        home.run("git", "fetch", "-q", str(home.repo), home.commits[0], cwd=checkout)
        home.run("git", "merge", "-q", "--ff-only", "FETCH_HEAD", cwd=checkout)
        assert home.run("git", "push", "-o", "no-sync", "rad", "main", cwd=checkout).returncode == 0
    code, said = home.publish(2)
    assert (code, said["outcome"]) == (14, "patch-closed")
    assert patch in said["error"]
    assert said["mend"]
    assert home.publish(1)[1]["did"] == "found"
    assert home.patch()["state"] == state
    if state == "archived":
        home.run("rad", "patch", "archive", "--undo", patch, "--repo", home.rid, "--no-announce")
        assert home.publish(2)[1]["did"] == "revised"


def test_a_patch_that_was_deleted_is_opened_anew(home: Home) -> None:
    patch = home.publish(1)[1]["patch"]
    assert home.run("rad", "patch", "delete", patch, "--repo", home.rid, "--no-announce").returncode == 0
    said = home.publish(2, patch=patch)[1]
    assert said["did"] == "opened"
    assert home.heads() == [home.commits[1]]


def test_a_revision_made_by_hand_with_our_key_is_not_pushed_over(home: Home) -> None:
    patch = home.publish(1)[1]["patch"]
    checkout = home.top / "p"
    home.run("rad", "checkout", home.rid, cwd=home.top)
    home.run("git", "fetch", "-q", str(home.repo), home.commits[0], cwd=checkout)
    home.run("git", "checkout", "-q", "-b", "hand", "FETCH_HEAD", cwd=checkout)
    home.run("git", "commit", "--allow-empty", "-qm", "by hand", cwd=checkout)
    assert home.run("git", "push", "-o", "no-sync", "-f", "rad", f"HEAD:patches/{patch}", cwd=checkout).returncode == 0
    code, said = home.publish(2)
    assert (code, said["outcome"]) == (10, "diverged")
    assert len(home.heads()) == 2


def test_a_commit_that_a_later_revision_holds_is_found_there(home: Home) -> None:
    later = home.publish(2)[1]
    code, said = home.publish(1)
    assert (code, said["did"], said["revision"], said["head"]) == (4, "found", later["revision"], home.commits[1])


def test_a_full_disk_has_its_own_outcome(home: Home) -> None:
    folder = home.top / "bin"
    folder.mkdir()
    fake = folder / "rad"
    fake.write_text('#!/bin/sh\n[ "$1" = self ] && exec real-rad "$@"\necho \'error: No space left on device\' >&2\nexit 1\n')
    fake.chmod(0o755)
    real = shutil.which("rad", path=home.env["PATH"])
    os.symlink(str(real), folder / "real-rad")
    home.publish(1)
    home.env["PATH"] = f"{folder}{os.pathsep}{home.env['PATH']}"
    code, said = home.publish(2)
    assert (code, said["outcome"]) == (12, "disk-full"), said


def test_a_locked_key_has_its_own_outcome(bare: Home) -> None:
    bare.rid, bare.nid = (said := bare.register()[1])["rid"], said["nid"]
    done = bare.run("ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", str(bare.top / "rad" / "keys" / "radicle"))
    assert done.returncode == 0, done.stderr
    for passphrase in ("", "wrong"):
        bare.env["RAD_PASSPHRASE"] = passphrase
        code, said = bare.publish(1)
        assert (code, said["outcome"]) == (13, "key-locked"), said
    bare.env["RAD_PASSPHRASE"] = "secret"
    assert bare.publish(1)[1]["did"] == "opened"
    assert reviewed(bare, revision_of(bare))[1]["did"] == "reviewed"
    key = (bare.top / "rad" / "hyperagent" / "reviewer" / "keys" / "radicle").read_text()
    assert json.dumps(key)
