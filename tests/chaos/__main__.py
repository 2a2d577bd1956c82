"""`python -m tests.chaos --steps N --seed S --json`: drive workflows through faults, then judge what is left.

Prints one JSON object last: `steps`, `faults` {kind: count}, `lost`, `duplicated`, `leaked`, `stuck`, `seconds`. Exit code 0
only where nothing was lost, duplicated, leaked or stuck. `--without-lease`, `--without-fencing` and `--without-reconciler`
switch one guard off, and the damage shows (of fencing it needs a zombie: some 20 steps). What has not ended counts as stuck
once nothing has moved for `--stall` seconds: a slow machine makes no damage. Exit code 2 where the harness itself failed and
nothing was judged: the object has `error` alone then.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest
from celery import Celery
from sqlalchemy import Select, func, select

from hyperagent_common import db, plan, queue, settings, workflows
from hyperagent_common.errors import DependencyDown
from hyperagent_common.ids import new_id
from hyperagent_common.models import Project, Workflow, WorkflowStep
from hyperagent_common.states import WORKFLOW_ENDED, ProjectState, StepState
from hyperagent_tasks import example
from hyperagent_tasks.parts import Parts
from hyperagent_tasks.projects import register
from tests.arguments import above, counted, ends_in_order
from tests.chaos.engine import Engine
from tests.chaos.faults import Faults
from tests.chaos.judge import Judge
from tests.chaos.plans import plan as random_plan
from tests.chaos.rig import LEASE, Rig

T = TypeVar("T")

GUARDS = ("lease", "fencing", "reconciler")
AT_ONCE = 24
PROJECTS = 4
QUIET_SECONDS = 120.0
STALL_SECONDS = 240.0
PATIENCE = 300
"""So often a question is asked again, a fifth of a second apart, while the database is away."""
ZOMBIES = 0.08
"""How likely a worker stands still at a named point where nothing is fenced off: so often that a short run shows what it does."""
UNSENT = 10
"""Each so many plans one is committed and its messages are never sent: the API was killed in between."""


class Drive:
    """Submits workflows, does faults, waits for the end."""

    def __init__(self, rig: Rig, *, steps: int, seed: int, every: float, stall: float, seconds: float = 0.0) -> None:
        self.rig, self.steps, self.every, self.stall = rig, steps, every, stall
        self.closing = time.monotonic() + seconds if seconds else float("inf")
        self.dice = random.Random(seed)
        self.loaded = settings.load(rig.env)
        self.app: Celery = queue.make(self.loaded)
        self.faults = Faults(rig, self.app, random.Random(seed + 1))
        self.submitted = self.plans = 0
        self.telling = time.monotonic() + 60

    def prepare(self) -> None:
        """Schema, example repositories, registered projects."""
        self.rig.start_redis()
        self.rig.start_database()
        db.upgrade(self.rig.url)
        if self.rig.engine is not None:
            self.rig.engine.start()
            self.rig.engine.load()
        parts = Parts(self.loaded, self.app)
        for number in range(PROJECTS):
            source = self.rig.root / f"source{number}"
            example.make(source)
            with db.transaction(self.rig.url) as session:
                row = Project(
                    id=new_id(), name=f"p{number}", source=str(source), default_branch="", state=ProjectState.REGISTERING,
                    created_at=db.now(session),
                )  # fmt: skip
                session.add(row)
            register(parts, row.id)
        self.rig.revive()

    def run(self) -> None:
        """Until every workflow ended, or nothing has moved for too long."""
        self.faults.watch()
        moved, seen, fault_at = time.monotonic(), (-1, -1), time.monotonic() + 1
        while time.monotonic() - moved < self.stall:
            moving, told = self._moving()
            if told != seen:
                moved, seen = time.monotonic(), told
            while not self.submitting_ended and moving < AT_ONCE:
                self._submit()
                moving += 1
            if self.submitting_ended and not moving:
                break
            if time.monotonic() > fault_at:
                self.faults.one()
                fault_at = time.monotonic() + self.every * (0.5 + self.dice.random())
            self.rig.revive()
            self._tell(told[0])
            time.sleep(0.1)
        self.faults.settle()
        self.rig.revive()
        self._quiet()

    @property
    def submitting_ended(self) -> bool:
        """Whether every step is submitted, or the time for it is over."""
        return self.submitted >= self.steps or time.monotonic() > self.closing

    def _moving(self) -> tuple[int, tuple[int, int]]:
        """How many workflows live, and what grows as long as anything moves: steps done, and workflows in all."""
        live = select(func.count()).select_from(Workflow).where(Workflow.state.not_in(WORKFLOW_ENDED))
        done = select(func.count()).select_from(WorkflowStep).where(WorkflowStep.state == StepState.DONE)
        moving, ended = self._counted(live, done)
        return moving, (ended, self.submitted)

    def _counted(self, *questions: Select[tuple[int]]) -> list[int]:
        def ask() -> list[int]:
            with db.transaction(self.rig.url, reading=True) as session:
                return [session.scalar(question) or 0 for question in questions]

        return _patiently(ask)

    def _submit(self) -> None:
        document = random_plan(self.dice, min(9, self.steps - self.submitted))
        parsed, number = plan.parse(document), self.dice.randrange(PROJECTS)
        _patiently(lambda: self._write(parsed, f"p{number}", f"chaos-{self.plans}", unsent=self.plans % UNSENT == 0))
        self.submitted += len(parsed.tasks)
        self.plans += 1

    def _write(self, parsed: plan.Plan, project: str, key: str, *, unsent: bool) -> None:
        """Submit under an idempotency key, as a client does who tries again: a commit whose answer was lost is not done twice."""
        with db.transaction(self.rig.url) as session:
            if session.scalar(select(Workflow.id).where(Workflow.idempotency_key == key)) is not None:
                return
            target = workflows.project(session, project)
            workflows.submit(session, self.app, target, parsed, max_attempts=100, idempotency_key=key)
            if unsent:
                session.info.clear()  # what hangs on the commit: the sending
        self.faults.counts["submit_unsent"] += unsent

    def _tell(self, done: int) -> None:
        """Where a long run stands, on standard error once a minute."""
        if time.monotonic() > self.telling:
            self.telling = time.monotonic() + 60
            faults = sum(self.faults.told().values())
            print(f"{self.submitted} of {self.steps} steps submitted, {done} done, {faults} faults", file=sys.stderr, flush=True)

    def _quiet(self) -> None:
        """Wait until nothing is owned any more: the last zombie fenced off, the reaper round once."""
        deadline = time.monotonic() + (15.0 if self.rig.without else QUIET_SECONDS)
        while time.monotonic() < deadline:
            time.sleep(LEASE / 2)
            if not _patiently(lambda: self.judge().left()):
                return

    def judge(self) -> Judge:
        """A judge of this run, who has seen nothing yet."""
        submitted = (self.plans, self.submitted)
        return Judge(self.rig, skewed=self.faults.skewed, cancelled=self.faults.cancelled, submitted=submitted)


def _patiently(ask: Callable[[], T]) -> T:
    """Ask again where the database is away, also where this machine stood still and the database cut the connection."""
    for _ in range(PATIENCE):
        try:
            return ask()
        except DependencyDown:
            time.sleep(0.2)
    raise TimeoutError("the database stays away")


def chaos(
    *,
    steps: int,
    seed: int,
    without: Sequence[str] = (),
    every: float = 1.2,
    stall: float = 0.0,
    seconds: float = 0.0,
    keep: bool = False,
    sandbox: str = "process",
) -> dict[str, Any]:
    """One run; its verdict with a few sentences of each damage."""
    began = time.monotonic()
    stop = ZOMBIES if "fencing" in without else 0.012
    if sandbox == "docker":
        Engine.require()
    rig = Rig(seed=seed, without=tuple(without), sandbox=sandbox, kill=0.006, stop=stop)
    stall = stall or (STALL_SECONDS / 4 if without else STALL_SECONDS)
    drive = Drive(rig, steps=steps, seed=seed, every=every, stall=stall, seconds=seconds)
    try:
        drive.prepare()
        drive.run()
        faults = drive.faults.told()  # what workers noted of themselves goes with the directory
        verdict = _patiently(lambda: drive.judge().judge())
    except Exception:
        keep = True
        print(rig.tail(), f"--- kept: {rig.root}", sep="\n", file=sys.stderr)
        raise
    finally:
        rig.end()
        if not keep:
            shutil.rmtree(rig.root, ignore_errors=True)
    return {
        "steps": drive.submitted, "seed": seed, "sandbox": sandbox, "without": list(without),
        "faults": faults, "faulted": sum(faults.values()),
        **verdict.counts(), "seconds": round(time.monotonic() - began, 1),
        "damage": {kind: told[:5] for kind, told in verdict.found.items() if told},
    }  # fmt: skip


def main() -> None:
    """Parse, run, print, exit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=counted, default=300, help="how many steps to submit (default 300)")
    parser.add_argument("--seed", type=int, default=1, help="any whole number")
    parser.add_argument("--every", type=above, default=1.2, help="seconds between two faults, on average")
    parser.add_argument("--stall", type=above, default=0.0, help="seconds without any movement until what lives counts as stuck")
    parser.add_argument(
        "--seconds", type=above, default=0.0, help="submit no more after this long; `steps` says how many it were"
    )
    parser.add_argument("--sandbox", choices=["process", "docker"], default="process", help="docker: on an engine of its own")
    parser.add_argument("--keep", action="store_true", help="keep the directory, to look into it")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    for guard in GUARDS:
        parser.add_argument(f"--without-{guard}", action="store_true", help=f"switch the {guard} off: the damage must show")
    asked = parser.parse_args()
    ends_in_order()
    os.environ.setdefault("CI", "true")  # a missing part is an error here, never a skip
    without = [guard for guard in GUARDS if getattr(asked, f"without_{guard}")]
    try:
        result = chaos(
            steps=asked.steps,
            seed=asked.seed,
            without=without,
            every=asked.every,
            stall=asked.stall,
            seconds=asked.seconds,
            keep=asked.keep,
            sandbox=asked.sandbox,
        )
    except (Exception, pytest.fail.Exception) as error:  # no damage: nothing was judged
        traceback.print_exc()
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        sys.exit(2)
    print(json.dumps(result, indent=None if asked.json else 1))
    sys.exit(1 if any(result[kind] for kind in ("lost", "duplicated", "leaked", "stuck")) else 0)


if __name__ == "__main__":
    main()
