"""The Celery application and the names of its tasks. Messages carry ids and numbers, nothing else.

The API sends by name and never imports a task's code; the worker (`hyperagent_tasks.worker`) gives the names bodies.
"""

from __future__ import annotations

from collections.abc import Sequence

import redis
from celery import Celery, chain
from celery.canvas import Signature

from hyperagent_common.choices import ASKS
from hyperagent_common.settings import AROUND_SECONDS, Settings

RUN_STEP = "hyperagent.run_step"
ADVANCE = "hyperagent.advance"
RECONCILE = "hyperagent.reconcile"
REGISTER = "hyperagent.register_project"
CHANGE = "hyperagent.change_project"
DRAFT = "hyperagent.draft_plan"
CATCH_UP = "hyperagent.catch_up"
CATCH_UP_EXPIRES = 600
STEPS = "steps"
CONTROL = "control"
PREFIX = "hyperagent:"
ASK_SECONDS = 3.0
PUBLISH_RETRY = {"max_retries": 3, "interval_start": 0.1, "interval_step": 0.2, "interval_max": 1}


def make(settings: Settings) -> Celery:
    """The Celery application for these settings; each line that is not a default says why it is there."""
    app = Celery("hyperagent", broker=settings.broker, set_as_current=False)
    longest = max(settings.attempt_seconds(), ASKS * settings.step_timeout + AROUND_SECONDS)  # a planner's draft has no rounds
    app.conf.update(
        task_serializer="json",  # ids and numbers; any language can read a queue that is stuck
        accept_content=["json"],  # a message is data, never code
        enable_utc=True,  # countdowns of retries mean the same on every host
        task_ignore_result=True,  # the database row is the result
        task_acks_late=True,  # a message outlives the worker that took it
        task_reject_on_worker_lost=True,  # ... also where only the child died; the claim counts attempts
        worker_prefetch_multiplier=1,  # a waiting step stays where any worker can take it
        worker_eta_task_limit=200,  # retries wait in worker memory: bound them
        worker_max_tasks_per_child=200,  # what a library leaks ends with its child
        task_soft_time_limit=longest,  # of what is no step: those have their own, see `hyperagent_tasks.deadline`
        task_time_limit=longest + 60,  # ... or its child is killed
        task_default_queue=STEPS,  # what has no route is a step
        task_routes={
            ADVANCE: {"queue": CONTROL},
            RECONCILE: {"queue": CONTROL},
            REGISTER: {"queue": CONTROL},
            CHANGE: {"queue": CONTROL},
        },  # never behind steps
        worker_cancel_long_running_tasks_on_connection_loss=False,  # the lease protects, not the connection
        worker_soft_shutdown_timeout=settings.drain_seconds,  # SIGTERM: finish within it, else hand over
        worker_enable_soft_shutdown_on_idle=False,  # with nothing to do, stop at once; retries that wait are sent again
        broker_connection_retry_on_startup=True,  # a worker may start before its Redis
        broker_connection_max_retries=None,  # ... and outlive any outage of it
        broker_channel_error_retry=True,  # READONLY after a failover is a channel error
        task_publish_retry_policy=PUBLISH_RETRY,  # a caller waits about two seconds, then the reconciler sends
        worker_send_task_events=True,  # for Flower
        task_send_sent_event=True,  # ... with what waits in the queue
        worker_hijack_root_logger=False,  # our lines are JSON
        broker_transport_options=transport_options(settings),
    )
    return app


def transport_options(settings: Settings) -> dict[str, object]:
    """Options of the broker's transport. The visibility timeout outlasts steps and their retries, by the deployment's choices:
    one that a project gave longer is delivered twice, and the claim refuses the second."""
    longest = settings.attempt_seconds() + settings.retry_backoff_max + settings.drain_seconds
    options: dict[str, object] = {
        "visibility_timeout": settings.visibility_timeout or max(6 * 3600, 3 * longest),
        "unacked_restore_throttle": 1,  # else a sweep only every 100 s
        "socket_connect_timeout": 5,  # an address that swallows packets is noticed
        "health_check_interval": 25,  # a half-open connection is dropped
        "global_keyprefix": PREFIX,  # several may share one Redis database
    }
    if not settings.broker.startswith("redis+socket"):
        options |= {"socket_timeout": 30, "socket_keepalive": True}  # a Unix socket has neither trouble
    return options


def signature(app: Celery, name: str, *args: object) -> Signature:
    """An immutable signature by name: a chain's link takes nothing from the link before."""
    queue = app.conf.task_routes.get(name, {}).get("queue", STEPS)
    return app.signature(name, args=args, immutable=True, queue=queue)


def host_queue(instance: str, of: str = STEPS) -> str:
    """The queue of what only one host can do."""
    return f"{of}.{instance}"


def at_publisher(app: Celery, name: str, key: str, publisher: str | None) -> Signature:
    """A signature for the host that publishes a project, which alone has its repository; for any host where none is named."""
    made = signature(app, name, key)
    return made.set(queue=host_queue(publisher, made.options["queue"])) if publisher else made


def send_catch_up(app: Celery, project_id: str, publisher: str | None) -> None:
    """Ask the host that publishes a project to do what its patches still wait for."""
    at_publisher(app, CATCH_UP, project_id, publisher).set(expires=CATCH_UP_EXPIRES).apply_async()


def client(broker: str, *, seconds: float, decode: bool = False) -> redis.Redis:
    """A client of the broker that waits at most so many seconds; with `decode` it answers in text."""
    url = broker
    if broker.startswith("redis+socket://"):  # Celery's words for a socket and its database, and the library's
        url = broker.replace("redis+socket", "unix", 1).replace("virtual_host=", "db=", 1)
    return redis.Redis.from_url(url, socket_timeout=seconds, socket_connect_timeout=seconds, decode_responses=decode)


def depth(broker: str) -> int | None:
    """How many messages of steps wait in the broker; None where it cannot be asked."""
    asked = client(broker, seconds=ASK_SECONDS)
    try:
        return int(asked.llen(PREFIX + STEPS))
    except redis.RedisError:
        return None
    finally:
        asked.close()


def send_segment(app: Celery, workflow_id: str, links: Sequence[tuple[str, int]], to: str = "") -> None:
    """Send one linear segment, a list of (step id, generation), as a chain whose last link advances the workflow.

    Where `to` names a host, the first step goes to that host's own queue.
    """
    steps = [signature(app, RUN_STEP, step_id, generation) for step_id, generation in links]
    if to:
        steps[0].set(queue=host_queue(to))
    chain(*steps, signature(app, ADVANCE, workflow_id), app=app).apply_async()
