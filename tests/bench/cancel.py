"""Cancel to nothing: from the answer of `cancel` until no container, process, workspace, lease or grant of it is left.

`.venv/bin/python -m tests.bench.cancel --rounds 20 --json` prints one JSON object: seconds (median, p95, most) in Docker.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
import uuid
from pathlib import Path

from hyperagent_tasks.gateway.client import GatewayClient
from tests import parts
from tests.arguments import counted, ends_in_order
from tests.harness import Host, plan_of


def rounds(count: int) -> list[float]:
    """Seconds of each cancel, at growing distances from the claim, so that every hop is hit."""
    client = parts.require_docker()
    parts.require_runner_image()
    home = Path(f"/tmp/ha-cancel-{uuid.uuid4().hex[:6]}")
    took = []
    try:
        with Host(home, agent="null", HYPERAGENT_FORGE="stand-in") as host:
            host.register_example()
            for number in range(count):
                workflow_id = host.submit(plan_of([{"id": "a"}, {"id": "b"}], checks=["sleep 30"]))
                time.sleep(0.2 + number * 0.15)
                host.post(f"/api/v1/workflows/{workflow_id}/cancel", {})
                began = time.monotonic()
                mine = {"label": f"hyperagent.workflow={workflow_id}"}
                while client.containers.list(all=True, filters=mine, ignore_removed=True) or _left(host):
                    if time.monotonic() - began > 60:
                        raise SystemExit(f"round {number}: something is left after 60 s")
                    time.sleep(0.05)
                took.append(time.monotonic() - began)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return took


def _left(host: Host) -> bool:
    work = list((host.home / "work").iterdir()) if (host.home / "work").is_dir() else []
    return bool(work or GatewayClient(host.home / "run").grants() or host.get("/api/health/workflows")["queue"]["running"])


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=counted, default=20)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    ends_in_order()
    os.environ.setdefault("CI", "true")
    took = sorted(rounds(asked.rounds))
    p95 = took[min(len(took) - 1, round(0.95 * len(took)))]
    said = {
        "cancels": len(took),
        "median_s": round(statistics.median(took), 2),
        "p95_s": round(p95, 2),
        "most_s": round(took[-1], 2),
    }
    print(json.dumps(said))
    sys.exit(0 if took[-1] < 10 else 1)


if __name__ == "__main__":
    main()
