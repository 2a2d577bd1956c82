"""A Radicle home: is it fit for use, and the node's configuration in it. Nothing here deletes or overwrites a key."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperagent_common import base58
from hyperagent_common.errors import DiskFull, NotReady
from hyperagent_tasks.radicle.node import SOCKET_LIMIT, socket_path

OWN = "hyperagent"
MIN_FREE = 128 << 20


@dataclass(frozen=True)
class NodeConfig:
    """What the node is told."""

    alias: str
    network: str
    listen: str
    connect: Sequence[str]

    def document(self) -> dict[str, Any]:
        """config.json: on the network `test` the node talks to nobody but `connect`."""
        node: dict[str, Any] = {
            "alias": self.alias,
            "network": self.network,
            "listen": [self.listen],
            "connect": list(self.connect),
            "relay": "always",
            "seedingPolicy": {"default": "allow", "scope": "all"},
        }
        if self.network == "test":
            node["peers"] = {"type": "static"}
            return {"preferredSeeds": [], "cli": {"hints": False}, "node": node}
        node["seedingPolicy"] = {"default": "block"}  # on a public network only what is registered here
        return {"cli": {"hints": False}, "node": node}


def inspect(home: Path, *, passphrase: bool) -> bool:
    """True where the home has an identity, False where one may be made. Raises `NotReady` for a home unfit for use."""
    longest = str(socket_path(home))
    if len(longest.encode()) > SOCKET_LIMIT:
        raise NotReady(
            f"The Radicle home {home} is too long for a Unix socket by {len(longest.encode()) - SOCKET_LIMIT} bytes.",
            mend="Set HYPERAGENT_RADICLE_HOME to a shorter path.",
        )
    if not home.exists():
        return False
    if not home.is_dir() or not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        raise NotReady(f"The Radicle home {home} is not a directory this user can write.", mend="Mend its owner and mode.")
    return _identity(home, passphrase)


def _identity(home: Path, passphrase: bool) -> bool:
    secret, public = home / "keys" / "radicle", home / "keys" / "radicle.pub"
    if not secret.exists() and not public.exists():
        left = sorted(p.name for p in home.iterdir() if p.name not in (OWN, "keys"))
        if left:
            raise NotReady(
                f"The Radicle home {home} is dirty: it has {', '.join(left[:5])} but no key.",
                mend="Put its key back into keys/, or move the directory away and start again.",
            )
        return False
    if not secret.exists() or not public.exists():
        lacking = (secret if not secret.exists() else public).name
        raise NotReady(f"The Radicle home {home} is dirty: keys/{lacking} is missing.", mend="Put the key pair back.")
    if _encrypted(secret) and not passphrase:
        raise NotReady(
            f"The Radicle key in {home} has a passphrase, and none is given.",
            mend="Set HYPERAGENT_RADICLE_PASSPHRASE_FILE.",
        )
    if passphrase and not _encrypted(secret):
        raise NotReady(
            f"The Radicle key in {home} has no passphrase, and one is given: its node would not start.",
            mend=f"Unset HYPERAGENT_RADICLE_PASSPHRASE, or give the key that passphrase: ssh-keygen -p -f {secret}",
        )
    _config_fit(home)
    return True


def encrypted(home: Path) -> bool:
    """Whether the home's key has a passphrase. Raises `NotReady` where it cannot be read."""
    return _encrypted(home / "keys" / "radicle")


def _encrypted(secret: Path) -> bool:
    try:
        body = "".join(secret.read_text().split("-----")[2].split())
        raw = base64.b64decode(body)
    except (OSError, UnicodeDecodeError, IndexError, binascii.Error) as error:
        raise NotReady(f"The Radicle key {secret} cannot be read.", mend="Put the key pair back.") from error
    return not raw.startswith(b"openssh-key-v1\x00\x00\x00\x00\x04none")


def _config_fit(home: Path) -> None:
    path = home / "config.json"
    try:
        if path.exists() and not isinstance(json.loads(path.read_text()), dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError) as error:
        raise NotReady(f"The Radicle home {home} is dirty: config.json: {error}", mend="Mend or remove it.") from error


def configure(home: Path, config: NodeConfig, *, fresh: bool) -> None:
    """Write config.json where it is ours (made with a `fresh` identity, or unchanged since we wrote it)."""
    path, mark = home / "config.json", home / OWN / "config.sha256"
    wanted = json.dumps(config.document(), indent=2).encode()
    current = path.read_bytes() if path.exists() else b""
    ours = fresh or not current or (mark.exists() and mark.read_text() == _digest(current))
    if not ours or current == wanted:
        return
    mark.parent.mkdir(exist_ok=True)
    for target, data in ((path, wanted), (mark, _digest(wanted).encode())):
        partial = target.with_name(target.name + ".partial")
        partial.write_bytes(data)
        partial.replace(target)


def room(home: Path) -> None:
    """Raise `DiskFull` where the disk under the home is nearly full: a push that dies of it leaves a mess."""
    free = shutil.disk_usage(home).free
    if free < MIN_FREE:
        raise DiskFull(f"Only {free >> 20} MiB are free for the Radicle home {home}.", mend="Make room there.")


def did(home: Path) -> str | None:
    """The home's identity, from its public key: known also where no node runs."""
    try:
        raw = base64.b64decode((home / "keys" / "radicle.pub").read_text().split()[1], validate=True)
    except (OSError, UnicodeDecodeError, IndexError, binascii.Error):
        return None
    if not raw.startswith(b"\x00\x00\x00\x0bssh-ed25519") or len(raw) != 51:
        return None
    return f"did:key:z{base58.encode(bytes((0xED, 0x01)) + raw[-32:])}"


def alias(home: Path) -> str | None:
    """The alias in the home's configuration, where it has one."""
    try:
        found = json.loads((home / "config.json").read_text())["node"]["alias"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) and found.isprintable() else None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
