"""The reaper: on its own host, ends every container, grant and workspace that no running attempt owns."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from hyperagent_common import db
from hyperagent_common.errors import HyperagentError
from hyperagent_common.models import AgentRun, PlanDraft, StepAttempt
from hyperagent_common.states import AttemptState
from hyperagent_tasks import endings, handover, recording, scratch
from hyperagent_tasks.gateway import calllog
from hyperagent_tasks.gateway.grants import Observed
from hyperagent_tasks.gitgate.importing import QUARANTINE
from hyperagent_tasks.parts import Parts
from hyperagent_tasks.runners.profile import ATTEMPT, DEADLINE, ROLE
from hyperagent_tasks.spec import Workdir

log = logging.getLogger(__name__)


def reap(parts: Parts) -> dict[str, int]:
    """End what nobody owns; returns how much of each. Each part is tried, whatever another one says.

    A thing is seen first and its attempt asked for afterwards: an attempt's row is there before anything it owns.
    """
    kinds = {"containers": _containers, "grants": _grants, "agent_runs": _agent_runs, "workspaces": _workspaces}
    kinds |= {"refs": _refs, "scratch": _scratch}
    done = dict.fromkeys(kinds, 0)
    for name, part in kinds.items():
        try:
            done[name] = part(parts)
        except (HyperagentError, OSError) as error:
            log.warning("reap.failed", extra={"part": name, "error": str(error)})
        except Exception:
            log.exception("reap.failed", extra={"part": name})
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
        if labels.get(ROLE) == "probe":  # no attempt's: a look of this host's own, until its deadline
            return not _past(labels.get(DEADLINE, ""))
        return labels.get(ROLE) == "radicle" or runs(labels.get(ATTEMPT, ""))

    return len(parts.runner.reap(keep))


def _past(deadline: str) -> bool:
    try:
        return datetime.fromisoformat(deadline) < datetime.now(UTC)
    except (ValueError, TypeError):
        return True


def _workspaces(parts: Parts) -> int:
    runs, ended = owned(parts), 0
    work = parts.settings.home / "work"
    for path in list(work.iterdir()) if work.is_dir() else []:
        if not path.name.startswith(".") and not runs(path.name) and _stored(parts, path):
            parts.runner.remove_tree(path)
            ended += 1
    return ended


def _stored(parts: Parts, path: Path) -> bool:
    """What its agent said is stored first; a storage that is away costs this, not the host's disk. False where the reaper of
    another worker of this home stores the same now: the next look finds it stored."""
    try:
        recording.keep_left(parts, Workdir(path))
    except IntegrityError:
        return False
    except (HyperagentError, OSError) as error:
        log.warning("reap.unstored", extra={"path": str(path), "error": str(error)})
    return True


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


def _agent_runs(parts: Parts) -> int:
    """Write the ends of this host's agent runs whose workers may write no more."""
    url, here, closed = parts.settings.db_url, f"{socket.gethostname()}:", 0
    with db.transaction(url, reading=True) as session:
        found = [(run.id, run.attempt_id, _worker(session, run)) for run in endings.open_runs(session)]
    for run_id, attempt_id, worker in found:
        observed = parts.gateway.close(run_id)
        if observed is None and not worker.startswith(here):
            continue  # another host's
        observed = observed or _from_call_logs(parts, attempt_id or "", run_id)
        with db.transaction(url) as session:
            closed += endings.of_the_dead(session, run_id, observed)
    return closed


def _worker(session: Session, run: AgentRun) -> str:
    attempt = session.get(StepAttempt, run.attempt_id or "")
    return attempt.worker if attempt else ""


def _from_call_logs(parts: Parts, attempt_id: str, run_id: str) -> Observed:
    logs = (parts.settings.home / "work" / attempt_id / "runs").glob("*/kept/gateway.jsonl")
    return next((seen for path in logs if (seen := calllog.summed(path, run_id)).requests), Observed())
