"""The stand-in forge for machines without Radicle: keeps patches in a JSON file. NOTHING LEAVES THIS MACHINE.

It behaves as the real one does where tests can tell, and passes the same contract suite.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hyperagent_common.errors import BadInput, DependencyDown, Fault, ForgeRefused
from hyperagent_tasks.radicle.base import (
    Activity,
    Comment,
    ForgeHealth,
    Identity,
    PatchView,
    Published,
    PublishSpec,
    Registration,
    RepositoryStanding,
    Standing,
)

log = logging.getLogger(__name__)
NOTICE = "stand-in forge: nothing leaves this machine"


class StandInForge:
    """Patches in a file; `head_of(repo, branch)` gives a commit or None, `has(repo, commit)` whether it is there."""

    name = "stand-in"

    def __init__(self, home: Path, *, head_of: Callable[[Path, str], str | None], has: Callable[[Path, str], bool]) -> None:
        self._home, self._head_of, self._has = home, head_of, has
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
        head = self._head_of(repo, default_branch)
        if head is None:
            told = f"The repository {repo} has no commits on {default_branch}."
            raise BadInput(told, faults=[Fault("repository", told)], mend="Make a first commit.")
        rid = "rad:z" + _digest(name, description, default_branch, str(repo))[:28]
        with self._state() as state:
            entry = state["repositories"].setdefault(rid, {"branch": default_branch, "head": head, "patches": {}})
            return Registration(rid, entry["branch"], entry["head"])

    def registration(self, rid: str) -> Registration | None:
        """What was noted."""
        with self._state() as state:
            entry = state["repositories"].get(rid)
        return None if entry is None else Registration(rid, entry["branch"], entry["head"])

    def publish(self, spec: PublishSpec) -> Published:
        """Look the patch up by its id or any head, then open or revise it."""
        head = spec.heads[-1]
        if not self._has(spec.repo, head):
            raise ForgeRefused(f"The repository {spec.repo} does not hold the commit {head}.")
        with self._state() as state:
            entry = state["repositories"].get(spec.rid)
            if entry is None:
                raise ForgeRefused(f"The repository {spec.rid} is not registered.", mend="Register it.")
            patches = entry["patches"]
            known = spec.patch_id if spec.patch_id in patches else _by_head(patches, spec.heads)
            if known is None:
                known = _digest(spec.base, spec.branch, str(int(spec.published_at.timestamp())))[:40]
                patches[known] = {
                    "title": " ".join(spec.title.split()),
                    "body": spec.body,
                    "revisions": [],
                    "state": "open",
                }
                did = "opened"
            else:
                did = "revised"
            revisions = patches[known]["revisions"]
            found = next((r for r in revisions if r[1] == head), None)
            if found is None:
                found = [_digest(known, head)[:40], head]
                revisions.append(found)
            else:
                did = "found"
        return Published(known, found[0], head, did, False, 0)  # type: ignore[arg-type]

    def patch(self, rid: str, patch_id: str) -> PatchView | None:
        """Read a patch back."""
        with self._state() as state:
            entry = state["repositories"].get(rid, {"patches": {}})["patches"].get(patch_id)
        if entry is None:
            return None
        revisions = tuple((r[0], r[1]) for r in entry["revisions"])
        return PatchView(patch_id, entry["title"], entry["body"], entry["state"], "stand-in", revisions)

    def fetch(self, rid: str, *, seconds: float) -> Registration:
        """There is no network here: only what was noted is there."""
        found = self.registration(rid)
        if found is None:
            told = f"The stand-in forge knows no network, so {rid} cannot be fetched."
            raise ForgeRefused(told, mend="Register a local repository, or install Radicle.")
        return found

    def storage(self, rid: str) -> Path:
        """It keeps no repositories."""
        raise ForgeRefused("The stand-in forge keeps no repositories.", mend="Register a local repository.")

    def identities(self) -> list[Identity]:
        """It signs nothing."""
        return []

    def version(self) -> str | None:
        """It has none."""
        return None

    def standing(self, rids: Sequence[str]) -> Standing:
        """No node, no peers."""
        known = {rid: self.registration(rid) for rid in rids}
        found = {
            rid: RepositoryStanding(rid, reg is not None, reg.default_branch if reg else "", reg.head if reg else "")
            for rid, reg in known.items()
        }
        return Standing("", None, (), found)

    def activity(self, rid: str, branches: Sequence[str]) -> Activity:
        """Nobody else is here, so nothing happens."""
        return Activity(did="")

    def comments(self, rid: str, patches: Sequence[str]) -> Iterator[Comment]:
        """None."""
        return iter(())

    @contextlib.contextmanager
    def events(self) -> Iterator[Iterator[dict[str, Any]]]:
        """There is no node to listen to."""
        raise DependencyDown("The stand-in forge has no node to listen to.")
        yield iter(())

    def retitle(self, rid: str, patch_id: str, title: str) -> None:
        """What a person does with `rad patch edit`."""
        with self._state() as state:
            state["repositories"][rid]["patches"][patch_id]["title"] = title

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


def _by_head(patches: dict[str, Any], heads: Any) -> str | None:
    return next((key for key, entry in patches.items() if any(r[1] in heads for r in entry["revisions"])), None)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()
