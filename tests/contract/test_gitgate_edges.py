"""The git gateway at its edges: trees crafted against the policy's own reading, sources of every kind, locks in the way."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hyperagent_common.errors import BadInput, DependencyDown, IntakeRefused
from hyperagent_tasks.gitgate import GitGate, Sealed, commands, new_repository, open_source, refs
from hyperagent_tasks.gitgate.commands import git
from tests import parts
from tests.contract.test_gitgate import WHEN, WHO, Bench, bench, tree_with

__all__ = ["bench"]


def crafted(bench: Bench, *rows: tuple[str, str, bytes]) -> Path:
    """A bundle whose tree is the base's with files of any path added, made with plumbing as an attacker would."""
    repo, index = bench.gate.trusted("p"), {"GIT_INDEX_FILE": str(bench.top / "crafted")}
    git(repo, "read-tree", bench.base, env=index)
    for mode, path, data in rows:
        oid = git(repo, "hash-object", "-w", "--stdin", stdin=data).text
        git(repo, "update-index", "-z", "--index-info", stdin=f"{mode} {oid}\t{path}\0".encode(), env=index)
    tree = git(repo, "write-tree", env=index).text
    commit = git(repo, "commit-tree", "-p", bench.base, "-m", "x", tree, env=WHO).text
    bundle = bench.out / "out.bundle"
    with bundle.open("wb") as out:
        out.write(f"# v2 git bundle\n-{bench.base} base\n{commit} refs/heads/out\n\n".encode())
        out.flush()
        wanted = f"{commit}\n^{bench.base}\n".encode()
        git(repo, "pack-objects", "-q", "--revs", "--thin", "--stdout", stdin=wanted, out=out)
    return bundle


