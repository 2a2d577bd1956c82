"""Scripts that run inside a sandbox: materialise, seal, check."""

from __future__ import annotations
