"""`python -m hyperagent_api.cli`."""

from __future__ import annotations

from hyperagent_api.cli.main import main

main()
