"""Ids: UUIDv7 as text, so that they sort by the time they were made."""

from __future__ import annotations

import uuid_utils


def new_id() -> str:
    """A new id of 36 characters."""
    return str(uuid_utils.uuid7())
