"""`python -m hyperagent_tasks.gateway`."""

from __future__ import annotations

from hyperagent_tasks.gateway.cli import gateway

gateway()
