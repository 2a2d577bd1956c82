"""Bench tests."""

from __future__ import annotations
