"""Handing a workflow's branch from host to host: commits travel as git bundles in shared storage, never by shared folders.

The database says where a branch is (`workflow.head`); a host that does not hold that commit takes it from the storage.
"""

from __future__ import annotations

import logging
from pathlib import Path

from sqlalchemy import update

from hyperagent_common import db
from hyperagent_common.errors import Conflict, DependencyDown, NotFound
from hyperagent_common.models import Project
from hyperagent_tasks import scratch
from hyperagent_tasks.gitgate import GitGate
from hyperagent_tasks.parts import Parts, instance
from hyperagent_tasks.places import is_remote, place
from hyperagent_tasks.spec import StepSpec

log = logging.getLogger(__name__)


def project_key(project_id: str, commit: str) -> str:
    """Where the whole history up to a commit of the default branch is kept."""
    return f"projects/{project_id}/{commit}.bundle"


def branch_key(workflow_id: str, commit: str) -> str:
    """Where the commits of a workflow's branch since its base are kept."""
    return f"workflows/{workflow_id}/branch/{commit}.bundle"


def default_head(parts: Parts, step: StepSpec) -> str:
    """The default branch's commit: as the source has it where this host can see it, else as it was last seen."""
    here = None if is_remote(step.source) and step.publisher != instance(parts.settings) else place(parts, step.source)
    with db.transaction(parts.settings.db_url, reading=True) as session:
        known = session.get_one(Project, step.project_id).head
    if here is not None and here.is_dir():
        head = parts.gitgate.refresh(step.project, str(here), step.default_branch)
        keep_default(parts, step.project_id, step.project, head, known)
        return head
    if known is None:
        raise NotFound(
            f"This host cannot see {step.source}, and no other has shared the project {step.project} yet.",
            mend="Register the project again on the host that holds it.",
        )
    fetch_default(parts, step, known)
    return known


def keep_default(parts: Parts, project_id: str, project: str, head: str, seen: str | None) -> None:
    """Share the default branch's commit with the other hosts, once. `seen` is what the database said before the branch was
    looked at: where another one wrote meanwhile, that stays, for it may be newer, and the next step looks again."""
    if seen == head:
        return
    _put(parts, project, head, project_key(project_id, head), None)
    with db.transaction(parts.settings.db_url) as session:
        still = (Project.id == project_id, Project.head.is_not_distinct_from(seen))
        session.execute(update(Project).where(*still).values(head=head))


def fetch_default(parts: Parts, step: StepSpec, commit: str) -> None:
    """Have a commit of the default branch on this host."""
    _take(parts, step.project, commit, project_key(step.project_id, commit))


def fetch(parts: Parts, step: StepSpec, base: str, head: str) -> None:
    """Have the workflow's branch on this host as the database says it is."""
    fetch_default(parts, step, base)
    if head != base:
        _take(parts, step.project, head, branch_key(step.claim.workflow_id, head))
    parts.gitgate.follow(step.project, step.branch, head)


def keep(parts: Parts, step: StepSpec, commit: str) -> None:
    """Share a commit of the workflow's branch, before the database says that the branch is there."""
    _put(parts, step.project, commit, branch_key(step.claim.workflow_id, commit), step.base)


def _put(parts: Parts, project: str, commit: str, key: str, without: str | None) -> None:
    with scratch.directory(scratch_place(parts)) as place:
        path = place / "out.bundle"
        parts.gitgate.base_bundle(project, commit, path, without=without)
        try:
            parts.storage.put(key, path.read_bytes())
        except Conflict as error:  # there already (packs of the same commit may differ), or larger than is stored
            log.info("bundle.not_stored", extra={"key": key, "reason": error.message})


def _take(parts: Parts, project: str, commit: str, key: str) -> None:
    gate: GitGate = parts.gitgate
    if gate.has(gate.trusted(project), commit):
        return
    try:
        data = parts.storage.get(key)
    except NotFound as error:
        raise DependencyDown(f"The shared storage does not hold the commit {commit} of {project}.") from error
    with scratch.directory(scratch_place(parts)) as place:
        path = place / "in.bundle"
        path.write_bytes(data)
        gate.take_bundle(project, path, commit)


def scratch_place(parts: Parts) -> Path:
    """Where bundles lie while they are written or read."""
    return parts.settings.run_dir / "bundles"
