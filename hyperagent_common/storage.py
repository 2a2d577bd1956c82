"""Shared storage for artifacts: a directory or S3, written once and never changed.

`Storage` is the port; `ObjectStorage` the real class (obstore: local directory, S3, memory). Keys are create-only:
writing the same bytes again is success, other bytes under a used key is a conflict.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import obstore
from obstore import exceptions
from obstore.store import LocalStore, MemoryStore, ObjectStore, from_url

from hyperagent_common.errors import Conflict, DependencyDown, NotFound

MAX_ARTIFACT = 512 << 20


@dataclass(frozen=True)
class Stored:
    """What is stored under a key: size in bytes and sha256 (hex) of the bytes."""

    key: str
    size: int
    sha256: str
    location: str


class Storage(Protocol):
    """Where artifacts are kept."""

    def put(self, key: str, data: bytes) -> Stored:
        """Store `data` under `key`, once. Raises `Conflict` on other bytes there, `DependencyDown`."""

    def get(self, key: str) -> bytes:
        """The bytes under `key`. Raises `NotFound`, `DependencyDown`."""

    def stream(self, key: str) -> Iterator[bytes]:
        """The bytes under `key` in chunks. Raises as `get`."""

    def location(self, key: str) -> str:
        """Where a person finds `key`: a path or a URL."""

    def check(self) -> None:
        """Raise `DependencyDown` where the storage cannot be written."""


class ObjectStorage:
    """Storage on obstore."""

    def __init__(self, store: ObjectStore, root: str) -> None:
        self._store, self._root = store, root.rstrip("/")

    def put(self, key: str, data: bytes) -> Stored:
        """Store create-only; identical bytes are success."""
        if len(data) > MAX_ARTIFACT:
            raise Conflict(f"The artifact {key} has {len(data)} bytes; at most {MAX_ARTIFACT} are stored.")
        try:
            obstore.put(self._store, key, data, mode="create")
        except exceptions.AlreadyExistsError:
            if self.get(key) != data:
                raise Conflict(f"The storage holds other bytes under {key} already.") from None
        except (exceptions.BaseError, OSError) as error:
            raise DependencyDown(f"The storage did not take {key}: {error}", mend="Look at storage_url.") from error
        return Stored(key, len(data), hashlib.sha256(data).hexdigest(), self.location(key))

    def get(self, key: str) -> bytes:
        """Read the whole object."""
        return b"".join(self.stream(key))

    def stream(self, key: str) -> Iterator[bytes]:
        """Read the object in chunks."""
        try:
            for chunk in obstore.get(self._store, key):
                yield bytes(chunk)
        except (exceptions.NotFoundError, FileNotFoundError) as error:
            raise NotFound(f"The storage holds nothing under {key}.") from error
        except (exceptions.BaseError, OSError) as error:
            raise DependencyDown(f"The storage did not give {key}: {error}", mend="Look at storage_url.") from error

    def location(self, key: str) -> str:
        """A path for a directory, a URL otherwise."""
        return f"{self._root}/{key}"

    def check(self) -> None:
        """Write and read one probe object."""
        try:
            obstore.put(self._store, "health/probe", b"ok")
            obstore.get(self._store, "health/probe")
        except (exceptions.BaseError, OSError) as error:
            raise DependencyDown(f"The storage {self._root} cannot be used: {error}", mend="Look at storage_url.") from error


def open_storage(url: str) -> ObjectStorage:
    """The storage at `url`: a directory (made where missing), `s3://bucket/prefix`, or `memory://` for tests."""
    if url.startswith("memory://"):
        return ObjectStorage(MemoryStore(), url)
    if "://" in url and not url.startswith("file://"):
        return ObjectStorage(from_url(url), url)
    path = Path(url.removeprefix("file://"))
    try:
        return ObjectStorage(LocalStore(path, mkdir=True), str(path))
    except (exceptions.BaseError, OSError) as error:
        raise DependencyDown(f"The storage directory {path} cannot be used: {error}", mend="Look at storage_url.") from error
