"""How two repositories stand to each other, without copying anything: the other one's objects are only looked at."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from hyperagent_tasks.gitgate import names
from hyperagent_tasks.gitgate.commands import git


class Relation(StrEnum):
    """Where our commit is, seen from theirs."""

    SAME = "same"
    AHEAD = "ahead"
    BEHIND = "behind"
    DIVERGED = "diverged"
    UNRELATED = "unrelated"


def canonical(other: Path, branch: str) -> str | None:
    """The commit of a branch in a bare repository that is only looked at, None where it has none. Raises `GitFailed`."""
    found = git(other, "rev-parse", "--verify", "--quiet", f"refs/heads/{branch}^{{commit}}", ok=(0, 1)).text
    return found or None


def relation(repo: Path, ours: str, other: Path, theirs: str) -> Relation:
    """Our commit in the bare `repo` against their commit in the bare `other`. Raises `DependencyDown`, `GitFailed`."""
    if names.commit(ours) == names.commit(theirs):
        return Relation.SAME
    env = {"GIT_ALTERNATE_OBJECT_DIRECTORIES": str(other / "objects")}
    common = git(repo, "merge-base", ours, theirs, ok=(0, 1), env=env).text
    if not common:
        return Relation.UNRELATED
    return {theirs: Relation.AHEAD, ours: Relation.BEHIND}.get(common, Relation.DIVERGED)
