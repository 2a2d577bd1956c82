"""What Radicle knows of the network: fetching a repository from peers, how node and repositories stand, what happened there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hyperagent_common.errors import HyperagentError, KeyLocked, NoPeer, NotRegistered
from hyperagent_tasks.radicle import home as homes
from hyperagent_tasks.radicle import node
from hyperagent_tasks.radicle.base import Activity, Comment, Identity, Registration, RepositoryStanding, Seed, Standing
from hyperagent_tasks.radicle.executor import Executor

PATCHES_AT_ONCE = 10
EVENT_LINE = 1 << 20


class Watching:
    """The half of the real forge that looks at the network; `_helper` is the other half's."""

    _home: Path
    _executor: Executor

    def _helper(self, command: str, spec: Mapping[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def fetch(self, rid: str, *, seconds: float) -> Registration:
        """Have a repository of the network here within `seconds`, or nothing of it."""
        try:
            said = self._helper("fetch", {"rid": rid, "wait": seconds})
        except NoPeer as error:  # unlike after a push, nothing is kept that could arrive by itself
            raise NotRegistered(error.message, mend=error.mend) from error
        return Registration(str(said["rid"]), str(said["default_branch"]), str(said["head"]))

    def storage(self, rid: str) -> Path:
        """The bare repository in which Radicle keeps `rid`."""
        return self._home / "storage" / rid.removeprefix("rad:")

    def identities(self) -> list[Identity]:
        """Who acts for this host, known also where no node runs."""
        reviewer = self._home / homes.OWN / "reviewer"
        found = [(role, homes.did(home), homes.alias(home)) for role, home in (("publisher", self._home), ("verifier", reviewer))]
        return [Identity(role, did, alias) for role, did, alias in found if did]

    def version(self) -> str | None:
        """Radicle's version, where somebody knows it."""
        try:
            return self._executor.version()
        except HyperagentError:
            return None

    def standing(self, rids: Sequence[str]) -> Standing:
        """Node, peers and repositories as they stand."""
        said = self._helper("standing", {"rids": list(rids)})
        found = {rid: _repository(rid, told) for rid, told in said["repositories"].items()}
        return Standing(str(said["nid"]), said["socket_since"], tuple(said["sessions"]), found)

    def activity(self, rid: str, branches: Sequence[str]) -> Activity:
        """Heads, canonical and everybody's own, and a fingerprint of each patch."""
        said = self._helper("activity", {"rid": rid, "branches": list(branches)})
        names = ("delegates", "branches", "heads", "patches")
        return Activity(did=f"did:key:{said['nid']}", **{name: said[name] for name in names})

    def comments(self, rid: str, patches: Sequence[str]) -> tuple[list[Comment], list[str]]:
        """The comments of patches, and the patches that could not be read now."""
        found: list[Comment] = []
        unread: list[str] = []
        for at in range(0, len(patches), PATCHES_AT_ONCE):
            said = self._helper("comments", {"rid": rid, "patches": list(patches[at : at + PATCHES_AT_ONCE])})
            found += [
                Comment(**{name: told[name] for name in ("patch", "id", "author", "at", "body")}) for told in said["comments"]
            ]
            unread += said["unread"]
        return found, unread

    @contextmanager
    def events(self) -> Iterator[Iterator[dict[str, Any]]]:
        """What happens at the node from now on; nothing is told again, so look around once this has begun."""
        with node.subscribed(self._home, EVENT_LINE) as lines:
            yield lines

    def unlock(self) -> None:
        """Raise `KeyLocked` where the passphrase does not open the key; the node, which needs it, says only that it failed."""
        done = self._executor.once(["rad-push", "unlock", "--json"])
        if '"key-locked"' in done.stdout:
            raise KeyLocked(
                f"The passphrase given does not open the Radicle key in {self._home}.",
                mend="Mend HYPERAGENT_RADICLE_PASSPHRASE_FILE, then `hyperagent up`.",
            )


def _repository(rid: str, told: Mapping[str, Any]) -> RepositoryStanding:
    seeds = tuple(Seed(s["nid"], s["status"], s["at"]) for s in told.get("seeds", ()))
    return RepositoryStanding(
        rid,
        bool(told.get("rid")),
        str(told.get("default_branch", "")),
        str(told.get("head", "")),
        seeds,
        str(told.get("error", "")),
    )
