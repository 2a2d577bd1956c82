"""Where a project's repository is read from on this host: the path it was registered from, or what the forge keeps of it."""

from __future__ import annotations

from pathlib import Path

from hyperagent_common.errors import BadInput
from hyperagent_tasks.parts import Parts

RADICLE = "rad:"


def is_remote(source: str) -> bool:
    """Whether the source is a Radicle id."""
    return source.startswith(RADICLE)


def place(parts: Parts, source: str) -> Path:
    """The repository behind a project's source. Raises `BadInput`, `ForgeRefused`."""
    if is_remote(source):
        return parts.forge.storage(source)
    path = Path(source)
    if not path.is_absolute():
        raise BadInput(f"The repository path {source} is not absolute.", mend="Give the whole path.")
    return path
