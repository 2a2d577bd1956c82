"""The worker under chaos: the real one, with seeded accidents at its named points, and guards that a test may switch off.

`CHAOS_WITHOUT` names guards (`lease`, `fencing`, `reconciler`); they are switched off here, never in the product.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from billiard.process import current_process
from sqlalchemy.orm import Session

from hyperagent_common import db, workflows
from hyperagent_common.models import WorkflowStep
from hyperagent_tasks import claims, failpoints, upkeep
from hyperagent_tasks.agents import null

WITHOUT = set(filter(None, os.environ.get("CHAOS_WITHOUT", "").split(",")))
KILL, STOP = float(os.environ.get("CHAOS_KILL", "0")), float(os.environ.get("CHAOS_STOP", "0"))
HOME = Path(os.environ["HYPERAGENT_HOME"])

CHANGES = r"""
n=$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n')
echo "$n" >"made-$n"
case $n in [0-3]*) printf 'def add(a, b):\n    return a + b\n# %s\n' "$n" >calc.py ;; esac
"""
"""What the null agent does here: a file of its own, which must be in the end, and in a quarter of all runs the one file that
the others change too. So the steps of a fan are merged, and now and then in conflict."""


def accident(name: str) -> None:
    """At a named point: go on, take a nap, be killed, or be stopped for longer than a lease holds."""
    dice = _dice(os.getpid())
    roll = dice.random()
    if roll < KILL:
        note(f"kill:{name}", os.getpid())
        os.kill(os.getpid(), signal.SIGKILL)
    elif roll < KILL + STOP:
        note(f"stop:{name}", os.getpid())
        os.kill(os.getpid(), signal.SIGSTOP)
    elif roll < 2 * (KILL + STOP):
        time.sleep(dice.random() * 0.3)


@cache
def _dice(_pid: int) -> random.Random:
    """A process's own, by its worker's name, how often that was started, and which child it is: the same for the same seed."""
    return random.Random(f"{os.environ.get('CHAOS_SEED')}-{NODE}-{START}-{current_process().name}")


def _started() -> int:
    """How often the worker of this name was started, this time included."""
    with (HOME / f"started-{NODE}").open("ab") as file:
        file.write(b".")
        return file.tell()


def note(kind: str, pid: int) -> None:
    """One line for the harness, whole or not at all."""
    with (HOME / "accidents").open("ab", buffering=0) as file:
        file.write(f"{kind} {pid}\n".encode())


@contextlib.contextmanager
def unfenced(url: str, claim: claims.Claim, *, whole: bool = False) -> Iterator[tuple[Session, WorkflowStep]]:
    """`claims.fenced` that compares no fence."""
    with db.transaction(url) as session:
        if whole:
            workflows.locked(session, claim.workflow_id)
        yield session, session.get_one(WorkflowStep, claim.step_id, populate_existing=True)


def _switch_off() -> None:
    if "fencing" in WITHOUT:
        claims.fenced = unfenced
        claims.holds = lambda url, claim: True
    if "lease" in WITHOUT:
        take = claims.take
        claims.take = lambda url, app, step_id, generation, worker, lease: take(url, app, step_id, generation, worker, 0.0)
        claims.beat = lambda url, claim, lease: claims.holds(url, claim)
    if "reconciler" in WITHOUT:
        upkeep.reconcile = lambda parts: {}


_switch_off()
NODE = sys.argv[sys.argv.index("-n") + 1] if "-n" in sys.argv else "none"
START = _started()
null.SCRIPT = CHANGES
failpoints.failpoint = accident
from hyperagent_tasks import worker  # noqa: E402  # it takes `failpoint` by name

app: Any = worker.app
