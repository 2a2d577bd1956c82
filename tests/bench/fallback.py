"""Fallback with kept work: steps whose first CLI makes half of the change and is then out of quota; another CLI goes on.

`.venv/bin/python -m tests.bench.fallback --times 20 --json` runs so many steps, the real CLIs taking turns, and prints one JSON
object: `whole` counts the steps whose commit holds both halves, whose events hold `agent.fallback` and whose agent runs are both
on record. Exit code 0 only where all are.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from tests.arguments import counted, ends_in_order
from tests.harness import Host, plan_of
from tests.liar_cases import GOOD, YES, coder, shell, write

SECONDS = 900
PAIRS = [("codex", "claude"), ("claude", "opencode"), ("gemini", "codex"), ("opencode", "gemini"), ("claude", "codex")]
"""Who begins and who goes on: each pair speaks two dialects, each CLI is in both places or nearly."""
HALF = "def sub(a, b):\n    return a - b\n"
QUOTA = {"status": 429, "message": "insufficient_quota", "turn": 1}
SCRIPTS = {
    "coder": {**coder(write(HALF, "sub.py")), "faults": [QUOTA]},
    "coder.2": coder(shell("test -f sub.py || rm -rf .git *"), write(GOOD)),
    "verifier": YES,
}
CHECKS = ["python3 check.py", "test -f sub.py"]


def submit(host: Host, number: int) -> str:
    """The id of one step's workflow; codex judges it, whoever wrote it."""
    first, second = PAIRS[number % len(PAIRS)]
    chosen = {"agent_provider": first, "agent_fallback": [f"{second}:replay/fallback"], "verifier_provider": "codex"}
    return host.submit(plan_of([{"id": f"fall-{number}", "title": "Mend add", "metadata": chosen}], checks=CHECKS))


def judged(host: Host, number: int, workflow: dict[str, Any]) -> dict[str, Any]:
    """How one step ended; `whole` where nothing is missing."""
    first, second = PAIRS[number % len(PAIRS)]
    step = workflow["steps"][0]
    runs = [(run["provider"], run["end_reason"]) for run in step["attempts"][-1]["agent_runs"] if run["role"] == "coder"]
    told = [event for event in host.events(workflow["id"]) if event["kind"] == "agent.fallback"]
    halves = _in_commit(host, step["commit"], "sub.py") == HALF and _in_commit(host, step["commit"], "calc.py") == GOOD
    moved = len(told) == 1 and told[0]["data"]["agent"] == second
    recorded = runs == [(first, "quota"), (second, "done")]
    whole = workflow["state"] == "done" and halves and moved and recorded
    return {"pair": f"{first} > {second}", "whole": whole, "state": workflow["state"], "runs": runs, "reason": step["reason"]}


def _in_commit(host: Host, commit: str | None, name: str) -> str | None:
    repo = host.home / "repos" / "example.git"
    shown = subprocess.run(["git", "--git-dir", repo, "show", f"{commit}:{name}"], capture_output=True, text=True, timeout=60)
    return shown.stdout if shown.returncode == 0 else None


def table(home: Path, times: int) -> list[dict[str, Any]]:
    """Run the steps in one HyperAgent of its own."""
    scenarios = home / "scenarios"
    scenarios.mkdir(parents=True)
    (scenarios / "fallback.json").write_text(json.dumps({"scenario": "fallback", "scripts": {"*": SCRIPTS}}))
    settings = {
        "HYPERAGENT_SCENARIO_DIRS": scenarios,
        "HYPERAGENT_FORGE": "stand-in",
        "HYPERAGENT_LEASE_SECONDS": 60,
        "HYPERAGENT_HEARTBEAT_SECONDS": 3,
        "HYPERAGENT_REQUEUE_AFTER": SECONDS,
        "WORKFLOW_AGENT_MODEL": "replay/fallback",
    }
    with Host(home, agent="codex", **settings) as host:
        host.register_example()
        ids = [submit(host, number) for number in range(times)]
        return [judged(host, number, host.wait(found, timeout=SECONDS)) for number, found in enumerate(ids)]


def main() -> int:
    """0 where every step is whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=counted, default=20)
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    asked = parser.parse_args()
    ends_in_order()
    os.environ.setdefault("CI", "true")
    home = Path(f"/tmp/ha-fallback-{uuid.uuid4().hex[:6]}")
    try:
        rows = table(home, asked.times)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    whole = sum(row["whole"] for row in rows)
    for row in rows if not asked.json else ():
        print(f"{'whole' if row['whole'] else 'NOT':6} {row['pair']:20} {row['state']:8} {row['runs']} {row['reason'] or ''}")
    print(json.dumps({"steps": len(rows), "whole": whole, "not_whole": [row for row in rows if not row["whole"]]}))
    return 0 if whole == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
