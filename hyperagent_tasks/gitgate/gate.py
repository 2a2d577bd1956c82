"""The git gateway: the trusted bare repositories of this host, and every way in and out of them."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from hyperagent_common.errors import BadInput, DependencyDown, IntakeRefused, MergeConflict, Transient
from hyperagent_tasks.gitgate import names
from hyperagent_tasks.gitgate.commands import git
from hyperagent_tasks.gitgate.importing import import_seal
from hyperagent_tasks.gitgate.refs import move
from hyperagent_tasks.gitgate.source import refresh as fetch
from hyperagent_tasks.gitgate.values import (
    HOST,
    CommitInfo,
    CommitResult,
    Limits,
    Person,
    Sealed,
    TreePolicy,
)

log = logging.getLogger(__name__)
TRIES = 10
STEP = "Hyperagent-Step"
STALE_LOCK_SECONDS = 120.0
FETCH_SECONDS = 300.0
LOCK_SECONDS = 900.0
PACK_SECONDS = 120.0
MOST_PACKS = 50


def new_repository(path: Path, files: Mapping[str, bytes], *, message: str, branch: str = "main") -> str:
    """A new repository with a work tree and one commit; returns it. Built aside and renamed: whole or not there."""
    names.branch(branch)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        git(None, "init", "-q", "-b", branch, "--template=", str(fresh))
        for name, data in files.items():
            (fresh / names.path(name)).write_bytes(data)
        git(None, "-C", str(fresh), "add", "--all")
        git(None, "-C", str(fresh), "commit", "-q", "-m", message, env=_people(HOST, HOST, datetime.now(UTC)))
        made = git(None, "-C", str(fresh), "rev-parse", "HEAD").text
        fresh.chmod(0o755)
        fresh.rename(path)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return made


def _people(author: Person, committer: Person, when: datetime) -> dict[str, str]:
    date = f"@{int(when.timestamp())} +0000"
    return {
        "GIT_AUTHOR_NAME": author.name,
        "GIT_AUTHOR_EMAIL": author.email,
        "GIT_AUTHOR_DATE": date,
        "GIT_COMMITTER_NAME": committer.name,
        "GIT_COMMITTER_EMAIL": committer.email,
        "GIT_COMMITTER_DATE": date,
    }


def _taken(lock: IO[str]) -> bool:
    """Take the lock file, or say that another process has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class GitGate:
    """Trusted repositories under `root`, one bare repository a project. Agents never touch them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._unpacked: dict[str, float] = {}
        """Until when, by the monotonic clock, a project is not packed."""

    def trusted(self, project: str) -> Path:
        """The project's trusted repository, made where missing."""
        repo = self._root / f"{names.project(project)}.git"
        if not repo.is_dir():
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._locked(project):
                if not repo.is_dir():
                    fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=self._root))
                    git(None, "init", "-q", "--bare", "--template=", "-b", "main", str(fresh))
                    fresh.rename(repo)
        return repo

    @contextlib.contextmanager
    def _locked(self, project: str) -> Iterator[None]:
        """One writer a project on this host."""
        with (self._root / f".{names.project(project)}.lock").open("w") as lock:
            deadline = time.monotonic() + LOCK_SECONDS
            while not _taken(lock):
                if time.monotonic() > deadline:
                    raise DependencyDown(f"Another process has held the repository of {project} for {LOCK_SECONDS:.0f} s.")
                time.sleep(0.02)
            yield

    def refresh(self, project: str, source: str | Path, branch: str) -> str:
        """Bring the source's default branch in, through a quarantine and fsck; returns its commit. Raises `BadInput`."""
        repo = self.trusted(project)
        with self._locked(project):
            self._unlock_stale(repo)
            return fetch(repo, source, branch)

    def _unlock_stale(self, repo: Path) -> None:
        """Remove lock files a power cut left; we hold the project's own lock, and no git of ours runs that long."""
        for path in [*repo.glob("*.lock"), *(repo / "refs").rglob("*.lock")]:
            with contextlib.suppress(FileNotFoundError):
                if datetime.now().timestamp() - path.stat().st_mtime > STALE_LOCK_SECONDS:
                    path.unlink()

    def head_of(self, repo: Path, branch: str) -> str | None:
        """A branch's commit, or None."""
        ref = f"refs/heads/{names.branch(branch)}^{{commit}}"
        return git(repo, "rev-parse", "--verify", "-q", ref, ok=(0, 1, 128)).text or None

    def head_of_ref(self, repo: Path, ref: str) -> str | None:
        """The commit a ref is at, or None."""
        return git(repo, "rev-parse", "--verify", "-q", f"{ref}^{{commit}}", ok=(0, 1, 128)).text or None

    def has(self, repo: Path, commit: str) -> bool:
        """Whether a commit is there."""
        return git(repo, "cat-file", "-e", f"{names.commit(commit)}^{{commit}}", ok=(0, 1, 128)).code == 0

    def holds(self, repo: Path, commit: str, head: str) -> bool:
        """Whether `commit` is `head` or an ancestor of it; False where `head` is not there."""
        said = git(repo, "merge-base", "--is-ancestor", names.commit(commit), names.commit(head), ok=(0, 1, 128))
        return said.code == 0

    def tip(self, project: str, branch: str) -> str:
        """The commit a workflow's branch is at. Raises `BadInput` where there is no such branch."""
        found = self.head_of(self.trusted(project), branch)
        if found is None:
            raise BadInput(f"The project {project} has no branch {branch}.")
        return found

    def base_bundle(self, project: str, commit: str, out: Path, *, without: str | None = None) -> None:
        """Write a bundle that holds `commit` as refs/heads/base; `without` is a commit its reader has already."""
        repo = self.trusted(project)
        needs = f"-{names.commit(without)}\n" if without else ""
        wanted = f"{commit}\n" + (f"^{without}\n" if without else "")
        with out.open("wb") as file:
            file.write(f"# v2 git bundle\n{needs}{names.commit(commit)} refs/heads/base\n\n".encode())
            file.flush()
            git(repo, "pack-objects", "-q", "--revs", "--stdout", "--delta-base-offset", *(("--thin",) if without else ()),
                stdin=wanted.encode(), out=file, timeout=FETCH_SECONDS)  # fmt: skip
        out.chmod(0o644)

    def take_bundle(self, project: str, bundle: Path, commit: str) -> None:
        """Bring in a commit that another host bundled, every object checked. Raises `DependencyDown` where it is not sound."""
        repo = self.trusted(project)
        spec = f"+refs/heads/base:refs/taken/{names.commit(commit)}"
        with self._locked(project):
            git(repo, "-c", "fetch.fsckObjects=true", "fetch", "-q", "--no-tags", "--no-write-fetch-head", str(bundle), spec,
                protocols="file", timeout=FETCH_SECONDS)  # fmt: skip
        if self.head_of_ref(repo, f"refs/taken/{commit}") != commit:
            raise DependencyDown(f"The bundle of {commit} holds another commit.", mend="Look at the shared storage.")

    def follow(self, project: str, branch: str, head: str) -> None:
        """Bring this host's branch to `head`, which the database says it is at; a branch further on is left there."""
        repo, ref = self.trusted(project), f"refs/heads/{names.branch(branch)}"
        with self._locked(project):
            self._unlock_stale(repo)
            now = self.head_of(repo, branch)
            if (now is None or not self.holds(repo, head, now)) and not move(repo, ref, head, now):
                raise Transient(f"The branch {branch} kept moving.")

    def build(
        self, project: str, head: str, base: str, tree: str, *, message: str, trailers: Mapping[str, str],
        when: datetime, author: Person = HOST, committer: Person = HOST,
    ) -> CommitResult:  # fmt: skip
        """Make the commit of `tree` (made on `base`) on top of `head`, moving no branch; the same inputs make the same commit.

        What came onto the branch since `base` is merged in first. Raises `MergeConflict`.
        """
        repo = self.trusted(project)
        names.commit(base), names.commit(tree)
        onto = tree if names.commit(head) == base else self._merged(repo, base, head, tree)
        made = self._commit_tree(repo, head, onto, message, trailers, _people(author, committer, when))
        return CommitResult(made, onto, head != base)

    def import_seal(
        self, project: str, attempt: str, base_bundle: Path, out_bundle: Path, base: str,
        rules: TreePolicy | None = None, limits: Limits | None = None,
    ) -> Sealed:  # fmt: skip
        """Bring a sealed bundle in. Raises `IntakeRefused` naming every fault."""
        repo = self.trusted(project)
        ref = f"refs/quarantine/{names.branch(attempt)}"
        return import_seal(repo, base_bundle, out_bundle, base, ref, rules or TreePolicy(), limits or Limits())

    def commit(
        self, project: str, branch: str, base: str, tree: str, *, message: str, trailers: Mapping[str, str],
        when: datetime, author: Person = HOST, committer: Person = HOST,
    ) -> CommitResult:  # fmt: skip
        """Put `tree` (made on `base`) onto the branch, once a step; the same inputs make the same commit.

        A branch that moved on is merged in first. Raises `MergeConflict`, `Transient` where the branch keeps moving.
        """
        repo, step = self.trusted(project), trailers.get(STEP, "")
        names.commit(base), names.commit(tree)
        with self._locked(project):
            self._unlock_stale(repo)
            for _ in range(TRIES):
                found = self.find_step_commit(project, branch, step) if step else None
                if found is not None:
                    return CommitResult(found, self._tree(repo, found), False, found=True)
                tip = self.tip(project, branch)
                onto = tree if tip == base else self._merged(repo, base, tip, tree)
                made = self._commit_tree(repo, tip, onto, message, trailers, _people(author, committer, when))
                if move(repo, f"refs/heads/{branch}", made, tip):
                    return CommitResult(made, onto, tip != base)
        raise Transient(f"The branch {branch} kept moving.")

    def _tree(self, repo: Path, commit: str) -> str:
        return git(repo, "rev-parse", f"{commit}^{{tree}}").text

    def _commit_tree(
        self, repo: Path, parent: str, tree: str, message: str, trailers: Mapping[str, str], env: Mapping[str, str]
    ) -> str:
        lines = "\n".join(names.trailer(key, value) for key, value in trailers.items())
        plain = "".join(c for c in message if c in "\n\t" or c.isprintable())
        text = plain.strip() + "\n\n" + lines + "\n"
        return git(repo, "commit-tree", "-p", parent, tree, stdin=text.encode("utf-8", "replace"), env=env).text

    def _merged(self, repo: Path, base: str, tip: str, tree: str) -> str:
        """The tree with what came onto the branch since `base` merged in."""
        env = _people(HOST, HOST, datetime.fromtimestamp(0, UTC))
        ours = git(repo, "commit-tree", "-p", base, tree, stdin=b"merge", env=env).text
        ended = git(repo, "merge-tree", "--write-tree", "--name-only", "-z", tip, ours, ok=(0, 1))
        fields = ended.out.decode("utf-8", "replace").split("\x00")
        if ended.code == 1:
            paths = [path for path in fields[1:] if path][:20]
            paths = paths[: paths.index("")] if "" in paths else paths
            raise MergeConflict(f"Another step of the workflow changed the same lines: {', '.join(paths[:5])}.")
        return fields[0].strip()

    def find_step_commit(self, project: str, branch: str, step_id: str) -> str | None:
        """The commit on the branch whose trailer names this step, or None."""
        for info in self.commits(project, None, branch):
            if info.step == step_id:
                return info.commit
        return None

    def commits(self, project: str, base: str | None, branch: str, *, head: str | None = None) -> list[CommitInfo]:
        """The commits of a branch (up to `head`) since `base` (None: at most the last 1,000), oldest first."""
        repo = self.trusted(project)
        if head is None and self.head_of(repo, branch) is None:
            return []
        last = f"refs/heads/{branch}" if head is None else names.commit(head)
        shape = f"%H%x00%P%x00%T%x00%s%x00%(trailers:key={STEP},valueonly,separator=%x2C)%x00%ct"
        span = [last] + ([f"^{names.commit(base)}"] if base else ["--max-count=1000"])
        said = git(repo, "log", "-z", "--first-parent", f"--format=tformat:{shape}", *span, "--").out.decode("utf-8", "replace")
        found = []
        fields = said.split("\x00")
        for at in range(0, len(fields) - 5, 6):
            commit, parents, tree, title, step, when = fields[at : at + 6]
            moment = datetime.fromtimestamp(int(when), UTC)
            found.append(CommitInfo(commit, tuple(parents.split()), tree, title, step.strip() or None, moment))
        return found[::-1]

    def diff(self, project: str, before: str, after: str, *, limit: int = 1 << 20) -> str:
        """The difference as text, at most `limit` bytes of it."""
        options = ("-r", "-p", "--no-ext-diff", "--no-textconv", "--no-color")
        said = git(
            self.trusted(project),
            "diff-tree",
            *options,
            names.commit(before),
            names.commit(after),
            limit=limit,
            cut=True,
        )
        return said.out.decode("utf-8", "replace") + ("\n[cut]\n" if said.cut else "")

    def _repositories(self) -> list[Path]:
        """Every trusted repository of this host."""
        return list(self._root.glob("*.git")) if self._root.is_dir() else []

    def pack(self) -> list[str]:
        """Put the objects and refs of each repository together where there are many packs; returns the projects.

        Each import leaves a pack, and each git looks into all of them. What is large already is left as it is (`--geometric`);
        others may read and write meanwhile. Where it fails, this process leaves the project alone for an hour.
        """
        done = []
        for repo in self._repositories():
            packs = sum(1 for path in (repo / "objects" / "pack").glob("*.pack"))
            if packs > MOST_PACKS and time.monotonic() >= self._unpacked.get(repo.stem, 0.0) and self._pack(repo):
                done.append(repo.stem)
        return done

    def _pack(self, repo: Path) -> bool:
        with (self._root / f".{repo.stem}.pack").open("w") as lock:
            if not _taken(lock):
                return False
            try:
                git(repo, "repack", "-d", "-n", "-q", "--geometric=2", timeout=PACK_SECONDS)
                git(repo, "pack-refs", "--all")
            except (DependencyDown, IntakeRefused) as error:
                self._unpacked[repo.stem] = time.monotonic() + 3600
                log.warning("repository.unpacked", extra={"project": repo.stem, "error": str(error)})
                return False
        return True

    def quarantined(self) -> set[str]:
        """The attempts of which this host's repositories still hold a quarantine ref."""
        found: set[str] = set()
        for repo in self._repositories():
            said = git(repo, "for-each-ref", "--format=%(refname)", "refs/quarantine/").text
            found |= {line.removeprefix("refs/quarantine/") for line in said.splitlines()}
        return found

    def drop(self, attempt: str) -> None:
        """Forget an attempt's quarantine ref in every project."""
        for repo in self._repositories():
            ref = f"refs/quarantine/{names.branch(attempt)}"
            if git(repo, "rev-parse", "--verify", "-q", ref, ok=(0, 1)).code == 0:
                git(repo, "update-ref", "-d", ref)
