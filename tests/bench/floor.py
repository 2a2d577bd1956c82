"""The floor: what a step costs with a null agent, by hand and by HyperAgent, in one run. Timings are ratios.

`.venv/bin/python -m tests.bench.floor --json` alternates rounds of both and prints one JSON object last: `ratio` of the
medians a step, both medians in milliseconds, and every run. Needs a Docker engine, runner and Radicle image.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.arguments import counted, ends_in_order, several
from tests.harness import Host, plan_of

GOAL = 1.15


def by_hand(work: Path, steps: int) -> list[float]:
    """Milliseconds of each step of the script."""
    script = Path(__file__).with_name("floor.sh")
    done = subprocess.run([str(script), str(work), str(steps)], capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(f"the floor script failed: {done.stderr[-2000:]}")
    return [json.loads(line)["ms"] for line in done.stdout.splitlines()]


def by_hyperagent(host: Host, steps: int) -> list[float]:
    """Milliseconds from claim to claim (the last: to its end) of each step of one linear workflow."""
    tasks = [{"id": f"s{i}", "depends_on": [f"s{i - 1}"] if i else []} for i in range(steps)]
    workflow = host.run(plan_of(tasks, checks=["python3 check.py"]), timeout=600)
    if workflow["state"] != "done":
        raise SystemExit(f"the workflow is {workflow['state']}: {workflow['reason']}")
    marks = [_at(event) for event in host.events(workflow["id"]) if event["kind"] == "step.claimed"]
    ends = [_at(event) for event in host.events(workflow["id"]) if event["kind"] == "step.done"]
    marks.append(ends[-1])
    return [(later - sooner) * 1000 for sooner, later in itertools.pairwise(marks)]


def _at(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["at"]).timestamp()


def measure(rounds: int, steps: int) -> dict[str, Any]:
    """Alternate rounds of both; the first step of each run warms up and is left out."""
    hand: list[list[float]] = []
    ours: list[list[float]] = []
    with (
        tempfile.TemporaryDirectory(prefix="ha-floor-", dir="/tmp") as top,
        Host(Path(top) / "h", agent="null") as host,
    ):
        host.register_example()
        for number in range(rounds):
            hand.append(by_hand(Path(top) / f"r{number}", steps))
            ours.append(by_hyperagent(host, steps))
    medians = [statistics.median(ms for run in runs for ms in run[1:]) for runs in (hand, ours)]
    return {
        "ratio": round(medians[1] / medians[0], 3),
        "goal": GOAL,
        "floor_ms": round(medians[0]),
        "hyperagent_ms": round(medians[1]),
        "runs": {"floor": hand, "hyperagent": [[round(ms) for ms in run] for run in ours]},
    }


def main() -> None:
    """Measure and print; exit 0 where the ratio is within the goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    parser.add_argument("--rounds", type=counted, default=3)
    parser.add_argument("--steps", type=several, default=5)
    asked = parser.parse_args()
    ends_in_order()
    result = measure(asked.rounds, asked.steps)
    if not asked.json:
        print(f"a step costs {result['ratio']} times the floor ({result['hyperagent_ms']} / {result['floor_ms']} ms)")
    print(json.dumps(result))
    sys.exit(0 if result["ratio"] <= GOAL else 1)


if __name__ == "__main__":
    main()
