"""A second Radicle node in its own container, that knows only the first one's address."""

from __future__ import annotations

import contextlib
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from hyperagent_tasks.parts import instance
from tests import parts
from tests.harness import Host


class Peer:
    """A node with its own key and storage."""

    def __init__(self, container: Any, rid: str, host_nid: str = "") -> None:
        self._container, self._rid, self.host_nid = container, rid, host_nid

    def run(self, *argv: str, check: bool = True, cwd: str | None = None) -> str:
        """Run a command beside the node."""
        code, output = self._container.exec_run(list(argv), workdir=cwd)
        text: str = output.decode("utf-8", "replace")
        assert not check or code == 0, f"{' '.join(argv)} ended with {code}: {text}"
        return text

    def patch(
        self, patch_id: str, seconds: float = 60, until: Callable[[dict[str, Any]], bool] = lambda _patch: True
    ) -> dict[str, Any]:
        """The patch as this node's `rad` tells it, once it has come and is as it should be; this node fetches by itself,
        and only half the time over does the test ask it to."""
        argv = ["rad", "cob", "show", "--repo", self._rid, "--type", "xyz.radicle.patch", "--object", patch_id]
        began = time.monotonic()
        while True:
            text = self.run(*argv, check=False)
            if text.startswith("{") and until(shown := json.loads(text)):
                return dict(shown)
            assert time.monotonic() < began + seconds, text
            if time.monotonic() > began + seconds / 2:
                self.run("rad", "sync", "--fetch", self._rid, check=False)
            time.sleep(0.25)

    def stop(self) -> None:
        """End the node; its storage stays."""
        self._container.stop(timeout=3)

    def start(self) -> None:
        """Start it again."""
        self._container.start()

    def pause(self) -> None:
        """Freeze it: connected, and silent."""
        self._container.pause()

    def unpause(self) -> None:
        """Let it go on."""
        self._container.unpause()

    def reach(self, host: Host, seconds: float = 180) -> None:
        """Connect to the host's node, which may have another address since it was started again.

        A node that goes on trying an address it was given takes no other one for the same peer: it is started anew with it.
        """
        deadline = time.monotonic() + seconds
        while True:
            _, _, address = _node_of(host)
            if f"@{address}:" not in self.run("cat", "/rad/config.json"):
                self.run("sed", "-i", f"s|{self.host_nid}@[^:]*:|{self.host_nid}@{address}:|", "/rad/config.json")
                self.stop()
                self.start()
            self.run("rad", "node", "connect", f"{self.host_nid}@{address}:8776", "--timeout", "5s", check=False)
            said = self.run("rad", "node", "status", check=False)
            if address in said and "✓" in said.partition("NID")[2] + said.partition("Node ID  ")[2]:
                return
            assert time.monotonic() < deadline, said
            time.sleep(0.5)

    def read(self, rid: str) -> None:
        """Clone `rid` from the host's node."""
        self._rid = rid
        deadline = time.monotonic() + 45
        while "No repository" in (said := self.run("rad", "inspect", rid, "--payload", check=False)) or "rror" in said:
            assert time.monotonic() < deadline, said
            self.run("rad", "seed", rid, "--scope", "all", check=False)
            self.run("rad", "sync", "--fetch", rid, "--seed", self.host_nid, check=False)
            time.sleep(0.5)

    @property
    def did(self) -> str:
        """Its identity."""
        return self.run("rad", "self", "--did").strip()

    def repository(self, name: str, *, private: bool = False) -> str:
        """A repository of its own with one commit in /tmp/NAME, pushed to its node; the Radicle id."""
        self.shell(name, f"git init -q -b main . && echo {name} >README && git add . && git commit -q -m first")
        seen = "--private" if private else "--public"
        argv = ["rad", "init", "--name", name, "--description", name, "--default-branch", "main", seen]
        self.run(*argv, "--scope", "all", "--no-confirm", cwd=f"/tmp/{name}")
        return self.run("rad", "inspect", "--rid", cwd=f"/tmp/{name}").strip()

    def shell(self, name: str, script: str) -> str:
        """Run a script in /tmp/NAME."""
        return self.run("sh", "-c", f"mkdir -p /tmp/{name} && cd /tmp/{name} && {script}")

    def push(self, name: str, text: str = "more") -> str:
        """One more commit on main, pushed and announced; the commit."""
        self.shell(name, f"echo {text} >>README && git commit -q -a -m {text} && git push -q rad main 2>&1")
        return self.shell(name, "git rev-parse HEAD").strip()

    def comment(self, rid: str, patch: str, text: str) -> str:
        """Comment on a patch, announced; the comment's id."""
        said = self.run("rad", "patch", "comment", patch, "-m", text, "-q", "--repo", rid)
        return next(line for line in said.split() if re.fullmatch("[0-9a-f]{40}", line))

    def commit_exists(self, commit: str) -> bool:
        """Whether this node's storage holds the commit."""
        storage = f"/rad/storage/{self._rid.removeprefix('rad:')}"
        return self.run("git", "-C", storage, "cat-file", "-t", commit).strip() == "commit"


def _node_of(host: Host) -> tuple[Any, str, str]:
    """The host's node, its network, and its address there."""
    settings = type("S", (), {"home": host.home})()
    node = parts.require_docker().containers.get(f"ha-radicle-{instance(settings)}")
    network, there = next(iter(node.attrs["NetworkSettings"]["Networks"].items()))
    return node, network, there["IPAddress"] if network == "bridge" else node.name  # a name outlives a restart


@contextlib.contextmanager
def peer_of(host: Host) -> Iterator[Peer]:
    """A peer that is connected to the host's node."""
    client = parts.require_docker()
    node, network, address = _node_of(host)
    nid = node.exec_run(["rad", "self", "--did"]).output.decode().strip().removeprefix("did:key:")
    config = {
        "preferredSeeds": [],
        "cli": {"hints": False},
        "node": {
            "alias": "peer",
            "network": "test",
            "listen": ["0.0.0.0:8776"],
            "peers": {"type": "static"},
            "connect": [f"{nid}@{address}:8776"],
            "relay": "always",
            "seedingPolicy": {"default": "allow", "scope": "all"},
        },
    }
    begin = 'mkdir -p /rad; rad auth --alias peer --stdin </dev/null >/dev/null && printf %s "$CONFIG" >/rad/config.json'
    start = f"export RAD_HOME=/rad RAD_PASSPHRASE=; if [ ! -e /rad/keys ]; then {begin}; fi; exec radicle-node --force"
    who = {f"GIT_{role}_{what}": "peer@localhost" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    container = client.containers.run(
        parts.require_radicle_image(),
        ["sh", "-c", start],
        name=f"ha-peer-{uuid.uuid4().hex[:8]}",
        detach=True,
        init=True,
        network=network,
        environment={"CONFIG": json.dumps(config), "RAD_HOME": "/rad", "RAD_PASSPHRASE": "", "HOME": "/tmp", **who},
    )
    try:
        peer = Peer(container, "", nid)
        deadline = time.monotonic() + 45
        while "connected" not in (said := peer.run("rad", "node", "sessions", check=False)) and "✓" not in said:
            assert time.monotonic() < deadline, said
            time.sleep(0.2)
        yield peer
    finally:
        container.remove(force=True)


@contextlib.contextmanager
def peer_reading(host: Host, rid: str) -> Iterator[Peer]:
    """A peer that has cloned `rid` from the host's node."""
    with peer_of(host) as peer:
        peer.read(rid)
        yield peer
