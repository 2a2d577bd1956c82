"""The Celery worker: `celery -A hyperagent_tasks.worker worker`. Gives the task names of `queue` their bodies."""

from __future__ import annotations

import logging
from typing import Any

from celery import Task, signals
from celery.exceptions import Ignore

from hyperagent_common import db, queue, settings, telemetry, workflows
from hyperagent_common.errors import BadSettings, DependencyDown, NotReady, OtherVersion, Transient
from hyperagent_tasks import catchup, heartbeat, planning, projects, requirements, steps, upkeep
from hyperagent_tasks.claims import StepTaken
from hyperagent_tasks.parts import Parts
from hyperagent_tasks.parts import instance as this_host

log = logging.getLogger(__name__)
try:
    SETTINGS = settings.load()
except BadSettings as error:
    raise SystemExit(str(error)) from error
app = queue.make(SETTINGS)
app.set_default()
app.conf.beat_schedule = {
    "reconcile": {
        "task": queue.RECONCILE,
        "schedule": SETTINGS.reconcile_seconds,
        "options": {"queue": queue.CONTROL, "expires": SETTINGS.reconcile_seconds},
    }
}
PARTS = Parts(SETTINGS, app)
RETRY: dict[str, Any] = {
    "autoretry_for": (Transient,),
    "retry_backoff": SETTINGS.retry_backoff,
    "retry_backoff_max": SETTINGS.retry_backoff_max,
    "retry_jitter": True,
}


LONGEST: dict[str, Any] = {"soft_time_limit": SETTINGS.longest_attempt, "time_limit": SETTINGS.longest_attempt + 60}
"""Celery's limits of a step outlast any deadline that a step can have: each has its own, known once it is claimed."""


@app.task(name=queue.RUN_STEP, bind=True, max_retries=None, **LONGEST, **RETRY)  # the row counts attempts, and ends them
def run_step(task: Task, step_id: str, generation: int) -> None:
    """Carry out one step. A duplicate delivery ends quietly: where the step is done, the chain goes on."""
    try:
        steps.run_step(PARTS, step_id, generation)
    except StepTaken as taken:
        log.info("step.refused", extra={"step_id": step_id, "generation": generation, "done": taken.done})
        if not taken.done:
            raise Ignore() from taken
    except OtherVersion as error:
        log.error("worker.other_version", extra={"error": str(error)})
        app.control.shutdown(destination=[task.request.hostname])
        raise Ignore() from error


@app.task(name=queue.ADVANCE, bind=True, max_retries=10, **RETRY)
def advance(task: Task, workflow_id: str) -> None:
    """The last link of a segment: queue what became ready, end the workflow where it ended."""
    with db.transaction(SETTINGS.db_url) as session:
        workflows.advance(session, app, workflow_id)


@app.task(name=queue.REGISTER, bind=True, max_retries=3, **RETRY)
def register_project(task: Task, project_id: str) -> None:
    """Register a project."""
    projects.register(PARTS, project_id, last=task.request.retries >= task.max_retries)


@app.task(name=queue.CHANGE)
def change_project(change_id: str) -> None:
    """Verify and apply a change of a project."""
    projects.change(PARTS, change_id)


@app.task(name=queue.DRAFT)
def draft_plan(draft_id: str) -> None:
    """Let a planner agent write a plan."""
    planning.draft(PARTS, draft_id)


@app.task(name=queue.CATCH_UP)
def catch_up(project_id: str) -> None:
    """Do what a project's patches still wait for."""
    catchup.catch_up(PARTS, project_id)


@app.task(name=queue.RECONCILE, bind=True)
def reconcile(task: Task) -> None:
    """Find what should be moving and is not."""
    upkeep.reconcile(PARTS)


@signals.setup_logging.connect
def _logging(**_: object) -> None:
    telemetry.configure(SETTINGS, "worker")


@signals.worker_process_init.connect
def _child(**_: object) -> None:
    """Connections do not cross a fork."""
    PARTS.forget_connections()
    db.engine(SETTINGS.db_url).dispose(close=False)


@signals.celeryd_init.connect
def _same_version(**_: object) -> None:
    """A worker of another version than the database's schema does not start; one that finds no database waits for it."""
    try:
        db.check(SETTINGS.db_url)
    except NotReady as error:
        raise SystemExit(str(error)) from error
    except DependencyDown as error:
        log.warning("database.down", extra={"error": str(error)})


@signals.celeryd_after_setup.connect
def _queues(sender: Any, instance: Any, **_: object) -> None:
    """A worker also takes what only this host can do; one that runs steps does not start without its agents."""
    if queue.STEPS in app.amqp.queues.consume_from and (lacking := requirements.lacking(PARTS)):
        raise SystemExit(lacking)
    for name in (queue.STEPS, queue.CONTROL):
        if name in app.amqp.queues.consume_from:
            app.amqp.queues.select_add(queue.host_queue(this_host(SETTINGS), name))


@signals.worker_ready.connect
def _ready(sender: Any, **_: object) -> None:
    """Only a worker that runs steps has a heartbeat: the API asks those whether a workflow can run."""
    if queue.STEPS in app.amqp.queues.consume_from:
        heartbeat.start(sender.hostname)


@signals.heartbeat_sent.connect
def _beating(**_: object) -> None:
    """Celery's own timer calls this, in the main process."""
    heartbeat.keep()


@signals.worker_shutting_down.connect
def _stopping(**_: object) -> None:
    heartbeat.stop()
