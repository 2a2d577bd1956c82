"""The API's resources, one file each."""

from __future__ import annotations
