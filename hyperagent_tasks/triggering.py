"""Events on the forge start workflows: looked up, never only listened to, and each handled once, in one transaction.

A comment or a push is a row with a unique key, written together with the workflow it started: whoever is killed in between
has written neither. Nothing an event says is believed but its author's key, which Radicle has checked.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hyperagent_common import db, events, triggers, workflows
from hyperagent_common import plan as plans
from hyperagent_common.errors import BadInput
from hyperagent_common.events import EventKind
from hyperagent_common.forge_models import ForgeHost, TriggerEvent, TriggerMark
from hyperagent_common.ids import new_id
from hyperagent_common.models import Project
from hyperagent_common.states import ProjectState
from hyperagent_common.triggers import COMMENT, PUSH, Happened, Rule
from hyperagent_tasks.failpoints import failpoint
from hyperagent_tasks.parts import Parts, instance
from hyperagent_tasks.radicle.base import Activity

log = logging.getLogger(__name__)
CHUNK = 100
NEVER_READ = ""
"""Fingerprint of a patch that could not be read at the project's first look: what it says may be older than the rule."""
HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Around:
    """What decides about an event besides its rules: who may start something, who we are, what came before."""

    delegates: Sequence[str]
    own: Sequence[str]
    before: datetime | None = None


@dataclass
class Handled:
    """Where events came to: the workflows started, and how often each refusal was spoken."""

    fired: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)


def watched(parts: Parts) -> list[Project]:
    """The projects with triggers that this host publishes."""
    with db.transaction(parts.settings.db_url, reading=True) as session:
        mine = (Project.publisher == instance(parts.settings), Project.forge == parts.forge.name)
        ready = (Project.state == ProjectState.READY, Project.removed_at.is_(None), Project.rid.is_not(None))
        query = select(Project).join(TriggerMark, TriggerMark.project_id == Project.id).where(*mine, *ready)
        return [p for p in session.scalars(query.order_by(Project.id)) if p.settings.get("triggers")]


def unseen(session: Session, host: str) -> bool:
    """Whether a project of this host got its first trigger and was not looked at since: what comes from then on counts."""
    query = select(TriggerMark.project_id).join(Project, Project.id == TriggerMark.project_id)
    return session.scalar(query.where(TriggerMark.seen.is_(None), Project.publisher == host).limit(1)) is not None


def scan(parts: Parts, project: Project) -> list[str]:
    """Look at everything that changed since the last look; returns the ids of the workflows that it started."""
    url, rid = parts.settings.db_url, project.rid or ""
    rules = triggers.read(project.settings.get("triggers"), project.default_branch)
    branches = sorted({rule.branch for rule in rules if rule.on == PUSH})
    now = parts.forge.activity(rid, branches)
    with db.transaction(url, reading=True) as session:
        mark = session.get(TriggerMark, project.id)
        ours = {i["did"] for row in session.scalars(select(ForgeHost)) for i in row.report.get("identities", ())}
    if mark is None:
        return []
    seen: dict[str, Any] = mark.seen or {}
    changed, waiting = _changed(now, seen)
    said, unread = _comments(parts, rid, changed)
    watched = _own_branches(now, rules)
    found = [*_pushes(now, seen.get("branches", {}), branches), *_own_pushes(now, seen.get("heads", {}), watched), *said]
    since = mark.since.replace(microsecond=0)  # Radicle tells whole seconds: a comment in the rule's own second came after it
    own, prints = tuple({*ours, now.did}), seen.get("patches", {})
    late = {event[0].subject for event in found if mark.seen is None or prints.get(event[0].patch) == NEVER_READ}
    early, rest = ([e for e in found if (e[0].subject in late) is asked] for asked in (True, False))
    fired = [*_handled(parts, project.id, early, Around(now.delegates, own, since))]
    fired += _handled(parts, project.id, rest, Around(now.delegates, own))
    with db.transaction(url) as session:
        kept = session.get(TriggerMark, project.id, with_for_update=True)
        if kept is not None and kept.since == mark.since:
            patches = _seen_patches(now, mark.seen, {*unread, *waiting})
            heads = {b: {did: now.heads.get(b, {}).get(did, "") for did in dids} for b, dids in watched.items()}
            kept.seen = {"branches": {b: now.branches.get(b, "") for b in branches}, "heads": heads, **patches}
    return fired


