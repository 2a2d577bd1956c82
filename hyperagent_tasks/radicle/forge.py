"""The real forge: Radicle, through `rad-push`, one call a publish, so that look-before-do cannot be half done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hyperagent_common.errors import DependencyDown, HyperagentError, NodeDown, NotReady, PushFailed
from hyperagent_tasks.radicle import home as homes
from hyperagent_tasks.radicle import node, outcomes
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
from hyperagent_tasks.radicle.executor import Executor, wait_until
from hyperagent_tasks.radicle.watching import Watching

PUBLISH_WAIT, ANNOUNCE_WAIT = 0.5, 3.0
AUTH = 'printf %s "$RAD_PASSPHRASE" | rad auth --alias "$0" --stdin'
"""Only what comes by stdin protects the new key; the variable alone makes one without a passphrase."""
REVIEWER_ALIAS = "hyperagent-verifier"


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
        try:
            node.ask(self._home, "status")
        except NodeDown:
            if homes.encrypted(self._home):
                self.unlock()  # then that is why
            raise

    def start(self) -> ForgeHealth:
        """Identity, configuration, node; each only where it is missing."""
        fresh = not homes.inspect(self._home, passphrase=self._passphrase)
        if fresh:
            self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
            done = self._executor.once(["sh", "-c", AUTH, self._config.alias])
            if done.exit_code:
                raise NotReady(f"No Radicle identity could be made: {(done.stderr or done.stdout).strip()[-300:]}")
        homes.configure(self._home, self._config, fresh=fresh)
        homes.room(self._home)
        if not self._answers():
            if homes.encrypted(self._home):
                self.unlock()
            self._executor.start_node()
            if not wait_until(self._answers):
                raise NodeDown(f"The Radicle node of {self._home} did not start.", mend="Look into its log.")
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
        """Open or revise the one patch. Not announced is no failure: the push is kept and announced later."""
        asked = {
            "rid": spec.rid,
            "repo": str(spec.repo),
            "key": spec.branch,
            "base": spec.base,
            "heads": list(spec.heads),
            "title": spec.title,
            "body": spec.body,
            "ours": list(spec.ours),
            "published_at": int(spec.published_at.timestamp()),
            "patch": spec.patch_id,
            "wait": PUBLISH_WAIT,
        }
        said = self._helper("publish", asked)
        return Published(str(said["patch"]), str(said["revision"]), str(said["head"]), said["did"], _spread(said))

    def review(self, spec: ReviewSpec) -> Reviewed:
        """The reviewer's key is in a home of its own beside the publisher's; its refs are announced by the same node."""
        asked = {
            "rid": spec.rid,
            "patch": spec.patch_id,
            "revision": spec.revision_id,
            "verdict": spec.verdict,
            "summary": spec.summary,
            "alias": REVIEWER_ALIAS,
            "wait": 0.0,
        }
        said = self._helper("review", asked)
        return Reviewed(str(said["review"]), str(said["reviewer"]), said["did"], _spread(said))

    def announce(self, rid: str) -> Announced:
        """Tell the node again, and look which seeds hold what it tells."""
        return _spread(self._helper("announce", {"rid": rid, "wait": ANNOUNCE_WAIT}))

    def patch(self, rid: str, patch_id: str) -> PatchView | None:
        """Read a patch back."""
        said = self._helper("show", {"rid": rid, "patch": patch_id})
        if not said.get("patch"):
            return None
        told = {name: str(said[name]) for name in ("title", "body", "state", "author")}
        return PatchView(
            patch_id=str(said["patch"]),
            revisions=tuple((str(r["id"]), str(r["head"])) for r in said["revisions"]),
            reviews=tuple(
                ReviewView(str(r["id"]), str(r["reviewer"]), str(r["revision"]), r["verdict"], str(r["summary"]))
                for r in said["reviews"]
            ),
            **told,
        )

    def _helper(self, command: str, spec: Mapping[str, Any]) -> dict[str, Any]:
        done = self._executor.call(["rad-push", command, "--json", "--spec", json.dumps(spec, ensure_ascii=False)])
        lines = done.stdout.strip().split("\n")  # no other end of line: a title may hold one
        try:
            said: dict[str, Any] = json.loads(lines[-1])
        except (IndexError, ValueError) as error:
            told = (done.stderr or done.stdout).strip()[-300:]
            raise PushFailed(f"rad-push {command} ended with {done.exit_code} and no word: {told}") from error
        if said.get("ok") or (said.get("outcome") in outcomes.KEPT and "announced" in said):
            return said
        raise outcomes.error_of(said)


def _spread(said: Mapping[str, Any]) -> Announced:
    return Announced(bool(said.get("announced")), len(said.get("synced_with") or ()), outcomes.trouble_of(said))
