"""The real forge: Radicle, through `rad-push`, one call a publish, so that look-before-do cannot be half done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hyperagent_common.errors import (
    BadInput,
    DependencyDown,
    Fault,
    ForgeRefused,
    HyperagentError,
    NotReady,
    PushFailed,
)
from hyperagent_tasks.radicle import home as homes
from hyperagent_tasks.radicle import node
from hyperagent_tasks.radicle.base import ForgeHealth, PatchView, Published, PublishSpec, Registration
from hyperagent_tasks.radicle.executor import Executor, wait_until
from hyperagent_tasks.radicle.watching import Watching

ANNOUNCED_ANYWAY = {"node-down", "no-peer", "sync-timeout"}
PUBLISH_WAIT = 0.5


class RadicleForge(Watching):
    """Publishes to this host's Radicle node."""

    name = "radicle"

    def __init__(self, home: Path, executor: Executor, config: homes.NodeConfig, *, passphrase: bool = False) -> None:
        self._home, self._executor, self._config, self._passphrase = home, executor, config, passphrase

    def health(self) -> ForgeHealth:
        """Ask the node's socket; what is wrong is said, not raised."""
        faults: list[str] = []
        nid: str | None = None
        peers = 0
        try:
            homes.inspect(self._home, passphrase=self._passphrase)
            nid = str(node.ask(self._home, "nodeId"))
            peers = node.peers(self._home)
        except HyperagentError as error:
            faults.append(error.sentence)
        did = f"did:key:{nid}" if nid else None
        return ForgeHealth(self.name, not faults, did, nid, self._config.alias, peers, None, tuple(faults))

    def check(self) -> None:
        """The home is fit and the node answers."""
        if not homes.inspect(self._home, passphrase=self._passphrase):
            raise NotReady(f"The Radicle home {self._home} has no identity yet.", mend="`hyperagent up` makes it.")
        homes.room(self._home)
        node.ask(self._home, "status")

    def start(self) -> ForgeHealth:
        """Identity, configuration, node; each only where it is missing."""
        fresh = not homes.inspect(self._home, passphrase=self._passphrase)
        if fresh:
            self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
            done = self._executor.once(["rad", "auth", "--alias", self._config.alias, "--stdin"])
            if done.exit_code:
                raise NotReady(f"No Radicle identity could be made: {(done.stderr or done.stdout).strip()[-300:]}")
        homes.configure(self._home, self._config, fresh=fresh)
        if not self._answers():
            self._executor.start_node()
            if not wait_until(self._answers):
                raise DependencyDown(f"The Radicle node of {self._home} did not start.", mend="Look into its log.")
        return self.health()

    def _answers(self) -> bool:
        try:
            node.ask(self._home, "status", timeout=1)
        except DependencyDown:
            return False
        return True

    def stop(self) -> None:
        """Stop the node."""
        self._executor.stop_node()

    def register(self, repo: Path, *, name: str, description: str, default_branch: str) -> Registration:
        """Register a bare repository, or find it registered."""
        spec = {"repo": str(repo), "name": name, "description": description, "branch": default_branch}
        said = self._helper("register", spec)
        return Registration(str(said["rid"]), str(said["default_branch"]), str(said["head"]))

    def registration(self, rid: str) -> Registration | None:
        """What the node's storage knows of it."""
        said = self._helper("registration", {"rid": rid})
        if not said.get("rid"):
            return None
        return Registration(str(said["rid"]), str(said["default_branch"]), str(said["head"]))

    def publish(self, spec: PublishSpec) -> Published:
        """Open or revise the one patch. Not announced is no failure: the push is kept and announced with the next."""
        said = self._helper(
            "publish",
            {
                "rid": spec.rid,
                "repo": str(spec.repo),
                "key": spec.branch,
                "base": spec.base,
                "heads": list(spec.heads),
                "title": " ".join(spec.title.split()),
                "body": spec.body,
                "published_at": int(spec.published_at.timestamp()),
                "patch": spec.patch_id,
                "wait": PUBLISH_WAIT,
            },
        )
        return Published(
            patch_id=str(said["patch"]),
            revision_id=str(said["revision"]),
            head=str(said["head"]),
            did=said["did"],
            announced=bool(said.get("announced")),
            synced_with=len(said.get("synced_with") or ()),
        )

    def patch(self, rid: str, patch_id: str) -> PatchView | None:
        """Read a patch back."""
        said = self._helper("show", {"rid": rid, "patch": patch_id})
        if not said.get("patch"):
            return None
        revisions = tuple((str(r["id"]), str(r["head"])) for r in said["revisions"])
        told = {name: str(said[name]) for name in ("title", "body", "state", "author")}
        return PatchView(patch_id=str(said["patch"]), revisions=revisions, **told)

    def _helper(self, command: str, spec: Mapping[str, Any]) -> dict[str, Any]:
        done = self._executor.call(["rad-push", command, "--json", "--spec", json.dumps(spec)])
        lines = done.stdout.strip().splitlines()
        try:
            said: dict[str, Any] = json.loads(lines[-1])
        except (IndexError, ValueError) as error:
            told = (done.stderr or done.stdout).strip()[-300:]
            raise PushFailed(f"rad-push {command} ended with {done.exit_code} and no word: {told}") from error
        outcome = str(said.get("outcome"))
        if said.get("ok") or (outcome in ANNOUNCED_ANYWAY and "patch" in said):
            return said
        raise _error(outcome, str(said.get("error", outcome)), str(said.get("mend", "")))


def _error(outcome: str, message: str, mend: str) -> HyperagentError:
    """The helper's outcome as our error, each with its retry rule."""
    if outcome == "bad-input":
        return BadInput(message, faults=[Fault("repository", message)], mend=mend)
    if outcome in ("not-registered", "rejected"):
        return ForgeRefused(message, mend=mend)
    if outcome == "node-down":
        return DependencyDown(message, mend=mend)
    return PushFailed(message, mend=mend)
