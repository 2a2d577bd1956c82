"""Hop record: logs, bundles and provenance go to shared storage, each with its row, also of failed attempts."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hyperagent_common import __version__, db
from hyperagent_common import provenance as statements
from hyperagent_common.errors import HyperagentError
from hyperagent_common.models import Artifact, StepAttempt, WorkflowStep
from hyperagent_common.provenance import Byproduct, StepFacts
from hyperagent_common.states import AttemptState
from hyperagent_common.storage import Stored
from hyperagent_tasks import claims, intake
from hyperagent_tasks.claims import Claim
from hyperagent_tasks.parts import Parts
from hyperagent_tasks.radicle.base import Published
from hyperagent_tasks.spec import Made, Place, StepSpec, Workdir, key_of

log = logging.getLogger(__name__)
OBSERVED, CLAIMED = "observed", "claimed"
MADE = "made.json"
MEDIA = {".jsonl": "application/jsonl", ".json": "application/json", ".txt": "text/plain", ".log": "text/plain"}


@dataclass(frozen=True)
class Shelf:
    """Where an attempt's files go, and the transaction in which it may have the rows of them."""

    parts: Parts
    workflow_id: str
    step_id: str
    attempt_id: str
    prefix: str
    opened: Callable[[], AbstractContextManager[Session]]

    def keep(self, name: str, data: bytes, trust: str) -> Stored:
        """Store a file and its row."""
        stored = self.parts.storage.put(f"{self.prefix}/{name}", data)
        with self.opened() as session:
            known = (Artifact.attempt_id == self.attempt_id, Artifact.name == name)
            if session.scalar(select(Artifact.id).where(*known)) is None:
                session.add(
                    Artifact(
                        workflow_id=self.workflow_id,
                        step_id=self.step_id,
                        attempt_id=self.attempt_id,
                        name=name,
                        key=stored.key,
                        media_type=MEDIA.get(Path(name).suffix, "application/octet-stream"),
                        size=stored.size,
                        sha256=stored.sha256,
                        trust=trust,
                        created_at=db.now(session),
                    )
                )
        return stored

    def keep_file(self, path: Path, name: str, trust: str) -> None:
        """Store a file of this side's own, where there is something in it."""
        if path.is_file() and path.stat().st_size:
            self.keep(name, path.read_bytes(), trust)


def of_step(parts: Parts, step: StepSpec) -> Shelf:
    """The shelf of a step under way: nothing can be put on it once the lease is lost."""
    claim = step.claim

    @contextmanager
    def opened() -> Iterator[Session]:
        with claims.fenced(parts.settings.db_url, claim) as (session, _row):
            yield session

    return Shelf(parts, claim.workflow_id, claim.step_id, claim.attempt_id, step.attempt_key, opened)


def of_dead(parts: Parts, attempt_id: str) -> Shelf | None:
    """The shelf of an attempt that runs no more, for its host's reaper; None where there is no such attempt."""
    url = parts.settings.db_url
    with db.transaction(url, reading=True) as session:
        attempt = session.get(StepAttempt, attempt_id)
        if attempt is None or attempt.state == AttemptState.RUNNING:
            return None
        step = session.get_one(WorkflowStep, attempt.step_id)
        key = key_of(step.workflow_id, step.key, attempt_id)
        return Shelf(parts, step.workflow_id, step.id, attempt_id, key, lambda: db.transaction(url))


def keep_logs(shelf: Shelf, place: Place, ws: Path | None) -> None:
    """Store what the agent and the gateway said, and the files the agent left as logs, also in the workspace `ws`."""
    kept = [("agent-stream.jsonl", CLAIMED), ("agent-stderr.txt", CLAIMED), ("gateway.jsonl", OBSERVED)]
    for name, trust in kept:
        shelf.keep_file(place.kept / name, f"{place.prefix}{name}", trust)
    sources = [(place.logs, "")] + ([(ws, ".hyperagent/workflow-logs")] if ws else [])
    for source, prefix in sources:
        taken = place.kept / ("logs" if not prefix else "workspace-logs")
        report = intake.take(source, taken, under=prefix)
        for name in report.names:
            shelf.keep_file(taken / name, f"{place.prefix}workflow-logs/{name}", CLAIMED)
        if report.refused:
            text = json.dumps([{"name": r.name, "reason": r.reason} for r in report.refused]).encode()
            shelf.keep(f"{place.prefix}intake-refused{'-ws' if prefix else ''}.json", text, OBSERVED)


