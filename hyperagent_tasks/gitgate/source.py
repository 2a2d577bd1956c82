"""A person's repository, read only through `git upload-pack`: nothing in its configuration can start a program here."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from hyperagent_common.errors import BadInput, DependencyDown, Fault
from hyperagent_tasks.gitgate import names, refs
from hyperagent_tasks.gitgate.commands import GitFailed, git
from hyperagent_tasks.gitgate.values import SourceInfo

FIELD = "repository"
FETCH_SECONDS = 900.0
TRIES = 5


def open_source(path: Path | str) -> SourceInfo:
    """The default branch of the repository at `path` (bare or not, or a linked worktree) and its head.

    Raises `BadInput` naming the field `repository` where it cannot be used.
    """
    place = _place(path)
    try:
        said = git(None, "ls-remote", "--symref", "--", _url(place), "HEAD", "refs/heads/*", protocols="file", timeout=30).text
    except GitFailed as error:
        raise _refused(place, error) from error
    branches: dict[str, str] = {}
    head = target = ""
    for line in said.splitlines():
        value, _, name = line.partition("\t")
        if value.startswith("ref: "):
            target = value.removeprefix("ref: refs/heads/")
        elif name == "HEAD":
            head = value
        else:
            branches[name.removeprefix("refs/heads/")] = value
    return _info(place, branches, head, target)


def _info(place: Path, branches: dict[str, str], head: str, target: str) -> SourceInfo:
    if not branches:
        raise _bad(f"The repository {place} has no commits.", "Commit something there first.")
    if target in branches:
        return SourceInfo(names.branch(target), branches[target])
    found: list[str] = [name for name in ("main", "master") if name in branches] or (list(branches) if len(branches) == 1 else [])
    if not found:
        raise _bad(
            f"The repository {place} stands on no branch{f' (detached at {head[:12]})' if head else ''}.",
            "Check out its default branch there, or name the default branch when you register the project.",
        )
    return SourceInfo(names.branch(found[0]), branches[found[0]])


def refresh(repo: Path, path: Path | str, branch: str) -> str:
    """Bring `refs/heads/<branch>` of the trusted `repo` to where the source has it, checking every object; returns its commit.

    Raises `BadInput` where source or branch cannot be used, `DependencyDown`.
    """
    place, ref = _place(path), f"refs/heads/{names.branch(branch)}"
    words = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--refmap=", "--"]
    for left in reversed(range(TRIES)):
        try:
            refs.write(lambda: git(repo, *words, _url(place), f"+{ref}:{ref}", protocols="file", timeout=FETCH_SECONDS))
            break
        except GitFailed as error:
            if not left or "but expected" not in error.ended.err:  # another process fetched it at the same time
                raise _refused(place, error, branch) from error
    commit = git(repo, "rev-parse", "--verify", "-q", f"{ref}^{{commit}}", ok=(0, 1, 128)).text
    if not commit:
        raise _shallow(place)
    return commit


def _place(path: Path | str) -> Path:
    place = Path(path)
    if not place.is_absolute():
        raise _bad(f"The repository path {place} is not absolute.", "Give the whole path.")
    try:
        found = place.resolve(strict=True)
        usable = found.is_dir() and os.access(found, os.R_OK | os.X_OK)
    except FileNotFoundError:
        raise _bad(f"There is nothing at {place}.", "Give the path of a repository on this host.") from None
    except (OSError, RuntimeError) as error:
        raise _bad(f"The path {place} cannot be followed: {error}.", "Give the path of a readable repository.") from error
    if not found.is_dir():
        raise _bad(f"{place} is not a directory.", "Give the path of a repository, not of a file.")
    if not usable:
        raise _unreadable(place)
    return found


def _url(place: Path) -> str:
    return "file://" + quote(os.fsencode(place))


def _refused(place: Path, error: GitFailed, branch: str = "") -> BadInput | DependencyDown:
    """What git said about a source, as the sentence a person can act on."""
    said = error.ended.err
    if "dubious ownership" in said:
        return _bad(
            f"The repository {place} belongs to another user than the one HyperAgent runs as (uid {os.geteuid()}).",
            f"Run HyperAgent as its owner, or give HyperAgent a copy of its own: `git clone --mirror {place}`.",
        )
    if "Permission denied" in said:
        return _unreadable(place)
    if "shallow" in said:
        return _shallow(place)
    if "couldn't find remote ref" in said:
        return BadInput(
            f"The repository {place} has no branch {branch}.",
            faults=[Fault("default_branch", f"{branch} does not exist there")],
            mend="Name a branch that exists, or make this one.",
        )
    if "does not appear to be a git repository" in said or "not a git repository" in said:
        return _bad(f"{place} is not a git repository.", "Give the path of a repository (or run `git init` and commit).")
    if "fsck" in said or "broken" in said or "bad object" in said or "corrupt" in said:
        return _bad(f"The repository {place} holds objects that git refuses: {error.ended.reason}", "Look at `git fsck` there.")
    return error


def _shallow(place: Path) -> BadInput:
    return _bad(f"The repository {place} is a shallow clone.", "Run `git fetch --unshallow` there.")


def _unreadable(place: Path) -> BadInput:
    return _bad(
        f"The repository {place} cannot be read by the user HyperAgent runs as (uid {os.geteuid()}).",
        "Let that user read it, or give HyperAgent a copy of its own.",
    )


def _bad(message: str, mend: str) -> BadInput:
    return BadInput(message, faults=[Fault(FIELD, message)], mend=mend)
