"""Runners: what runs one command in a sandbox and tells what happened."""

from __future__ import annotations
