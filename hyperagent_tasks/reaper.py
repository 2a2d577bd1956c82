"""The reaper: on its own host, ends every container, grant and workspace that no running attempt owns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from sqlalchemy import select

from hyperagent_common import db
from hyperagent_common.errors import HyperagentError
from hyperagent_common.models import PlanDraft, StepAttempt
from hyperagent_common.states import AttemptState
from hyperagent_tasks import handover, scratch
from hyperagent_tasks.gitgate.importing import QUARANTINE
from hyperagent_tasks.parts import Parts

log = logging.getLogger(__name__)
ATTEMPT, ROLE = "hyperagent.attempt", "hyperagent.role"
UNOWNED_ROLES = ("radicle", "probe")
"""Containers that belong to the host, not to an attempt."""


def reap(parts: Parts) -> dict[str, int]:
    """End what nobody owns; returns how much of each. Each part is tried, whatever another one says.

    A thing is seen first and its attempt asked for afterwards: an attempt's row is there before anything it owns.
    """
    kinds = {"containers": _containers, "workspaces": _workspaces, "refs": _refs, "grants": _grants, "scratch": _scratch}
    done = dict.fromkeys(kinds, 0)
    for name, part in kinds.items():
        try:
            done[name] = part(parts)
        except (HyperagentError, OSError) as error:
            log.warning("reap.failed", extra={"part": name, "error": str(error)})
    if any(done.values()):
        log.info("reaped", extra=done)
    return done


def owned(parts: Parts) -> Callable[[str], bool]:
    """Whether an attempt (or a planner's draft, whose directories are named by its fence too) runs, asked anew for each."""

    def ask(attempt_id: str) -> bool:
        attempt_id = attempt_id.partition(".")[0]
        running = (StepAttempt.id == attempt_id, StepAttempt.state == AttemptState.RUNNING)
        with db.transaction(parts.settings.db_url, reading=True) as session:
            draft = select(PlanDraft.id).where(PlanDraft.id == attempt_id, PlanDraft.state == "running")
            return session.scalar(select(StepAttempt.id).where(*running)) is not None or session.scalar(draft) is not None

    return ask


def _containers(parts: Parts) -> int:
    runs = owned(parts)

    def keep(labels: Mapping[str, str]) -> bool:
        return labels.get(ROLE) in UNOWNED_ROLES or runs(labels.get(ATTEMPT, ""))

    return len(parts.runner.reap(keep))


def _workspaces(parts: Parts) -> int:
    runs, ended = owned(parts), 0
    work = parts.settings.home / "work"
    for path in list(work.iterdir()) if work.is_dir() else []:
        if not path.name.startswith(".") and not runs(path.name):
            parts.runner.remove_tree(path)
            ended += 1
    return ended


def _refs(parts: Parts) -> int:
    runs = owned(parts)
    left = [attempt for attempt in parts.gitgate.quarantined() if not runs(attempt)]
    for attempt in left:
        parts.gitgate.drop(attempt)
    return len(left)


def _scratch(parts: Parts) -> int:
    return scratch.reap(handover.scratch_place(parts)) + scratch.reap(parts.settings.home / "repos" / QUARANTINE)


def _grants(parts: Parts) -> int:
    runs, ended = owned(parts), 0
    for run_id, attempt_id in parts.gateway.grants().items():
        if not runs(attempt_id):
            parts.gateway.close(run_id)
            ended += 1
    return ended
