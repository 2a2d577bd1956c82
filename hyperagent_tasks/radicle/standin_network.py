"""What the stand-in forge says of the network: there is none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hyperagent_common.errors import DependencyDown, ForgeRefused
from hyperagent_tasks.radicle.base import Activity, Comment, Identity, Registration, RepositoryStanding, Standing


class NoNetwork:
    """The half of the stand-in that would look at the network."""

    def registration(self, rid: str) -> Registration | None:
        """The other half's."""
        raise NotImplementedError

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

    def comments(self, rid: str, patches: Sequence[str]) -> tuple[list[Comment], list[str]]:
        """None."""
        return [], []

    @contextlib.contextmanager
    def events(self) -> Iterator[Iterator[dict[str, Any]]]:
        """There is no node to listen to."""
        raise DependencyDown("The stand-in forge has no node to listen to.")
        yield iter(())
