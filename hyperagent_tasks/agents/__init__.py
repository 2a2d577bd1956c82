"""Agents: one adapter per coding-agent CLI."""

from __future__ import annotations
