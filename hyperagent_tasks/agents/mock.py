"""The bundled mock `opencode`: the same flags, the same stream, no model of its own; for demos, tests and probes."""

from __future__ import annotations

import sys
from pathlib import Path

from hyperagent_tasks.agents.opencode import OpencodeAgent

SCRIPT = Path(__file__).with_name("mock_opencode.py")


class MockAgent(OpencodeAgent):
    """The mock: in the runner image as `opencode-mock`, elsewhere this package's own file."""

    name = "mock"
    series = ""

    def program(self) -> list[str]:
        """What runs the mock."""
        return ["opencode-mock"] if self._wrapped else [sys.executable, "-I", str(SCRIPT)]