def _handled(parts: Parts, project_id: str, found: Sequence[tuple[Happened, datetime | None]], around: Around) -> list[str]:
    return [done for at in range(0, len(found), CHUNK) for done in handle(parts, project_id, found[at : at + CHUNK], around)]


def _changed(now: Activity, seen: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Patches to read, and those that could not be read lately and wait: for twice as many looks each time, 64 at most."""
    changed = [i for i, print_ in now.patches.items() if seen.get("patches", {}).get(i) != print_]
    looks = {i: seen.get("unread", {}).get(i, 0) for i in changed}
    due = [i for i in changed if looks[i] & (looks[i] - 1) == 0 or looks[i] % 64 == 0]
    return due, [i for i in changed if i not in due]


def _seen_patches(now: Activity, seen: dict[str, Any] | None, unread: set[str]) -> dict[str, Any]:
    """Fingerprints as they are now, but of what could not be read as they were, so that it is read again."""
    before, looks = (seen or {}).get("patches", {}), (seen or {}).get("unread", {})
    prints = {i: print_ for i, print_ in now.patches.items() if i not in unread}
    prints |= {i: before.get(i, NEVER_READ) for i in unread if seen is None or i in before}
    return {"patches": prints, "unread": {i: looks.get(i, 0) + 1 for i in unread}}


def _pushes(now: Activity, seen: dict[str, str], branches: Sequence[str]) -> list[tuple[Happened, datetime | None]]:
    """Branches whose canonical head moved; one that is looked at for the first time has not moved."""
    moved = [(b, now.branches[b]) for b in branches if b in now.branches and seen.get(b, now.branches[b]) != now.branches[b]]
    made: list[tuple[Happened, datetime | None]] = []
    for branch, head in moved:
        pushed = tuple(did for did in now.delegates if now.heads.get(branch, {}).get(did) == head)
        made.append((Happened(PUSH, f"{branch}:{head}", pushed, branch=branch, commit=head), None))
    return made


def _own_branches(now: Activity, rules: Sequence[Rule]) -> dict[str, list[str]]:
    """Whose own branches count, by branch. Radicle has a canonical head of the default branch only: of others a delegate's own
    branch counts, and always that of whoever is named and is no delegate, whom a canonical head never follows."""
    found: dict[str, set[str]] = {}
    for rule in rules:
        canonical = now.delegates if rule.branch in now.branches else ()
        if rule.on == PUSH:
            found.setdefault(rule.branch, set()).update(did for did in rule.authors or now.delegates if did not in canonical)
    return {branch: sorted(dids) for branch, dids in found.items()}


def _own_pushes(
    now: Activity, seen: dict[str, dict[str, str]], watched: dict[str, list[str]]
) -> list[tuple[Happened, datetime | None]]:
    """Branches of one DID that moved; one that is looked at for the first time has not moved."""
    ours = [(b, did, now.heads.get(b, {}).get(did)) for b, dids in watched.items() for did in dids]
    moved = [(b, did, head) for b, did, head in ours if head and seen.get(b, {}).get(did, head) != head]
    return [(Happened(PUSH, f"{b}:{head}:{did}", (did,), branch=b, commit=head), None) for b, did, head in moved]


def _comments(parts: Parts, rid: str, patches: Sequence[str]) -> tuple[list[tuple[Happened, datetime | None]], list[str]]:
    """What was said on these patches, and the patches that could not be read now."""
    said, unread = parts.forge.comments(rid, patches)
    if unread:
        log.warning("trigger.patches_unread", extra={"rid": rid, "patches": unread[:10], "count": len(unread)})
    found = [Happened(COMMENT, f"{c.patch}:{c.id}", (c.author[:255],), c.body, patch=c.patch) for c in said]
    return list(zip(found, (_moment(c.at) for c in said), strict=True)), unread


def _moment(milliseconds: int) -> datetime | None:
    """A time its author's clock told; None where it is no time at all."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000).astimezone()
    except (OverflowError, OSError, ValueError, TypeError):
        return None


def handle(parts: Parts, project_id: str, found: Sequence[tuple[Happened, datetime | None]], around: Around) -> list[str]:
    """Decide about events that nobody has decided about yet; the project's row is locked, so that nobody else does."""
    with db.transaction(parts.settings.db_url) as session:
        locking = select(Project).where(Project.id == project_id).with_for_update().execution_options(populate_existing=True)
        project = session.scalars(locking).one()
        if project.removed_at is not None:
            return []
        rules = triggers.read(project.settings.get("triggers"), project.default_branch)
        known = (TriggerEvent.project_id == project_id, TriggerEvent.subject.in_([h.subject[:400] for h, _ in found]))
        before = set(session.scalars(select(TriggerEvent.subject).where(*known)))
        done = Handled()
        for happened, moment in found:
            if happened.subject[:400] not in before:
                before.add(happened.subject[:400])
                late = around.before is not None and (moment is None or moment < around.before)
                _one(parts, session, project, rules, happened, around, late=late, done=done)
        for reason, count in done.refused.items():
            events.record(session, EventKind.TRIGGER_REFUSED, project=project.name, count=count, reason=reason)
        if done.fired:
            session.flush()
            failpoint("in_trigger")
    return done.fired


def _one(
    parts: Parts, session: Session, project: Project, rules: Sequence[Rule], happened: Happened, around: Around,
    *, late: bool, done: Handled,
) -> None:  # fmt: skip
    """One event: its row, and the workflow it starts."""
    outcome, rule, reason = ("before", None, "") if late else _decided(session, project, rules, happened, around)
    row = TriggerEvent(
        id=new_id(), project_id=project.id, kind=happened.on, subject=happened.subject[:400],
        author=" ".join(happened.authors)[:255], rule=rule.name if rule else "", outcome=outcome, reason=reason,
        at=db.now(session),
    )  # fmt: skip
    if rule is not None and outcome == "fired":
        try:
            row.workflow_id = _submit(parts, session, project, rule, happened)
            done.fired.append(row.workflow_id)
        except BadInput as error:
            row.outcome, row.reason = "refused", f"The plan of the trigger {rule.name} is wrong by now: {error}"[:1000]
    if row.outcome == "refused":
        done.refused[row.reason] += 1
    session.add(row)
    session.flush()


def _decided(
    session: Session, project: Project, rules: Sequence[Rule], happened: Happened, around: Around
) -> tuple[str, Rule | None, str]:
    """Outcome, rule and reason. Who may not is refused before the text is even looked at."""
    if happened.authors and set(happened.authors) <= set(around.own):
        return "passed", None, "It is our own."
    kind = [rule for rule in rules if rule.on == happened.on]
    open_to = [rule for rule in kind if triggers.allowed(rule, happened, around.delegates, around.own)]
    if kind and not open_to:
        who = " ".join(happened.authors)[:200] or "nobody known"
        return "refused", None, f"The author {who} is neither a delegate nor named by a trigger."
    fitting = triggers.matching(open_to, happened)
    if not fitting:
        return "passed", None, ""
    rule = fitting[0]
    lately = (TriggerEvent.project_id == project.id, TriggerEvent.outcome == "fired", TriggerEvent.rule == rule.name)
    count = session.scalar(select(func.count()).where(*lately, TriggerEvent.at > db.now(session) - HOUR)) or 0
    if count >= rule.per_hour:
        return "refused", rule, f"The trigger {rule.name} has fired {count} times in an hour, its limit."
    return "fired", rule, ""


def _submit(parts: Parts, session: Session, project: Project, rule: Rule, happened: Happened) -> str:
    """The workflow of the rule's plan. Raises `BadInput`."""
    parsed = plans.parse(triggers.filled(rule.plan, happened))
    by = f"trigger {rule.name}: {' '.join(happened.authors)}"[:255]
    made = workflows.submit(session, parts.app, project, parsed, max_attempts=parts.settings.max_attempts, requested_by=by)
    said: dict[str, Any] = {"project": project.name, "rule": rule.name, "subject": happened.subject[:400], "author": by}
    events.record(session, EventKind.TRIGGER_FIRED, workflow_id=made.id, **said)
    return made.id
