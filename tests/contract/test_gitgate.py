"""The git gateway against hostile workspaces and hostile bundles: nothing runs on the host, nothing slips in."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hyperagent_common.errors import BadInput, IntakeRefused, MergeConflict
from hyperagent_tasks.gitgate import GitGate, gate, new_repository, open_source
from hyperagent_tasks.gitgate.commands import GitFailed, git

SCRIPTS = Path(__file__).resolve().parents[2] / "hyperagent_tasks" / "sandbox"
WHEN = datetime(2026, 1, 1, tzinfo=UTC)
WHO = {
    "GIT_AUTHOR_NAME": "x", "GIT_AUTHOR_EMAIL": "x@x", "GIT_COMMITTER_NAME": "x", "GIT_COMMITTER_EMAIL": "x@x",
    "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1",
}  # fmt: skip


class Bench:
    """A project with one commit, and a step's directories."""

    def __init__(self, top: Path) -> None:
        self.top, self.gate = top, GitGate(top / "repos")
        self.source = top / "source"
        new_repository(self.source, {"calc.py": b"a = 1\n", "other.py": b"b = 1\n"}, message="first")
        self.base = self.gate.refresh("p", self.source, "main")
        self.gate.follow("p", "hyperagent/w", self.base)
        self.ws, self.inp, self.out = top / "ws", top / "in", top / "out"
        for path in (self.ws, self.inp, self.out):
            path.mkdir()
        self.bundle = self.inp / "base.bundle"
        self.gate.base_bundle("p", self.base, self.bundle)

    def script(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run a sandbox script as the plain-process runner does."""
        env = {"PATH": os.environ["PATH"], "HOME": str(self.top), "WORKSPACE": str(self.ws), "IN": str(self.inp),
               "OUT": str(self.out), "TMPDIR": str(self.top)}  # fmt: skip
        return subprocess.run([SCRIPTS / name], env=env, capture_output=True, text=True, timeout=60)

    def sealed(self, change: Callable[[Path], None]) -> Path:
        """Materialise, change, seal."""
        made = self.script("materialise.sh")
        assert made.returncode == 0, made.stderr
        change(self.ws)
        done = self.script("seal.sh")
        assert done.returncode == 0, done.stderr
        return self.out / "out.bundle"

    def crafted(self, *entries: tuple[str, str, bytes]) -> Path:
        """A bundle with a tree of (mode, path, content or oid), made with plumbing as an attacker would."""
        repo = self.top / "craft.git"
        git(None, "clone", "-q", "--bare", str(self.source), str(repo), protocols="file")
        lines = []
        for mode, path, content in entries:
            oid = content.decode() if mode == "160000" else git(repo, "hash-object", "-w", "--stdin", stdin=content).text
            kind = {"160000": "commit", "40000": "tree"}.get(mode, "blob")
            lines.append(f"{mode} {kind} {oid}\t{path}")
        tree = git(repo, "mktree", "--missing", stdin=("\n".join(lines) + "\n").encode()).text
        commit = git(repo, "commit-tree", "-p", self.base, tree, stdin=b"seal", env=WHO).text
        git(repo, "update-ref", "refs/heads/out", commit)
        bundle = self.out / "out.bundle"
        git(repo, "bundle", "create", "-q", str(bundle), "refs/heads/out", f"^{self.base}")
        return bundle

    def take(self, bundle: Path, attempt: str = "attempt") -> object:
        """Import it."""
        return self.gate.import_seal("p", attempt, self.bundle, bundle, self.base)

    def commit(self, tree: str, step: str, base: str | None = None) -> str:
        """Commit a tree for a step."""
        trailers = {"Hyperagent-Step": step, "Hyperagent-Workflow": "w"}
        made = self.gate.commit("p", "hyperagent/w", base or self.base, tree, message="m", trailers=trailers, when=WHEN)
        return made.commit


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A bench."""
    return Bench(tmp_path)


def test_a_change_comes_through_whole(bench: Bench) -> None:
    def change(ws: Path) -> None:
        (ws / "calc.py").write_text("a = 2\n")
        (ws / "other.py").unlink()
        (ws / "with space").mkdir()
        (ws / "with space" / "ünï.txt").write_bytes(b"\x00\xff" * 1000)
        (ws / ".hyperagent").mkdir()
        (ws / ".hyperagent" / "secret").write_text("x")

    sealed = bench.gate.import_seal("p", "a", bench.bundle, bench.sealed(change), bench.base)
    assert {f.path: f.change for f in sealed.changed_files} == {
        "calc.py": "modified", "other.py": "deleted", "with space/ünï.txt": "added",
    }  # fmt: skip
    assert (sealed.insertions, sealed.deletions) == (1, 2)


def test_nothing_changed_makes_no_bundle(bench: Bench) -> None:
    assert not bench.sealed(lambda ws: None).exists()


VECTORS = {
    "fsmonitor": "[core]\n\tfsmonitor = {hook}\n",
    "hooks": "[core]\n\thooksPath = {dir}\n",
    "worktree": "[core]\n\tworktree = /etc\n",
    "filter": '[filter "x"]\n\tclean = {hook}\n\tsmudge = {hook}\n',
    "textconv": '[diff "x"]\n\ttextconv = {hook}\n\tcommand = {hook}\n',
    "external": "[diff]\n\texternal = {hook}\n",
    "include": "[include]\n\tpath = {dir}/evil\n",
    "gpg": "[commit]\n\tgpgsign = true\n[gpg]\n\tprogram = {hook}\n",
    "ssh": "[core]\n\tsshCommand = {hook}\n",
}


@pytest.mark.parametrize("vector", VECTORS)
def test_no_planted_configuration_runs_or_leads_astray(bench: Bench, vector: str) -> None:
    marker, hook = bench.top / "ran", bench.top / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {marker}\ncat\n")
    hook.chmod(0o755)
    for name in ("pre-commit", "post-checkout", "reference-transaction"):
        (bench.top / name).symlink_to(hook)
    (bench.top / "evil").write_text(f"[core]\n\tfsmonitor = {hook}\n")

    def change(ws: Path) -> None:
        (ws / ".gitattributes").write_text("* filter=x diff=x\n")
        (ws / "calc.py").write_text("a = 2\n")
        with (ws / ".git" / "config").open("a") as config:
            config.write(VECTORS[vector].format(hook=hook, dir=bench.top))

    sealed = bench.gate.import_seal("p", "a", bench.bundle, bench.sealed(change), bench.base)
    commit = bench.commit(sealed.tree, "s")
    bench.gate.diff("p", bench.base, commit)
    assert not marker.exists()
    assert {f.path for f in sealed.changed_files} == {".gitattributes", "calc.py"}


def test_a_repository_inside_the_workspace_is_refused_and_never_run(bench: Bench) -> None:
    marker, hook = bench.top / "ran", bench.top / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {marker}\ncat\n")
    hook.chmod(0o755)

    def change(ws: Path) -> None:
        new_repository(ws / "vendor", {"x": b"x"}, message="x")
        (ws / "vendor" / ".gitattributes").write_text("* filter=x\n")
        with (ws / "vendor" / ".git" / "config").open("a") as config:
            config.write(VECTORS["filter"].format(hook=hook))

    with pytest.raises(IntakeRefused) as refused:
        bench.take(bench.sealed(change))
    assert any("submodule" in fault.message and fault.field == "vendor" for fault in refused.value.faults)
    assert not marker.exists()


HOSTILE: dict[str, tuple[str, str, bytes]] = {
    "absolute-link": ("120000", "l", b"/etc/passwd"),
    "escaping-link": ("120000", "l", b"a/../../x"),
    "link-into-git": ("120000", "l", b".git/config"),
    "dot-git-upper": ("100644", ".GiT", b"x"),
    "dot-git-short": ("100644", "git~1", b"x"),
    "dot-git-hfs": ("100644", ".g\u200cit", b"x"),
    "backslash": ("100644", "a\\\\b", b"x"),
    "control": ("100644", '"a\\001b"', b"x"),
    "bidi": ("100644", "a\u202eb", b"x"),
    "submodule": ("160000", "sub", b"0" * 39 + b"1"),
    "module-url": ("100644", ".gitmodules", b'[submodule "x"]\n\tpath = x\n\turl = -u./payload\n'),
    "module-ext": ("100644", ".gitmodules", b'[submodule "x"]\n\tpath = x\n\turl = ext::sh -c x\n'),
    "own-directory": ("100644", ".HyperAgent", b"x"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_crafted_tree_is_refused_with_its_reason(bench: Bench, name: str) -> None:
    mode, path, content = HOSTILE[name]
    with pytest.raises(IntakeRefused) as refused:
        bench.take(bench.crafted((mode, path, content)))
    assert refused.value.faults or "not sound" in refused.value.message
    assert git(bench.gate.trusted("p"), "rev-parse", "hyperagent/w").text == bench.base


def test_names_that_differ_only_in_case_are_refused(bench: Bench) -> None:
    with pytest.raises(IntakeRefused, match="case"):
        bench.take(bench.crafted(("100644", "A.py", b"x"), ("100644", "a.py", b"y")))


def test_a_link_within_the_tree_is_fine(bench: Bench) -> None:
    bench.take(bench.crafted(("120000", "link", b"calc.py"), ("100644", "calc.py", b"x")))


@pytest.mark.parametrize("data", [b"", b"garbage", b"# v2 git bundle\n" + b"0" * 40 + b" refs/heads/out\n\nPACK"])
def test_a_broken_bundle_is_refused(bench: Bench, data: bytes) -> None:
    bundle = bench.out / "out.bundle"
    bundle.write_bytes(data)
    with pytest.raises(IntakeRefused):
        bench.take(bundle)


def test_a_bundle_on_another_history_is_refused(bench: Bench) -> None:
    other = bench.top / "other"
    new_repository(other, {"x": b"x"}, message="other")
    bundle = bench.out / "out.bundle"
    git(other / ".git", "update-ref", "refs/heads/out", "refs/heads/main")
    git(other / ".git", "bundle", "create", "-q", str(bundle), "refs/heads/out")
    with pytest.raises(IntakeRefused):
        bench.take(bundle)


def tree_with(bench: Bench, base: str, **files: str) -> str:
    """A tree: the base's with files changed."""
    repo = bench.gate.trusted("p")
    index = {"GIT_INDEX_FILE": str(bench.top / "index")}
    git(repo, "read-tree", base, env=index)
    for name, text in files.items():
        oid = git(repo, "hash-object", "-w", "--stdin", stdin=text.encode()).text
        git(repo, "update-index", "--add", "--cacheinfo", f"100644,{oid},{name}", env=index)
    return git(repo, "write-tree", env=index).text


def test_the_same_inputs_make_the_same_commit_and_a_second_delivery_finds_it(bench: Bench) -> None:
    tree = tree_with(bench, bench.base, new="x")
    first = bench.commit(tree, "s1")
    assert bench.commit(tree, "s1") == first
    assert len(bench.gate.commits("p", bench.base, "hyperagent/w")) == 1
    assert bench.gate.find_step_commit("p", "hyperagent/w", "s1") == first


def test_two_writers_of_one_step_make_one_commit(bench: Bench) -> None:
    tree = tree_with(bench, bench.base, new="x")
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.append(bench.commit(tree, "s1"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made) == 6
    assert len(set(made)) == 1
    assert len(bench.gate.commits("p", bench.base, "hyperagent/w")) == 1


def test_a_branch_that_moved_is_merged_and_a_conflict_is_told(bench: Bench) -> None:
    bench.commit(tree_with(bench, bench.base, one="1"), "s1")
    second = bench.commit(tree_with(bench, bench.base, two="2"), "s2")
    names = git(bench.gate.trusted("p"), "ls-tree", "--name-only", second).text.split()
    assert {"one", "two"} <= set(names)
    with pytest.raises(MergeConflict, match="one"):
        bench.commit(tree_with(bench, bench.base, one="other"), "s3")


def test_a_lock_a_power_cut_left_is_removed_when_it_is_old(bench: Bench) -> None:
    lock = bench.gate.trusted("p") / "refs" / "heads" / "hyperagent" / "w.lock"
    lock.touch()
    os.utime(lock, (time.time() - 3600, time.time() - 3600))
    bench.commit(tree_with(bench, bench.base, new="x"), "s1")


def test_a_source_is_read_without_its_own_hooks(bench: Bench) -> None:
    marker = bench.top / "ran"
    with (bench.source / ".git" / "config").open("a") as config:
        config.write(f"[core]\n\tfsmonitor = touch {marker}\n[uploadpack]\n\tpackObjectsHook = touch {marker}\n")
    (bench.source / "calc.py").write_text("a = 3\n")
    subprocess.run(["git", "-C", str(bench.source), "-c", "core.fsmonitor=false", "commit", "-qam", "x"], check=True,
                   env={**os.environ, **WHO}, timeout=30)  # fmt: skip
    assert bench.gate.refresh("p", bench.source, "main") != bench.base
    assert not marker.exists()


@pytest.mark.parametrize("name", ["-x", "a..b", "a b", "x.lock", "@", "a/./b", "refs\x00"])
def test_a_branch_name_git_refuses_is_refused_here(bench: Bench, name: str) -> None:
    with pytest.raises(BadInput):
        bench.gate.follow("p", name, bench.base)


def test_a_missing_branch_of_the_source_is_named(bench: Bench) -> None:
    with pytest.raises(BadInput, match="no branch elsewhere"):
        bench.gate.refresh("p", bench.source, "elsewhere")
    assert open_source(bench.source).default_branch == "main"


def packs(bench: Bench) -> int:
    """How many packs the repository of `q` has."""
    return sum(1 for _ in (bench.gate.trusted("q") / "objects" / "pack").glob("*.pack"))


def handed_over(bench: Bench, times: int) -> list[str]:
    """Commits of `p` that come into `q` as bundles, one after the other."""
    heads, bundle = [], bench.top / "handed.bundle"
    bench.gate.refresh("q", bench.source, "main")
    for number in range(times):
        (bench.source / "calc.py").write_text(f"a = {number}\n")
        subprocess.run(["git", "commit", "-qam", str(number)], cwd=bench.source, env={**os.environ, **WHO}, check=True)
        heads.append(bench.gate.refresh("p", bench.source, "main"))
        bench.gate.base_bundle("p", heads[-1], bundle, without=bench.base)
        bench.gate.take_bundle("q", bundle, heads[-1])
        bench.gate.follow("q", "hyperagent/w", heads[-1])
    return heads


def test_a_repository_that_many_imports_left_packs_in_is_packed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MOST_PACKS", 3)
    heads = handed_over(bench, 5)
    assert packs(bench) > 3
    assert bench.gate.pack() == ["q"]
    assert (packs(bench) <= 2, bench.gate.pack()) == (True, [])
    repo = bench.gate.trusted("q")
    assert all(bench.gate.has(repo, head) for head in heads)
    assert bench.gate.tip("q", "hyperagent/w") == heads[-1]
    assert [path for path in (repo / "refs").rglob("*") if path.is_file()] == []


def test_who_reads_and_writes_is_not_disturbed_by_packing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MOST_PACKS", 1)
    ended, packed = threading.Event(), list[str]()

    def keep_packing() -> None:
        while not ended.is_set():
            packed.extend(GitGate(bench.top / "repos").pack())

    packer = threading.Thread(target=keep_packing)
    packer.start()
    try:
        heads = handed_over(bench, 15)
    finally:
        ended.set()
        packer.join(60)
    assert len(packed) > 1
    assert bench.gate.tip("q", "hyperagent/w") == heads[-1]
    git(bench.gate.trusted("q"), "fsck", "--strict")


def test_a_repository_that_cannot_be_packed_is_left_alone_for_an_hour(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    handed_over(bench, 1)
    monkeypatch.setattr(gate, "MOST_PACKS", 0)
    asked: list[str] = []

    def failing(_repo: Path, verb: str, *_: str, **__: object) -> None:
        asked.append(verb)
        raise GitFailed("no")

    monkeypatch.setattr(gate, "git", failing)
    assert (bench.gate.pack(), bench.gate.pack(), asked) == ([], [], ["repack"])
