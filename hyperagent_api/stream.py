"""Server-sent events from the database: short reads, no connection held while waiting, an id to come back with."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import flask
from sqlalchemy import select

from hyperagent_api.problems import problem
from hyperagent_common import db, events
from hyperagent_common.errors import BadInput, Fault
from hyperagent_common.models import RunnerEvent, Workflow
from hyperagent_common.states import WORKFLOW_ENDED

POLL_SECONDS = 0.4
PING_SECONDS = 15.0
LONGEST_SECONDS = 600.0
BATCH = 200
STANDING_SECONDS = 2.0
LOG_PAGE = 1000
"""Entries of a live log in one answer: a shorter one is the last there is."""
MOST = 48
RETRY_AFTER_SECONDS = 5
USED_UP = f"{MOST} event streams are open, and no more are served at one time."
_free = threading.BoundedSemaphore(MOST)


def response(chunks: Iterator[str]) -> flask.Response:
    """A stream that no proxy buffers; 503 where `MOST` are open: each holds a thread, and some must be left for all else."""
    if not _free.acquire(blocking=False):
        refused = problem(503, "streams-used-up", USED_UP, mend="Come back later, or ask for the events page by page.")
        refused.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
        return refused
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    made = flask.Response(chunks, mimetype="text/event-stream", headers=headers)
    made.call_on_close(_free.release)  # also where the client is gone before the first chunk
    return made


def position(text: str) -> int:
    """The id a client names to go on from. Raises `BadInput`."""
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise BadInput("The request is wrong.", faults=[Fault("Last-Event-ID", "must be a whole number")])
    return int(text)


def health_events(url: str, standing: Callable[[], dict[str, Any]], after: int | None) -> Iterator[str]:
    """Every RunnerEvent after `after` (None: from now on), and `standing()` every two seconds; ends after ten minutes.

    Each has an id to come back with, so that what happens meanwhile is told also to who has heard of no event yet.
    """
    yield "retry: 2000\n\n"
    began, again = time.monotonic(), 0.0
    with db.transaction(url, reading=True) as session:
        after = events.last_id(session) if after is None else after
    while time.monotonic() - began < LONGEST_SECONDS:
        if time.monotonic() >= again:
            again = time.monotonic() + STANDING_SECONDS
            yield f"id: {after}\nevent: health\ndata: {json.dumps(standing())}\n\n"
        with db.transaction(url, reading=True) as session:
            found = [events.view(entry) for entry in events.read_on(session, after, BATCH)[0]]
        for entry in found:
            after = entry["id"]
            yield f"id: {after}\nevent: {entry['kind']}\ndata: {json.dumps(entry)}\n\n"
        time.sleep(0 if len(found) == BATCH else POLL_SECONDS)


def workflow_events(url: str, workflow_id: str, after: int) -> Iterator[str]:
    """The events of a workflow as they come; ends when it has ended, or after ten minutes (the client comes back)."""
    yield "retry: 2000\n\n"
    began = spoke = time.monotonic()
    while time.monotonic() - began < LONGEST_SECONDS:
        with db.transaction(url, reading=True) as session:
            state = session.scalar(select(Workflow.state).where(Workflow.id == workflow_id))
            read, waiting = events.read_on(session, after, BATCH, RunnerEvent.workflow_id == workflow_id)
            found = [events.view(entry) for entry in read]
        for entry in found:
            after, spoke = entry["id"], time.monotonic()
            yield f"id: {after}\nevent: {entry['kind']}\ndata: {json.dumps(entry)}\n\n"
        if not found and not waiting and state in WORKFLOW_ENDED:
            yield f"event: end\ndata: {json.dumps({'state': state})}\n\n"
            return
        if time.monotonic() - spoke > PING_SECONDS:
            spoke = time.monotonic()
            yield ": ping\n\n"
        time.sleep(0 if found else POLL_SECONDS)
