"""The demo's example repository: a calculator with a fault. `python -m hyperagent_tasks.example DIR`."""

from __future__ import annotations

import sys
from pathlib import Path

from hyperagent_common.errors import HyperagentError
from hyperagent_tasks import gitgate

FILES = {
    "calc.py": b"def add(a, b):\n    return a - b\n",
    "check.py": b'from calc import add\n\nassert add(2, 2) == 4, f"add(2, 2) is {add(2, 2)}"\nprint("checks pass")\n',
    "README.md": b"# Example\n\nA calculator with a fault, for `hyperagent demo`.\n",
}


def make(path: Path) -> str:
    """A repository at `path` with one commit on `main`; an existing one is left as it is. Returns its head."""
    if path.exists():
        return gitgate.open_source(path).head
    return gitgate.new_repository(path, FILES, message="A calculator with a fault")


if __name__ == "__main__":
    try:
        print(make(Path(sys.argv[1])))
    except HyperagentError as error:
        sys.exit(str(error))
