"""Radicle: the forge that patches go to, and its clearly named stand-in."""

from __future__ import annotations
