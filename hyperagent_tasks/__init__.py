"""The worker: everything that runs agents, git and Radicle."""

from __future__ import annotations
