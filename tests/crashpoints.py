"""Kill -9 at every named point of a step, on real Radicle: each must end in one patch with the right revisions.

`.venv/bin/python -m tests.crashpoints --json` runs a two-step workflow with a null agent for each failpoint and kills the
worker's process there (at a point of `rad-push`: that) once, in the first step. As soon as there is a patch, its title is
edited as a person would. It prints one JSON object last: `forge` and `points`, each with `name`, `patches`, `revisions`,
`commits`, `title`, `reviews`. Exit code 0 only where each point was hit and ended with one patch, two revisions, two commits,
the edited title, and one review a revision.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from hyperagent_tasks.failpoints import NAMES, PUSH_NAMES
from hyperagent_tasks.gitgate import GitGate
from hyperagent_tasks.parts import instance
from hyperagent_tasks.radicle.standin import StandInForge
from tests import parts
from tests.arguments import ends_in_order
from tests.harness import Host, plan_of

TASKS = [{"id": "one"}, {"id": "two", "depends_on": ["one"]}]
TITLE = 'By hand: "übung" – 🎉'
SECONDS = 180.0
SECOND_STEP = ("push_revised",)
"""Points that only the second step passes: its publish revises."""


class Bench:
    """One HyperAgent for all points: the point is named in a file that its processes read when they pass one."""

    def __init__(self, host: Host, real: bool) -> None:
        self.host, self.real = host, real
        self.point, self.mark = failpoint_files(host.home)
        self.gate = GitGate(host.home / "repos")
        self._node: Any = None

    def crash_at(self, name: str) -> dict[str, Any]:
        """One workflow with its one crash, and how it ended."""
        before = self.patch_ids()
        self.mark.unlink(missing_ok=True)
        began = time.monotonic()
        self.point.write_text(name)
        workflow_id = self.host.submit(plan_of(TASKS, checks=["python3 check.py"], title=f"Crash at {name}"))
        edited = self._edit_title(workflow_id, before, name)
        workflow = self.host.wait(workflow_id, SECONDS)
        self.point.write_text("")
        self._settled(workflow_id)
        return {"name": name, "hit": self.mark.exists(), "edited": edited, **self._ended(workflow_id, before)} | {
            "seconds": round(time.monotonic() - began, 1),
            "state": workflow["state"],
        }

    def _edit_title(self, workflow_id: str, before: set[str], name: str) -> bool:
        """Wait for the patch, and edit its title once the crash has been (where it comes in the first step)."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            fresh = self.patch_ids() - before
            crashed = self.mark.exists() or name in SECOND_STEP
            if fresh and crashed and self._titled(fresh):
                return True
            if self.host.workflow(workflow_id)["state"] != "running":
                return False
            time.sleep(0.05)
        return False

    def _titled(self, fresh: set[str]) -> bool:
        """Edit it under the publisher's lock: Radicle has none between two processes with one key."""
        patch_id = min(fresh)
        if not self.real:
            forge = StandInForge(self.host.home / "stand-in", self.gate)
            forge.by_hand(self.rid, patch_id, title=TITLE)
            return True
        lock = self.host.home / "radicle" / "hyperagent" / f"{self.rid.removeprefix('rad:')}.lock"
        edit = ["rad", "patch", "edit", patch_id, "--repo", self.rid, f"--message={TITLE}", "--message=By hand.", "--no-announce"]
        return int(self.node.exec_run(["flock", str(lock), *edit]).exit_code) == 0

    def _settled(self, workflow_id: str) -> None:
        """The last verdict may still be on its way."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            patch = self.host.workflow(workflow_id)["patch"] or {"reviews": []}
            if len(patch["reviews"]) == len(TASKS) and all(r["state"] == "posted" for r in patch["reviews"]):
                return
            time.sleep(0.1)

    def _ended(self, workflow_id: str, before: set[str]) -> dict[str, Any]:
        workflow = self.host.workflow(workflow_id)
        fresh = self.patch_ids() - before
        patch = self.patch(workflow["patch"]["patch_id"]) if workflow["patch"] else {"title": "", "revisions": [], "reviews": []}
        made = self.gate.commits("example", workflow["base_commit"], workflow["branch"])
        commits = [info.commit for info in made]
        heads = [head for _, head in patch["revisions"]]
        recorded = {(r["revision_id"], r["review_id"]) for r in workflow["patch"]["reviews"]} if workflow["patch"] else set()
        return {
            "attempts": [step["attempt_count"] for step in workflow["steps"]],
            "patches": len(fresh),
            "revisions": len(heads),
            "commits": len(commits),
            "right": commits == heads == [s["commit"] for s in workflow["steps"]],
            "title": patch["title"],
            "reviews": len(patch["reviews"]),
            "reviewed": sorted(recorded) == sorted(patch["reviews"])
            and {r for r, _ in recorded} == {r for r, _ in patch["revisions"]},
        }

    @property
    def rid(self) -> str:
        """The example's Radicle id."""
        return str(self.host.get("/api/v1/projects/example")["rid"])

    @property
    def node(self) -> Any:
        """The node's container."""
        if self._node is None:
            name = f"ha-radicle-{instance(type('S', (), {'home': self.host.home})())}"
            self._node = parts.require_docker().containers.get(name)
        return self._node

    def patch_ids(self) -> set[str]:
        """Every patch the forge holds."""
        if not self.real:
            return set(self._stand_in())
        found = self.node.exec_run(["rad", "cob", "list", "--repo", self.rid, "--type", "xyz.radicle.patch"])
        return set(found.output.decode().split())

    def patch(self, patch_id: str) -> dict[str, Any]:
        """Title, (revision, head) and (revision, review) as the forge tells them, in their order."""
        if not self.real:
            entry = self._stand_in()[patch_id]
            recorded = [(r["revision_id"], r["review_id"]) for r in self._reviews(patch_id)]
            return {
                "title": entry["title"],
                "revisions": [(r[0], r[1]) for r in entry["revisions"]],
                "reviews": [pair for pair in recorded if pair[0] in entry["reviews"]],
            }
        argv = ["rad", "cob", "show", "--repo", self.rid, "--type", "xyz.radicle.patch", "--object", patch_id]
        shown = json.loads(self.node.exec_run(argv).output)
        made = [shown["revisions"][r] for r in shown["timeline"] if shown["revisions"].get(r)]
        return {
            "title": shown["title"],
            "revisions": [(r["id"], r["oid"]) for r in made],
            "reviews": [(r["id"], v["id"]) for r in made for v in r["reviews"].values() if v["verdict"] == "accept"],
        }

    def _stand_in(self) -> dict[str, Any]:
        state = json.loads((self.host.home / "stand-in" / "stand-in.json").read_text())
        return dict(state["repositories"][self.rid]["patches"])

    def _reviews(self, patch_id: str) -> list[dict[str, Any]]:
        rows = self.host.get("/api/v1/workflows")
        found = [self.host.workflow(row["id"])["patch"] for row in rows]
        return [r for patch in found if patch and patch["patch_id"] == patch_id for r in patch["reviews"]]