PLAIN = "100644"
MODULE = b'[submodule "x"]\n\tpath = x\n'
BROKEN: dict[str, tuple[str, list[tuple[str, str, bytes]]]] = {
    "links that bend each other": ("l", [("120000", "sub/s", b".."), ("120000", "l", b"sub/s/../../etc")]),
    "a link one above the top": ("d/l", [("120000", "d/l", b"../../x")]),
    "a link into an embedded .git": ("l", [("120000", "l", b"sub/.GIT/config")]),
    "an empty link": ("l", [("120000", "l", b"")]),
    "directories that differ in case": ("dir/b", [(PLAIN, "Dir/a", b"x"), (PLAIN, "dir/b", b"y")]),
    "a file and a directory that differ in case": ("foo/b", [(PLAIN, "Foo", b"x"), (PLAIN, "foo/b", b"y")]),
    "another short name of .git": ("git~2", [(PLAIN, "git~2", b"x")]),
    "a url behind a section": (".gitmodules", [(PLAIN, ".gitmodules", b'[submodule "x"] url = ext::sh -c x\n\tpath = x\n')]),
    "a second url": (".gitmodules", [(PLAIN, ".gitmodules", MODULE + b"\turl = https://a.invalid/x\n\turl = ssh://-oX/y\n")]),
    "settings git cannot read": (".gitmodules", [(PLAIN, ".gitmodules", MODULE + b"\turl \\\n = ext::sh\n")]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_tree_crafted_against_the_policy_is_refused_by_path(bench: Bench, name: str) -> None:
    path, rows = BROKEN[name]
    with pytest.raises(IntakeRefused) as refused:
        bench.take(crafted(bench, *rows))
    assert path in [fault.field for fault in refused.value.faults] or "not sound" in refused.value.message
    assert bench.gate.tip("p", "hyperagent/w") == bench.base


def test_a_stream_of_the_git_directory_is_refused(bench: Bench) -> None:
    with pytest.raises(IntakeRefused):
        bench.take(bench.crafted((PLAIN, ".git::$INDEX_ALLOCATION", b"x")))


FINE = {
    "a link up and down": [("120000", "a/b/l", b"../../calc.py")],
    "a link beside": [("120000", "l", b"./calc.py")],
    "a file like .git": [(PLAIN, ".gitkeep", b""), (PLAIN, "git", b"x"), (PLAIN, "a.git", b"x")],
    "a plain submodule": [(PLAIN, ".gitmodules", MODULE + b"\turl = https://example.invalid/x.git\n")],
}


@pytest.mark.parametrize("name", FINE)
def test_what_projects_really_hold_is_taken(bench: Bench, name: str) -> None:
    taken = bench.take(crafted(bench, *FINE[name]))
    assert isinstance(taken, Sealed)
    assert {file.path for file in taken.changed_files} == {path for _, path, _ in FINE[name]}


def test_a_bundle_that_is_missing_a_link_or_a_pipe_is_refused(bench: Bench) -> None:
    bundle = bench.out / "out.bundle"
    with pytest.raises(IntakeRefused, match=r"no file out\.bundle"):
        bench.take(bundle)
    bundle.symlink_to("/etc/passwd")
    with pytest.raises(IntakeRefused, match="symbolic link"):
        bench.take(bundle)
    bundle.unlink()
    os.mkfifo(bundle)
    with pytest.raises(IntakeRefused, match="pipe"):
        bench.take(bundle)


def test_a_title_with_control_characters_breaks_no_later_reading(bench: Bench) -> None:
    tree, trailers = tree_with(bench, bench.base, new="x"), {"Hyperagent-Step": "s1"}
    said = "a\x01b\x00c\x1b[2J\u202e\n\nHyperagent-Step: other\n"
    made = bench.gate.commit("p", "hyperagent/w", bench.base, tree, message=said, trailers=trailers, when=WHEN)
    assert [info.title for info in bench.gate.commits("p", bench.base, "hyperagent/w")] == ["abc[2J"]
    assert bench.gate.find_step_commit("p", "hyperagent/w", "s1") == made.commit
    assert bench.gate.find_step_commit("p", "hyperagent/w", "other") is None


def test_a_lock_somebody_holds_is_waited_for_and_then_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refs, "LOCK_WAIT", 0.3)
    lock = bench.gate.trusted("p") / "refs" / "heads" / "hyperagent" / "w.lock"
    lock.touch()
    with pytest.raises(DependencyDown, match=r"holds .*w\.lock"):
        bench.commit(tree_with(bench, bench.base, new="x"), "s1")


def shell(place: Path, *words: str) -> None:
    """git as the repository's owner uses it."""
    subprocess.run(["git", "-C", str(place), *words], check=True, capture_output=True, timeout=30, env={**os.environ, **WHO})


def _percent(top: Path) -> Path:
    new_repository(top / "a%41 b#?ü", {"x": b"x"}, message="m")
    return top / "a%41 b#?ü"


def _bare(top: Path) -> Path:
    new_repository(top / "r", {"x": b"x"}, message="m")
    shell(top, "clone", "-q", "--bare", str(top / "r"), str(top / "bare"))
    return top / "bare"


def _worktree(top: Path) -> Path:
    new_repository(top / "r", {"x": b"x"}, message="m", branch="trunk")
    shell(top / "r", "worktree", "add", "-q", "-b", "side", str(top / "linked"))
    return top / "linked"


def _detached(top: Path) -> Path:
    new_repository(top / "r", {"x": b"x"}, message="m", branch="trunk")
    shell(top / "r", "checkout", "-q", "--detach")
    return top / "r"


def _old_tool(top: Path) -> Path:
    new_repository(top / "r", {"x": b"x"}, message="m")
    repo = top / "r" / ".git"
    raw = git(repo, "cat-file", "commit", "HEAD").out.replace(b" +0000\ncommitter", b" +051800\ncommitter")
    odd = git(repo, "hash-object", "-t", "commit", "-w", "--literally", "--stdin", stdin=raw).text
    git(repo, "update-ref", "refs/heads/main", odd)
    return top / "r"


@pytest.mark.parametrize("make", [_percent, _bare, _worktree, _detached, _old_tool])
def test_every_usual_kind_of_repository_can_be_registered(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    place = make(tmp_path)
    info = open_source(place)
    gate = GitGate(tmp_path / "repos")
    assert gate.refresh("p", place, info.default_branch) == info.head
    assert gate.tip("p", info.default_branch) == info.head


def _subdirectory(top: Path) -> Path:
    new_repository(top / "r", {"x": b"x"}, message="m")
    (top / "r" / "sub").mkdir()
    return top / "r" / "sub"


def _empty(top: Path) -> Path:
    git(None, "init", "-q", str(top / "r"))
    return top / "r"


def _file(top: Path) -> Path:
    (top / "f").write_bytes(b"# v2 git bundle\n")
    return top / "f"


def _foreign(top: Path) -> Path:
    if os.geteuid():
        parts.missing("the right to give a repository to another user", "run the tests as root")
    new_repository(top / "r", {"x": b"x"}, message="m")
    for path in [top / "r", *(top / "r").rglob("*")]:
        os.lchown(path, 12345, 12345)
    return top / "r"


REFUSED = [
    (lambda top: top / "missing", "nothing at"),
    (lambda top: Path("relative"), "not absolute"),
    (lambda top: top, "not a git repository"),
    (_subdirectory, "not a git repository"),
    (_empty, "no commits"),
    (_file, "not a directory"),
    (_foreign, "another user"),
]


@pytest.mark.parametrize(("make", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_a_repository_that_cannot_be_used_is_told_with_field_and_mend(
    tmp_path: Path, make: Callable[[Path], Path], said: str
) -> None:
    with pytest.raises(BadInput, match=said) as refused:
        open_source(make(tmp_path))
    assert refused.value.mend
    assert [fault.field for fault in refused.value.faults] == ["repository"]


def test_a_shallow_clone_is_refused_and_nothing_is_said_to_be_there(tmp_path: Path) -> None:
    new_repository(tmp_path / "r", {"x": b"x"}, message="m")
    shell(tmp_path / "r", "commit", "-q", "--allow-empty", "-m", "x")
    shell(tmp_path, "clone", "-q", "--depth=1", f"file://{tmp_path / 'r'}", str(tmp_path / "shallow"))
    with pytest.raises(BadInput, match="shallow"):
        GitGate(tmp_path / "repos").refresh("p", tmp_path / "shallow", "main")


def breaking(bench: Bench, monkeypatch: pytest.MonkeyPatch, verb: str, does: str) -> None:
    """From now on git does this, in shell, where it is asked for `verb`."""
    program = bench.top / "git"
    program.write_text(f'#!/bin/sh\ncase " $* " in *" {verb} "*) {does};; esac\nexec git "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(commands, "_program", lambda: str(program))


@pytest.mark.parametrize(
    ("verb", "does"),
    [
        ("init", "echo fatal: this host is odd >&2; exit 128"),
        ("fsck", "kill -9 $$"),
        ("fetch", "echo error: index-pack died of signal 9 >&2; exit 1"),
        ("fetch", "echo fatal: cannot fork to run index-pack: Cannot allocate memory >&2; exit 128"),
        ("fetch", "echo error: open x: Too many open files >&2; echo fatal: early EOF >&2; exit 128"),
    ],
)
def test_a_host_in_trouble_is_no_fault_of_the_sealed_work(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, verb: str, does: str
) -> None:
    bundle = crafted(bench, (PLAIN, "new.py", b"x"))
    breaking(bench, monkeypatch, verb, does)
    with pytest.raises(DependencyDown):
        bench.take(bundle)
    monkeypatch.undo()
    bench.take(bundle)


@pytest.mark.parametrize("does", ["echo error: object x: url: y: Input/output error >&2; exit 1", "kill -11 $$"])
def test_what_git_says_of_the_work_itself_is_no_trouble_of_the_host(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, does: str
) -> None:
    bundle = crafted(bench, (PLAIN, "new.py", b"x"))
    breaking(bench, monkeypatch, "fsck", does)
    with pytest.raises(IntakeRefused, match="not sound"):
        bench.take(bundle)


def test_a_git_that_hangs_in_the_system_hides_no_error() -> None:
    class Hanging:
        """A process that not even SIGKILL ends."""

        pid, stdout, stderr = 2**22 + 1, None, None
        poll = kill = staticmethod(lambda: None)

        @staticmethod
        def wait(seconds: float) -> int:
            """In vain."""
            raise subprocess.TimeoutExpired("git", seconds)

    commands._end(Hanging())  # type: ignore[arg-type]
