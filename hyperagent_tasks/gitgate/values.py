"""What the git gateway is told and what it answers, as frozen values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal


@dataclass(frozen=True)
class SourceInfo:
    """A person's repository: its default branch and the commit there."""

    default_branch: str
    head: str


@dataclass(frozen=True)
class Person:
    """A name and an address as git writes them."""

    name: str
    email: str


HOST = Person("HyperAgent", "hyperagent@hyperagent.invalid")


@dataclass(frozen=True)
class Limits:
    """Limits of one import: bytes of the bundle, bytes of memory for unpacking it, seconds."""

    bundle_bytes: int = 512 << 20
    memory: int = 4 << 30
    seconds: float = 300.0


@dataclass(frozen=True)
class TreePolicy:
    """What a sealed tree may change. `refused_paths` are globs (`*` also matches `/`); sizes in bytes."""

    refused_paths: Sequence[str] = ()
    file_bytes: int = 64 << 20
    total_bytes: int = 512 << 20
    files: int = 5000


@dataclass(frozen=True)
class ChangedFile:
    """One file between base and sealed tree; `insertions` and `deletions` are None for a binary file."""

    path: str
    change: Literal["added", "modified", "deleted", "retyped"]
    mode: str
    insertions: int | None
    deletions: int | None


@dataclass(frozen=True)
class Sealed:
    """A sealed tree that passed quarantine and policy: `tree` and `sealed_commit` on `base`."""

    base: str
    tree: str
    sealed_commit: str
    changed_files: Sequence[ChangedFile]

    @property
    def changed(self) -> bool:
        """False where the sealer committed the base's own tree."""
        return bool(self.changed_files)

    @property
    def insertions(self) -> int:
        """Lines added in text files."""
        return sum(entry.insertions or 0 for entry in self.changed_files)

    @property
    def deletions(self) -> int:
        """Lines removed from text files."""
        return sum(entry.deletions or 0 for entry in self.changed_files)


@dataclass(frozen=True)
class CommitResult:
    """A step's commit. `tip_moved`: another step came first, so `tree` is a merge; `found`: it was there already."""

    commit: str
    tree: str
    tip_moved: bool
    found: bool = False


@dataclass(frozen=True)
class CommitInfo:
    """A commit as it stands on a branch; `step` is the id in its trailer, `when` the committer's time."""

    commit: str
    parents: Sequence[str]
    tree: str
    title: str
    step: str | None
    when: datetime
