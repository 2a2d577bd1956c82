"""The Forge port: register a repository, publish a branch as one patch, read it back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from hyperagent_common.errors import HyperagentError


@dataclass(frozen=True)
class ForgeHealth:
    """Node and identity of this host. `faults` are sentences with their mend; empty means healthy."""

    name: str
    running: bool
    did: str | None
    nid: str | None
    alias: str | None
    peers: int
    version: str | None
    faults: Sequence[str] = ()


@dataclass(frozen=True)
class Registration:
    """A repository as the forge knows it."""

    rid: str
    default_branch: str
    head: str
    """Commit id of the default branch."""


@dataclass(frozen=True)
class PublishSpec:
    """One push of a workflow's branch. `published_at` is recorded before the first try and never changes, so that
    opening is idempotent; `patch_id` is what the database knows (None: none yet); `heads` are all commits of this
    workflow so far, oldest first, the last is what is pushed. `ours` are sha256 digests of the descriptions we may have
    written before: any other description is a person's, and stays."""

    repo: Path
    rid: str
    branch: str
    base: str
    heads: Sequence[str]
    title: str
    body: str
    published_at: datetime
    patch_id: str | None = None
    ours: Sequence[str] = ()


@dataclass(frozen=True)
class Announced:
    """Whether peers were told and how many hold everything of the repository; `trouble` says why none does yet."""

    announced: bool
    synced_with: int
    trouble: HyperagentError | None = None


@dataclass(frozen=True)
class Published:
    """What the forge holds after a publish, read back from it."""

    patch_id: str
    revision_id: str
    head: str
    did: Literal["opened", "revised", "found"]
    spread: Announced


@dataclass(frozen=True)
class ReviewSpec:
    """A verdict to be said on one revision of a patch, under the reviewer's own identity."""

    rid: str
    patch_id: str
    revision_id: str
    verdict: Literal["accept", "reject"]
    summary: str


@dataclass(frozen=True)
class Reviewed:
    """The review as the forge holds it, read back from it."""

    review_id: str
    reviewer: str
    did: Literal["reviewed", "edited", "found"]
    spread: Announced


@dataclass(frozen=True)
class ReviewView:
    """A review of one revision as the forge tells it."""

    review_id: str
    reviewer: str
    revision_id: str
    verdict: str | None
    summary: str


@dataclass(frozen=True)
class PatchView:
    """A patch as the forge tells it. `revisions` are (revision id, head commit), in the order they were made."""

    patch_id: str
    title: str
    body: str
    state: str
    author: str
    revisions: Sequence[tuple[str, str]]
    reviews: Sequence[ReviewView] = ()


@dataclass(frozen=True)
class Identity:
    """A key that acts for this host: `role` is `publisher`, or who else has one."""

    role: str
    did: str
    alias: str | None


@dataclass(frozen=True)
class Seed:
    """A peer that keeps a repository: `synced`, `outOfSync` or `unknown`; `at` in seconds since 1970."""

    nid: str
    status: str
    at: int | None


@dataclass(frozen=True)
class RepositoryStanding:
    """How a repository stands on this host's node. `head` is empty where its delegates do not agree on one."""

    rid: str
    registered: bool
    default_branch: str = ""
    head: str = ""
    seeds: Sequence[Seed] = ()
    error: str = ""


@dataclass(frozen=True)
class Standing:
    """Node, sessions and repositories of this host; `since` in seconds since 1970."""

    nid: str
    since: float | None
    sessions: Sequence[Mapping[str, Any]] = ()
    repositories: Mapping[str, RepositoryStanding] = field(default_factory=dict)


@dataclass(frozen=True)
class Activity:
    """What a listener compares: canonical heads, each DID's own head of each branch, a fingerprint of each patch."""

    did: str
    delegates: Sequence[str] = ()
    branches: Mapping[str, str] = field(default_factory=dict)
    heads: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    patches: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Comment:
    """A comment on a patch, its body cut; `at` is what its author's clock said, in milliseconds since 1970."""

    patch: str
    id: str
    author: str
    at: int
    body: str


class Forge(Protocol):
    """Where patches go."""

    name: str
    """`radicle` or `stand-in`: said in every result and by the demo."""

    def health(self) -> ForgeHealth:
        """Node, identity and peers, within 3 seconds; never raises for a forge that is down, it says so."""

    def check(self) -> None:
        """Raise `NotReady` or `DependencyDown`, with the mend, where nothing could be published now."""

    def start(self) -> ForgeHealth:
        """Make identity and node where missing, start the node; idempotent. Raises `NotReady`, `DependencyDown`."""

    def stop(self) -> None:
        """Stop the node that `start` started; idempotent."""

    def register(self, repo: Path, *, name: str, description: str, default_branch: str) -> Registration:
        """Register the bare repository `repo`; a second call returns the same. Raises `BadInput`, `ForgeRefused`."""

    def registration(self, rid: str) -> Registration | None:
        """What the forge knows of `rid`, or None."""

    def publish(self, spec: PublishSpec) -> Published:
        """Push the branch and open or revise its one patch, looking before doing: safe to repeat after any crash.
        Raises `PushFailed` (may pass) or `ForgeRefused` (will not)."""

    def review(self, spec: ReviewSpec) -> Reviewed:
        """Say a verdict on a revision under the reviewer's own identity, made where it is missing; looking before doing.
        There is one review a revision: another text replaces it. Raises `PushFailed` or `ForgeRefused`."""

    def announce(self, rid: str) -> Announced:
        """Tell peers again about what was pushed to a repository, and how many hold it. Raises `PushFailed`."""

    def patch(self, rid: str, patch_id: str) -> PatchView | None:
        """Read one patch back, or None."""

    def fetch(self, rid: str, *, seconds: float) -> Registration:
        """Have a repository of the network here, or nothing of it. Raises `ForgeRefused`, `DependencyDown`, `BadInput`."""

    def storage(self, rid: str) -> Path:
        """The bare repository in which the forge keeps `rid`, to read its default branch from."""

    def identities(self) -> list[Identity]:
        """Every identity of this host on the forge, also where no node runs."""

    def version(self) -> str | None:
        """The forge's version, where it is known."""

    def standing(self, rids: Sequence[str]) -> Standing:
        """Node, peers and repositories as they stand. Raises `DependencyDown`."""

    def activity(self, rid: str, branches: Sequence[str]) -> Activity:
        """What changed or not since somebody looked. Raises `DependencyDown`, `ForgeRefused`."""

    def comments(self, rid: str, patches: Sequence[str]) -> tuple[list[Comment], list[str]]:
        """The comments of these patches, oldest first in each, and the patches that could not be read now."""

    def events(self) -> AbstractContextManager[Iterator[dict[str, Any]]]:
        """What happens at the node from now on. Raises `DependencyDown`, also when the node goes away."""
