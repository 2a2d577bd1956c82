"""The faults, one function each: what a bad week does to a queue, in seconds."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import redis
from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy import func, or_, select

from hyperagent_common import actions, db, queue
from hyperagent_common.errors import Conflict, DependencyDown
from hyperagent_common.models import Workflow, WorkflowStep
from hyperagent_common.states import Action, StepState, WorkflowState
from tests.chaos.rig import LEASE, Rig, children

STOPPED = LEASE + 2.5


class Faults:
    """Does seeded faults to a rig and counts them; `skewed` are steps whose lease it moved, `cancelled` its workflows."""

    def __init__(self, rig: Rig, app: Celery, dice: random.Random) -> None:
        self.rig, self.app, self.dice = rig, app, dice
        self.counts: Counter[str] = Counter()
        self.skewed: set[str] = set()
        self.cancelled: set[str] = set()
        self._paused: set[str] = set()
        self._seen = 0
        self._waking: list[threading.Timer] = []
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._wake_stopped, daemon=True)
        self.kinds: list[tuple[int, Callable[[], bool]]] = [
            (5, self.kill_child), (3, self.kill_worker), (2, self.kill_group), (4, self.stop_child), (6, self.duplicate),
            (2, self.flush_redis), (1, self.restart_redis), (1, self.restart_database), (3, self.skew_lease),
            (3, self.pause_and_resume), (1, self.cancel), (1, self.kill_control), (1, self.kill_gateway),
            (2, self.drain_worker),
        ]  # fmt: skip
        if rig.engine is not None:
            self.kinds.append((3, self.restart_engine))
        if "reconciler" in rig.without:  # both do its work: what is resumed is sent again, and what is cancelled is not stuck
            self.kinds = [(weight, kind) for weight, kind in self.kinds if kind not in (self.pause_and_resume, self.cancel)]
        self._first = [kind for _, kind in self.kinds]  # each once, so that a short run has seen all
        self.dice.shuffle(self._first)

    def one(self) -> None:
        """One fault; where the database is away in this moment, none."""
        weights = [weight for weight, _ in self.kinds]
        fault = self._first.pop() if self._first else self.dice.choices([kind for _, kind in self.kinds], weights)[0]
        with contextlib.suppress(DependencyDown, redis.RedisError, OperationalError, Conflict):
            if fault():
                self.counts[fault.__name__] += 1

    def kill_child(self) -> bool:
        """SIGKILL one child of a worker in the middle of whatever it does."""
        pid = self._child()
        return pid is not None and _kill(pid, signal.SIGKILL)

    def kill_worker(self) -> bool:
        """SIGKILL a worker's main process; its children go on for a while as orphans."""
        self.dice.choice(self.rig.workers).end(group=False)
        return True

    def kill_group(self) -> bool:
        """A power cut: the worker with all it started."""
        self.dice.choice(self.rig.workers).end()
        return True

    def kill_control(self) -> bool:
        """One of the two workers with a reconciler."""
        self.dice.choice(self.rig.controls).end()
        return True

    def drain_worker(self) -> bool:
        """SIGTERM: its steps end in time or are handed over; it is started again once it is gone."""
        worker = self.dice.choice(self.rig.workers)
        worker.send(signal.SIGTERM)
        return worker.alive

    def kill_gateway(self) -> bool:
        """The model gateway."""
        self.rig.gateway.end()
        return True

    def stop_child(self) -> bool:
        """A zombie: a child stands still for longer than its lease holds, then goes on as if nothing had been."""
        pid = self._child()
        if pid is None or not _kill(pid, signal.SIGSTOP):
            return False
        self._wake(pid)
        return True

    def duplicate(self) -> bool:
        """Messages of steps, several times over and of generations to come.

        Not of those whose own message may be lost, queued or silent: a duplicate must not do the reconciler's work.
        """
        with db.transaction(self.rig.url, reading=True) as session:
            held = (WorkflowStep.state == StepState.RUNNING) & (WorkflowStep.lease_until > db.now(session))
            wanted = or_(WorkflowStep.state.not_in([StepState.QUEUED, StepState.RUNNING]), held)
            found = select(WorkflowStep.id, WorkflowStep.generation).where(wanted).order_by(func.random()).limit(6)
            rows = session.execute(found).all()
        for step_id, generation in rows:
            for number in (generation, generation, generation, generation + 1):
                queue.signature(self.app, queue.RUN_STEP, step_id, number).apply_async()
        return bool(rows)

    def flush_redis(self) -> bool:
        """Every message is gone."""
        with self.rig.client() as client:
            client.flushdb()
        return True

    def restart_redis(self) -> bool:
        """kill -9, a moment of nothing, and up again."""
        self.rig.redis.end()
        time.sleep(self.dice.random())
        self.rig.start_redis()
        return True

    def restart_database(self) -> bool:
        """All connections are cut; up again after a moment."""
        self.rig.database.end(signal.SIGINT, group=False)
        time.sleep(self.dice.random())
        self.rig.start_database()
        return True

    def restart_engine(self) -> bool:
        """Every container ends with it; it is away for a moment."""
        if self.rig.engine is not None:
            self.rig.engine.restart(self.dice.random() * 2)
        return self.rig.engine is not None

    def skew_lease(self) -> bool:
        """A lease that ended long ago, or that holds on too long."""
        with db.transaction(self.rig.url) as session:
            query = (
                select(WorkflowStep)
                .where(WorkflowStep.state == StepState.RUNNING)
                .limit(1)
                .with_for_update(key_share=True, skip_locked=True)
            )
            step = session.scalars(query).first()
            if step is None:
                return False
            self.skewed.add(step.id)
            step.lease_until = db.now(session) + timedelta(seconds=self.dice.choice((-3600, 2 * LEASE)))
        return True

    def pause_and_resume(self) -> bool:
        """Pause a running workflow for a moment, each once: resuming sends again what was lost."""
        known = self._running()
        if known is None or known in self._paused:
            return False
        self._paused.add(known)
        self._take(known, Action.PAUSE)
        time.sleep(self.dice.random() * 2)
        for _ in range(50):  # it may have ended in the meantime; it must not stay paused
            try:
                self._take(known, Action.RESUME)
                return True
            except Conflict:
                return True
            except DependencyDown:
                time.sleep(0.2)
        return True

    def cancel(self) -> bool:
        """Cancel a running workflow."""
        known = self._running()
        if known is None:
            return False
        self._take(known, Action.CANCEL)
        self.cancelled.add(known)
        return True

    def _take(self, workflow_id: str, action: Action) -> None:
        with db.transaction(self.rig.url) as session:
            actions.take(session, self.app, workflow_id, action, budget=100, by="chaos")

    def _running(self) -> str | None:
        with db.transaction(self.rig.url, reading=True) as session:
            query = select(Workflow.id).where(Workflow.state == WorkflowState.RUNNING).order_by(func.random()).limit(1)
            return session.scalar(query)

    def _child(self) -> int | None:
        worker = self.dice.choice(self.rig.workers)
        found = children(worker.process.pid) if worker.process is not None and worker.alive else []
        return self.dice.choice(found) if found else None

    def watch(self) -> None:
        """Let go on, once its lease is over, whoever stops itself at a named point; also while a fault waits for its lock."""
        self._watch.start()

    def _wake_stopped(self) -> None:
        while not self._ended.wait(0.2):
            told = self.rig.accidents()
            for kind, pid in told[self._seen :]:
                if kind.startswith("stop:"):
                    self._wake(pid)
            self._seen = len(told)

    def _wake(self, pid: int) -> None:
        timer = threading.Timer(STOPPED, lambda: _kill(pid, signal.SIGCONT))
        timer.daemon = True
        timer.start()
        self._waking.append(timer)

    def settle(self) -> None:
        """Wait for the last sleeper."""
        time.sleep(0.5)
        self._ended.set()
        self._watch.join(10)
        for timer in self._waking:
            timer.join(STOPPED + 1)

    def told(self) -> dict[str, int]:
        """Every fault by kind, the workers' own accidents included."""
        own = Counter(kind for kind, _ in self.rig.accidents())
        return dict(sorted((self.counts + own).items()))


def _kill(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
