"""What `rad-push` can answer, each outcome as an error: its class is its retry rule (docs/radicle.md is tested against it)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hyperagent_common.errors import (
    BadInput,
    DependencyDown,
    DiskFull,
    Diverged,
    Fault,
    HyperagentError,
    KeyLocked,
    NodeDown,
    NoPeer,
    NothingToPropose,
    NotRegistered,
    PatchClosed,
    Permanent,
    PublisherBusy,
    PushFailed,
    PushRejected,
    PushTimedOut,
    SyncTimedOut,
)

OUTCOMES: Mapping[str, type[HyperagentError]] = {
    "bad-input": BadInput,
    "not-registered": NotRegistered,
    "node-down": NodeDown,
    "no-peer": NoPeer,
    "rejected": PushRejected,
    "sync-timeout": SyncTimedOut,
    "locked": PublisherBusy,
    "push-failed": PushFailed,
    "diverged": Diverged,
    "timed-out": PushTimedOut,
    "disk-full": DiskFull,
    "key-locked": KeyLocked,
    "patch-closed": PatchClosed,
    "nothing": NothingToPropose,
}
KEPT = ("node-down", "no-peer", "sync-timeout")
"""Outcomes with which the push itself is done: it is kept in local storage, and told to peers later."""
MENDS: Mapping[type[HyperagentError], str] = {
    NoPeer: "Connect a peer (HYPERAGENT_RADICLE_CONNECT), or let one connect.",
    SyncTimedOut: "Look whether the peer answers; it is announced again by itself.",
    DiskFull: "Make room in the Radicle home.",
    KeyLocked: "Set HYPERAGENT_RADICLE_PASSPHRASE_FILE, then replay the dead letter.",
}


def error_of(said: Mapping[str, Any]) -> HyperagentError:
    """The answer of a failed call as our error; an outcome nobody knows may pass."""
    kind = OUTCOMES.get(str(said.get("outcome")), PushFailed)
    message = str(said.get("error") or (kind.__doc__ or "").strip())
    mend = str(said.get("mend") or MENDS.get(kind, ""))
    return kind(message, faults=[Fault("repository", message)] if kind is BadInput else (), mend=mend)


def trouble_of(said: Mapping[str, Any]) -> HyperagentError | None:
    """Why a push that is done is with no peer yet, or None."""
    return error_of(said) if said.get("outcome") in KEPT else None


def retry_rule(kind: type[HyperagentError]) -> str:
    """What happens to a step whose publish ends like this, in words."""
    if kind is NothingToPropose:
        return "no: the patch is skipped, with the reason"
    if issubclass(kind, DependencyDown):
        return "waits, at no cost of its attempts"
    return "no: dead letter" if issubclass(kind, Permanent) else "with backoff, each an attempt"
