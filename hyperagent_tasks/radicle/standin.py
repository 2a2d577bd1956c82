"""The stand-in forge for machines without Radicle: keeps patches in a JSON file. NOTHING LEAVES THIS MACHINE.

It behaves as the real one does where tests can tell, and passes the same contract suite.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from hyperagent_common import base58
from hyperagent_common.errors import BadInput, Diverged, Fault, NothingToPropose, NotRegistered, PatchClosed, PushRejected
from hyperagent_tasks.gitgate import GitGate
from hyperagent_tasks.radicle.base import (
    Announced,
    ForgeHealth,
    PatchView,
    Published,
    PublishSpec,
    Registration,
    Reviewed,
    ReviewSpec,
    ReviewView,
)
from hyperagent_tasks.radicle.standin_network import NoNetwork

log = logging.getLogger(__name__)
NOTICE = "stand-in forge: nothing leaves this machine"
NOWHERE = Announced(False, 0)
REVIEWER = "did:stand-in:verifier"


class StandInForge(NoNetwork):
    """Patches in a file. The gate reads repositories for it."""

    name = "stand-in"

    def __init__(self, home: Path, gate: GitGate) -> None:
        self._home, self._gate = home, gate
        log.warning("forge.stand-in", extra={"notice": NOTICE})

    def health(self) -> ForgeHealth:
        """Always up: there is nothing that could be down."""
        return ForgeHealth(self.name, True, None, None, "stand-in", 0, None, ())

    def check(self) -> None:
        """Nothing to look at."""

    def start(self) -> ForgeHealth:
        """Make its directory."""
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self.health()

    def stop(self) -> None:
        """Nothing runs."""

    def register(self, repo: Path, *, name: str, description: str, default_branch: str) -> Registration:
        """Note the repository under an id made from name, description and branch, as Radicle does."""
        head = self._gate.head_of(repo, default_branch)
        if head is None:
            told = f"The repository {repo} has no commits on {default_branch}."
            raise BadInput(told, faults=[Fault("repository", told)], mend="Make a first commit.")
        digest = bytes.fromhex(_digest(name, description, default_branch, str(repo)))
        rid = f"rad:z{base58.encode(digest[: base58.RID_BYTES])}"
        with self._state() as state:
            entry = state["repositories"].setdefault(rid, {"branch": default_branch, "head": head, "patches": {}})
            return Registration(rid, entry["branch"], entry["head"])

    def registration(self, rid: str) -> Registration | None:
        """What was noted."""
        with self._state() as state:
            entry = state["repositories"].get(rid)
        return None if entry is None else Registration(rid, entry["branch"], entry["head"])

    def publish(self, spec: PublishSpec) -> Published:
        """Look the patch up by its id or any head, then open or revise it, and say of it what is still ours to say."""
        head = spec.heads[-1]
        if not self._gate.has(spec.repo, head):
            raise PushRejected(f"The repository {spec.repo} does not hold the commit {head}.")
        with self._state() as state:
            patches = _entry(state, spec.rid)["patches"]
            made = _digest(spec.base, spec.branch, str(int(spec.published_at.timestamp())))[:40]
            recorded = spec.patch_id if spec.patch_id in patches else None
            known = recorded or _by_head(patches, spec.heads) or made
            did: Literal["opened", "revised", "found"] = "revised" if known in patches else "opened"
            if known not in patches:
                if head == spec.base:
                    raise NothingToPropose(f"The commit {head} is in the default branch already.")
                patches[known] = {"title": "", "body": "", "revisions": [], "state": "open", "reviews": {}}
            revisions = patches[known]["revisions"]
            found = self._covering(revisions, spec)
            if found is None:
                _may_revise(known, patches[known], spec)
                found = [_digest(known, head)[:40], head]
                revisions.append(found)
            else:
                did = "found"
            _describe(patches[known], spec)
        return Published(known, found[0], found[1], did, NOWHERE)

    def _covering(self, revisions: list[list[str]], spec: PublishSpec) -> list[str] | None:
        """The revision at the head, else one at a later commit of the workflow, which another step was quicker to publish."""
        head, later = spec.heads[-1], (r for r in revisions if r[1] not in spec.heads)
        exact = next((r for r in revisions if r[1] == head), None)
        return exact or next((r for r in later if self._gate.holds(spec.repo, head, r[1])), None)

    def review(self, spec: ReviewSpec) -> Reviewed:
        """One review a revision, by an identity that is only a name."""
        with self._state() as state:
            patch = _entry(state, spec.rid)["patches"].get(spec.patch_id, {"revisions": ()})
            if not any(r[0] == spec.revision_id for r in patch["revisions"]):
                raise PushRejected(f"The patch {spec.patch_id} with the revision {spec.revision_id} is not there.")
            reviews, said = patch.setdefault("reviews", {}), [spec.verdict, spec.summary]
            did: Literal["reviewed", "edited", "found"] = "edited" if spec.revision_id in reviews else "reviewed"
            did = "found" if reviews.get(spec.revision_id) == said else did
            reviews[spec.revision_id] = said
        return Reviewed(_review_id(spec.revision_id), REVIEWER, did, NOWHERE)

    def announce(self, rid: str) -> Announced:
        """There is nobody to tell."""
        return NOWHERE

    def patch(self, rid: str, patch_id: str) -> PatchView | None:
        """Read a patch back."""
        with self._state() as state:
            entry = state["repositories"].get(rid, {"patches": {}})["patches"].get(patch_id)
        if entry is None:
            return None
        reviews = tuple(
            ReviewView(_review_id(revision), REVIEWER, revision, verdict, summary)
            for revision, (verdict, summary) in entry.get("reviews", {}).items()
        )
        revisions = tuple((r[0], r[1]) for r in entry["revisions"])
        return PatchView(patch_id, entry["title"], entry["body"], entry["state"], "stand-in", revisions, reviews)

    def by_hand(self, rid: str, patch_id: str, **changes: object) -> None:
        """What a person does with `rad patch`: set title, body, state or revisions."""
        with self._state() as state:
            state["repositories"][rid]["patches"][patch_id].update(changes)

    @contextlib.contextmanager
    def _state(self) -> Iterator[dict[str, Any]]:
        """The file under a lock; written whole or not at all."""
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._home / "stand-in.json"
        with (self._home / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = path.read_text() if path.exists() else '{"repositories": {}}'
            state = json.loads(before)
            yield state
            after = json.dumps(state, indent=1)
            if after != before:
                partial = path.with_suffix(".partial")
                partial.write_text(after)
                partial.replace(path)


def _entry(state: dict[str, Any], rid: str) -> dict[str, Any]:
    if rid not in state["repositories"]:
        raise NotRegistered(f"The repository {rid} is not registered.", mend="Register it.")
    entry: dict[str, Any] = state["repositories"][rid]
    return entry


def _may_revise(patch_id: str, patch: dict[str, Any], spec: PublishSpec) -> None:
    if patch["state"] in ("merged", "archived"):
        raise PatchClosed(f"The patch {patch_id} was {patch['state']}.", mend="Reopen it, or submit a new plan.")
    if patch["revisions"] and patch["revisions"][-1][1] not in spec.heads:
        raise Diverged(f"The patch {patch_id} was revised to a commit that is none of this workflow's.")


def _describe(patch: dict[str, Any], spec: PublishSpec) -> None:
    patch["title"] = patch["title"] or re.sub(r"\s*[\r\n]+\s*", " ", spec.title).strip() or spec.branch
    if not patch["body"] or _digest(patch["body"]) in spec.ours:
        patch["body"] = spec.body


def _review_id(revision_id: str) -> str:
    return _digest("review", revision_id)[:40]


def _by_head(patches: dict[str, Any], heads: Any) -> str | None:
    return next((key for key, entry in patches.items() if any(r[1] in heads for r in entry["revisions"])), None)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()