def keep_left(parts: Parts, work: Workdir) -> None:
    """Store what the last agent run of an attempt left whose worker may write no more; earlier runs are stored."""
    shelf = of_dead(parts, work.root.name)
    left = sorted((work.root / "runs").glob("*/kept"), key=lambda path: path.stat().st_mtime)
    if shelf is not None and left:
        place = Place.of(left[-1].parent)
        keep_logs(shelf, place, work.ws if place.root.name.startswith("coder") else None)


def keep_checks(parts: Parts, step: StepSpec, work: Workdir) -> None:
    """Store what the checks printed."""
    name = "checks.txt" if work.round == 1 else f"round-{work.round}/checks.txt"
    of_step(parts, step).keep_file(work.kept / Path(name).name, name, OBSERVED)


def keep_made(parts: Parts, step: StepSpec, made: Made) -> None:
    """Store the sealed bundle and what this host saw of the work: another host may have to publish it."""
    work = Workdir(parts.settings.home / "work" / step.claim.attempt_id)
    last = max((int(p.name.rpartition("-")[2]) for p in work.root.glob("out-*")), default=1)
    shelf = of_step(parts, step)
    shelf.keep_file(replace(work, round=last).out / "out.bundle", "sealed.bundle", CLAIMED)
    told = {"commit": made.commit, "tree": made.tree, "host": parts.worker, "seen": made.seen}
    shelf.keep(MADE, json.dumps(told, default=str, sort_keys=True).encode(), OBSERVED)


def made(parts: Parts, step: StepSpec) -> tuple[str | None, dict[str, Any]]:
    """Tree and observations of the step's commit, as the attempt that made it kept them; nothing where it was killed before."""
    with db.transaction(parts.settings.db_url, reading=True) as session:
        known = (Artifact.step_id == step.claim.step_id, Artifact.name == MADE)
        keys = session.scalars(select(Artifact.key).where(*known).order_by(Artifact.id.desc())).all()
    for key in keys:
        told = json.loads(parts.storage.get(key))
        if told["commit"] == step.commit:
            return told["tree"], told["seen"]
    return None, {}


def provenance(parts: Parts, step: StepSpec, made: Made, published: Published | None) -> None:
    """Store the statement of what produced this commit, with everything the step's attempts stored."""
    with db.transaction(parts.settings.db_url, reading=True) as session:
        rows = session.scalars(select(Artifact).where(Artifact.step_id == step.claim.step_id).order_by(Artifact.id)).all()
        moment = db.now(session)
    kept = [Byproduct(a.name, a.sha256, a.media_type, a.trust, parts.storage.location(a.key)) for a in rows]
    facts = _facts(parts, step, made, published, kept, moment)
    of_step(parts, step).keep("provenance.json", statements.encode(statements.statement(facts)), OBSERVED)


def _facts(
    parts: Parts, step: StepSpec, made: Made, published: Published | None, kept: list[Byproduct], moment: datetime
) -> StepFacts:
    claim = step.claim
    return StepFacts(
        subject=f"git+{step.rid}/refs/heads/{step.branch}",
        commit=made.commit,
        tree=made.tree,
        base=step.base or "",
        builder=f"hyperagent://{parts.worker}",
        version=__version__,
        invocation=f"{claim.workflow_id}/{claim.key}/{claim.attempt_id}",
        started_at=claim.claimed_at,
        finished_at=moment,
        external={
            "workflow": {"id": claim.workflow_id, "planDigest": step.plan_digest, "title": step.workflow_title},
            "step": claim.key,
            "attempt": claim.number,
            "model": step.model,
            "promptDigest": hashlib.sha256(step.prompt().encode()).hexdigest(),
            "checks": list(step.checks),
            "verify": step.choices.verify,
            "requestedBy": step.requested_by,
        },
        internal={"sandbox": parts.runner.name, "forge": parts.forge.name, "fence": claim.fence},
        dependencies=[{"uri": f"git+{step.rid}", "digest": {"gitCommit": step.base}, "name": "base"}],
        extension={
            "seen": dict(made.seen),
            "patch": published and {"id": published.patch_id, "revision": published.revision_id, "forge": parts.forge.name},
        },
        byproducts=kept,
    )


def clean(parts: Parts, claim: Claim) -> None:
    """Remove the attempt's directories, and pack what many of them left; a failure is said, and the reconciler tries again."""
    path = parts.settings.home / "work" / claim.attempt_id
    try:
        if path.exists():
            parts.runner.remove_tree(path)
        parts.gitgate.drop(claim.attempt_id)
        parts.gitgate.pack()
    except (HyperagentError, OSError) as error:
        log.warning("workspace.kept", extra={"path": str(path), "error": str(error)})
