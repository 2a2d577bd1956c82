"""`hyperagent`: the command line. Data goes to stdout, words to stderr; exit codes are in docs/cli.md."""

from __future__ import annotations

from hyperagent_api.cli.main import main

__all__ = ["main"]
