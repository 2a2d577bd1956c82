"""Kill -9 at every named point of a step, on real Radicle: each must end in one patch with the right revisions.

`.venv/bin/python -m tests.crashpoints --json` runs a two-step workflow with a null agent for each failpoint of the worker,
kills the worker's process there once, and prints one JSON object last: `forge` and `points`, each with `name`, `patches`,
`revisions`, `commits`. Exit code 0 only where each point was hit and ended with one patch, two revisions and two commits.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

from hyperagent_tasks.failpoints import NAMES
from hyperagent_tasks.gitgate import GitGate
from hyperagent_tasks.parts import instance
from tests import parts
from tests.harness import Host, plan_of

PLAN = plan_of([{"id": "one"}, {"id": "two", "depends_on": ["one"]}], checks=["python3 check.py"])


def crash_at(name: str, real: bool) -> dict[str, Any]:
    """One point: the workflow as it ended, and what forge and branch hold."""
    home = Path(f"/tmp/ha-crash-{uuid.uuid4().hex[:6]}")
    marker = home / "hit"
    settings = {"HYPERAGENT_FAILPOINT": name, "HYPERAGENT_FAILPOINT_ONCE": marker}
    if not real:
        settings |= {"HYPERAGENT_SANDBOX": "process", "HYPERAGENT_FORGE": "stand-in"}
    try:
        with Host(home, agent="null", **settings) as host:
            host.register_example()
            workflow = host.run(PLAN, timeout=180)
            revisions, patches = held(host, workflow, real)
            made = GitGate(home / "repos").commits("example", workflow["base_commit"], workflow["branch"])
            return {
                "name": name,
                "hit": marker.exists(),
                "state": workflow["state"],
                "attempts": [step["attempt_count"] for step in workflow["steps"]],
                "patches": patches,
                "revisions": len(revisions),
                "commits": len(made),
                "right": [info.commit for info in made] == revisions == [s["commit"] for s in workflow["steps"]],
            }
    finally:
        shutil.rmtree(home, ignore_errors=True)


def held(host: Host, workflow: dict[str, Any], real: bool) -> tuple[list[str], int]:
    """Heads of the workflow's patch in their order, and how many patches the forge holds in all."""
    rid, patch_id = workflow["patch"]["rid"], workflow["patch"]["patch_id"]
    if not real:
        state = json.loads((host.home / "stand-in" / "stand-in.json").read_text())["repositories"][rid]["patches"]
        return [head for _, head in state[patch_id]["revisions"]], len(state)
    node = parts.require_docker().containers.get(f"ha-radicle-{instance(type('S', (), {'home': host.home})())}")
    kind = ["--repo", rid, "--type", "xyz.radicle.patch"]
    ids = node.exec_run(["rad", "cob", "list", *kind]).output.decode().split()
    shown = json.loads(node.exec_run(["rad", "cob", "show", *kind, "--object", patch_id]).output)
    return [shown["revisions"][r]["oid"] for r in shown["timeline"] if shown["revisions"].get(r)], len(ids)


def main() -> None:
    """Every point, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    parser.add_argument("--stand-in", action="store_true", help="without Docker and Radicle")
    parser.add_argument("points", nargs="*", default=NAMES, choices=[*NAMES, []])
    asked = parser.parse_args()
    os.environ.setdefault("CI", "true")  # a missing part is an error here, never a skip
    points = []
    for name in asked.points:
        points.append(crash_at(name, not asked.stand_in))
        if not asked.json:
            print(points[-1], file=sys.stderr)
    print(json.dumps({"forge": "stand-in" if asked.stand_in else "radicle", "points": points}))
    sys.exit(0 if all(_well(point) for point in points) else 1)


def _well(point: dict[str, Any]) -> bool:
    wanted = {"hit": True, "state": "done", "patches": 1, "revisions": 2, "commits": 2, "right": True}
    return all(point[key] == value for key, value in wanted.items())


if __name__ == "__main__":
    main()