def failpoint_files(home: Path) -> tuple[Path, Path]:
    """The file that names the point and the one that marks it hit: where the Radicle container sees them too."""
    folder = home / "radicle" / "hyperagent"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder / "failpoint", folder / "hit"


def run(names: list[str], real: bool, told: bool) -> list[dict[str, Any]]:
    """Every point in turn, on one HyperAgent of their own."""
    home = Path(f"/tmp/ha-crash-{uuid.uuid4().hex[:6]}")
    point, mark = failpoint_files(home)
    settings: dict[str, object] = {"HYPERAGENT_FAILPOINT": point, "HYPERAGENT_FAILPOINT_ONCE": mark, "HYPERAGENT_VERIFY": "on"}
    settings |= {"HYPERAGENT_LEASE_SECONDS": 2, "HYPERAGENT_HEARTBEAT_SECONDS": 0.5, "HYPERAGENT_REQUEUE_AFTER": 5}
    if not real:
        settings |= {"HYPERAGENT_SANDBOX": "process", "HYPERAGENT_FORGE": "stand-in"}
    found = []
    try:
        with Host(home, agent="null", **settings) as host:
            host.register_example()
            bench = Bench(host, real)
            for name in names:
                found.append(bench.crash_at(name))
                if told:
                    print(found[-1], file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return found


def main() -> None:
    """Every point, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    parser.add_argument("--stand-in", action="store_true", help="without Docker and Radicle")
    parser.add_argument("points", nargs="*", choices=[*NAMES, *PUSH_NAMES, []])
    asked = parser.parse_args()
    ends_in_order()
    os.environ.setdefault("CI", "true")  # a missing part is an error here, never a skip
    every = NAMES if asked.stand_in else (*NAMES, *PUSH_NAMES)
    points = run(list(asked.points or every), not asked.stand_in, told=not asked.json)
    print(json.dumps({"forge": "stand-in" if asked.stand_in else "radicle", "points": points}))
    sys.exit(0 if all(well(point) for point in points) else 1)


def well(point: dict[str, Any]) -> bool:
    """Whether a point ended as each must."""
    wanted = {"hit": True, "edited": True, "state": "done", "patches": 1, "revisions": 2, "commits": 2, "right": True}
    return all(point[key] == value for key, value in {**wanted, "title": TITLE, "reviews": 2, "reviewed": True}.items())


if __name__ == "__main__":
    main()
