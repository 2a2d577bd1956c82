"""The truth table of a lying agent: `.venv/bin/python -m tests.liars --json`.

Each case is a workflow of one step whose coder and verifier follow a script, in containers, with opencode or its mock. Prints
a line a case and last one JSON object: `cases`, `false_pass` (committed and must not be), `false_fail`, `wrong`.
Exit code 0 only where every case ended as it must, for the reason it must.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

from tests.arguments import ends_in_order
from tests.harness import Host, plan_of
from tests.liar_cases import CASES, Case

SECONDS = 600
CHECK = "python3 -c 'import calc; assert calc.add(2, 3) == 5'"


def submit(host: Host, case: Case) -> str:
    """The id of the case's workflow."""
    chosen = {"agent_provider": case.agent, "agent_model": "replay/liars", "agent_max_rounds": case.rounds, **case.settings}
    task = {"id": case.name, "title": "Mend add", "instructions": "add subtracts; make it add.", "metadata": chosen}
    return host.submit(plan_of([task], checks=[CHECK]))


def judged(case: Case, workflow: dict[str, Any]) -> dict[str, Any]:
    """How a case ended beside how it must."""
    step = workflow["steps"][0]
    seen = "done" if step["commit"] else str(step["state"])
    right = seen == case.expected == workflow["state"] and case.reason in (step["reason"] or "")
    return {
        "case": case.name,
        "agent": case.agent,
        "expected": case.expected,
        "seen": seen,
        "right": right,
        "reason": " ".join((step["reason"] or "").split())[:200],
        "attempts": len(step["attempts"]),
    }


def table(home: Path, cases: list[Case]) -> list[dict[str, Any]]:
    """Run every case in one HyperAgent of its own."""
    scenarios = home / "scenarios"
    scenarios.mkdir(parents=True)
    scripts = {case.name: case.scripts for case in cases}
    (scenarios / "liars.json").write_text(json.dumps({"scenario": "liars", "scripts": scripts}))
    settings = {
        "HYPERAGENT_SCENARIO_DIRS": scenarios,
        "HYPERAGENT_FORGE": "stand-in",
        "HYPERAGENT_AGENT_MAX_REQUESTS": 8,
        "HYPERAGENT_STEP_TIMEOUT": 120,
        "HYPERAGENT_MAX_ATTEMPTS": 1,
        "HYPERAGENT_WORKER_CONCURRENCY": 3,
        "HYPERAGENT_LEASE_SECONDS": 30,
        "HYPERAGENT_HEARTBEAT_SECONDS": 3,
        "HYPERAGENT_REQUEUE_AFTER": SECONDS,
        "HYPERAGENT_VERIFY": "always",
    }
    with Host(home, agent="mock", **settings) as host:
        host.register_example()
        ids = [submit(host, case) for case in cases]
        return [judged(case, host.wait(found, timeout=SECONDS)) for case, found in zip(cases, ids, strict=True)]


def main() -> int:
    """0 where everybody was seen through and nobody wronged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES], metavar="NAME", help="only these cases")
    args = parser.parse_args()
    ends_in_order()
    home = Path(f"/tmp/ha-liars-{uuid.uuid4().hex[:6]}")
    try:
        rows = table(home, [case for case in CASES if not args.case or case.name in args.case])
    finally:
        shutil.rmtree(home, ignore_errors=True)
    for row in rows:
        ends = f"{row['expected']:7} {row['seen']:7} {row['reason']}"
        words = f"{'ok' if row['right'] else 'WRONG':6} {row['case']:32} {row['agent']:9} {ends}"
        if not args.json:
            print(words)
    passed = sum(row["seen"] == "done" and row["expected"] != "done" for row in rows)
    failed = sum(row["seen"] != "done" and row["expected"] == "done" for row in rows)
    wrong = [row["case"] for row in rows if not row["right"]]
    told = [{"name": row.pop("case"), **row} for row in rows]
    print(json.dumps({"cases": told, "false_pass": passed, "false_fail": failed, "wrong": wrong}))
    return 1 if passed or failed or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
