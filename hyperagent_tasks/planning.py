"""The planner: a goal and a read-only clone in, a plan without faults out; asked once more with the faults where wrong."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import ColumnElement, select, update

from hyperagent_common import choices, db, queue
from hyperagent_common import plan as plans
from hyperagent_common.choices import ASKS, Choice, Choices
from hyperagent_common.errors import AgentFailed, BadInput, DependencyDown, HyperagentError, LeaseLost
from hyperagent_common.ids import new_id
from hyperagent_common.models import AgentRun, PlanDraft, Project
from hyperagent_tasks import endings, fallback, intake, preparing, prompts, spending
from hyperagent_tasks.agents.base import Agent, AgentOutcome, AgentTask, StreamParser
from hyperagent_tasks.budget import Left
from hyperagent_tasks.gateway.client import Grant, Observed, new_token
from hyperagent_tasks.judging import answered, broken_off, figures, judged, spoken
from hyperagent_tasks.leases import Keeper
from hyperagent_tasks.parts import Parts, instance
from hyperagent_tasks.places import place
from hyperagent_tasks.runners.base import Mount, Owner, RunSpec
from hyperagent_tasks.spec import Place
from hyperagent_tasks.verdict import Malformed, heard, only_object

STREAM = "agent-stream.jsonl"
SCHEMA = {
    "type": "object",
    "required": ["kind", "title", "tasks"],
    "properties": {"kind": {"const": plans.KIND}, "title": {"type": "string"}, "tasks": {"type": "array", "minItems": 1}},
}


@dataclass(frozen=True)
class Held:
    """A draft that is ours until `fence` is overtaken."""

    id: str
    fence: int

    def where(self) -> tuple[ColumnElement[bool], ...]:
        """The draft, while it is ours."""
        return (PlanDraft.id == self.id, PlanDraft.fence == self.fence, PlanDraft.state == "running")


def draft(parts: Parts, draft_id: str) -> None:
    """Write a draft's plan, or why there is none. A second delivery finds it taken and does nothing.

    Its worker renews a lease; the reconciler gives a draft without one to another worker, and this one can write no more.
    """
    s = parts.settings
    held, goal, project = _take(s.db_url, draft_id, s.lease_seconds)
    if held is None or project is None:
        return
    root = s.home / "work" / f"{draft_id}.{held.fence}"
    renew = partial(_write, s.db_url, held, lease=s.lease_seconds)
    try:
        with Keeper(draft_id, renew, partial(_holds, s.db_url, held), s.lease_seconds, s.heartbeat_seconds) as lease:
            plan = _written(parts, held, project, goal, root, lease)
        _write(s.db_url, held, state="done", document=plan.document())
    except HyperagentError as error:
        _write(s.db_url, held, state="failed", reason=str(error))
    except SystemExit:  # the worker is drained: another one begins anew
        _write(s.db_url, held, state="queued")
        queue.at_publisher(parts.app, queue.DRAFT, draft_id, project.publisher).apply_async()
        raise
    except Exception as error:
        _write(s.db_url, held, state="failed", reason=f"HyperAgent itself failed: {type(error).__name__}: {error}")
        raise
    finally:
        if root.exists():
            parts.runner.remove_tree(root)


def _take(url: str, draft_id: str, lease: float) -> tuple[Held | None, str, Project | None]:
    taken = (PlanDraft.id == draft_id, PlanDraft.state == "queued")
    with db.transaction(url) as session:
        until = db.now(session) + timedelta(seconds=lease)
        values = {"state": "running", "fence": PlanDraft.fence + 1, "lease_until": until}
        fence = session.scalar(update(PlanDraft).where(*taken).values(**values).returning(PlanDraft.fence))
        if fence is None:
            return None, "", None
        row = session.get_one(PlanDraft, draft_id)
        return Held(draft_id, fence), row.goal, session.get_one(Project, row.project_id)


def _holds(url: str, held: Held) -> bool:
    with db.transaction(url, reading=True) as session:
        return session.scalar(select(PlanDraft.id).where(*held.where())) is not None


def _write(url: str, held: Held, *, lease: float | None = None, **values: Any) -> bool:
    """Renew the lease (`lease`), or end the draft with `values`; False, and nothing written, where it is not ours."""
    with db.transaction(url) as session:
        moment = db.now(session)
        if lease is None:
            values["lease_until"], values["finished_at"] = None, None if values["state"] == "queued" else moment
        else:
            values["lease_until"] = moment + timedelta(seconds=lease)
        written = update(PlanDraft).where(*held.where()).values(**values).returning(PlanDraft.id)
        return session.scalar(written) is not None


def _written(parts: Parts, held: Held, project: Project, goal: str, root: Path, lease: Keeper) -> plans.Plan:
    chosen = choices.settle(parts.settings.choices(), project.settings)
    parts.runner.check()
    parts.storage.check()
    ws = _clone(parts, held, project, root)
    persona = prompts.persona("planner", chosen.prompts)
    faults = ""
    for number in range(1, ASKS + 1):
        again = f"Your last answer was no plan:\n{faults}\nAnswer again." if faults else ""
        told = [persona.text, f"## The goal\n\n{goal}", again, persona.answer(schema=json.dumps(SCHEMA))]
        try:
            text = _asked(parts, held, project, chosen, "\n\n".join(filter(None, told)), ws, root, number, lease)
            return plans.parse(only_object(text))
        except Malformed as error:
            faults = f"- {error}"
        except BadInput as error:
            faults = "\n".join(f"- {fault}" for fault in error.faults[:20])
    raise AgentFailed(
        f"The planner wrote no plan that can be used, asked {ASKS} times:\n{faults}", mend="Say the goal otherwise."
    )


def _clone(parts: Parts, held: Held, project: Project, root: Path) -> Path:
    ws, inp = root / "ws", root / "base"
    inp.mkdir(parents=True, mode=0o755)
    ws.mkdir()
    parts.runner.workspace(ws)
    head = parts.gitgate.refresh(project.name, str(place(parts, project.source)), project.default_branch)
    parts.gitgate.base_bundle(project.name, head, inp / "base.bundle")
    preparing.materialise(parts, _owner(parts, held, preparing.MATERIALISE_SECONDS), ws, inp)
    return ws


def _owner(parts: Parts, held: Held, seconds: float) -> Owner:
    until = datetime.now(UTC) + timedelta(seconds=seconds + 60)
    return Owner(instance(parts.settings), held.id, held.id, held.id, held.fence, until)


def _asked(
    parts: Parts, held: Held, project: Project, chosen: Choices, prompt: str, ws: Path, root: Path, number: int, lease: Keeper
) -> str:
    """The final text of the first planner, which the gateway may move to further models of its CLI.

    Raises `AgentFailed`, `BudgetSpent`, `LeaseLost`, `Malformed`.
    """
    choice, others = chosen.of("planner")[0], fallback.of_same_cli(chosen.of("planner"), 0)
    left = spending.left_to_draft(parts, project.id, chosen.budgets)
    agent, run_id, place = parts.agent(choice.provider), new_id(), Place(root / f"planner-{number}", "")
    place.make()
    parts.runner.workspace(place.logs)
    prefix = f"drafts/{held.id}/{run_id}"
    row = AgentRun(id=run_id, draft_id=held.id, role="planner", round=number, provider=agent.name, model=choice.model)
    row.log_key = f"{prefix}/{STREAM}"
    _open(parts.settings.db_url, held, row)
    try:
        outcome, observed = _converse(parts, held, agent, choice, others, left, prompt, ws, place, run_id, number, lease)
    except BaseException as error:
        reason, told = broken_off(error)
        with contextlib.suppress(LeaseLost, DependencyDown):
            _close(parts.settings.db_url, held, run_id, AgentOutcome(reason, told), figures(parts, run_id, place))
        raise
    finally:
        if not lease.lost():
            _keep(parts, prefix, place)
    if not answered(outcome, "planner"):
        raise AgentFailed(f"The planner {agent.name} gave no answer: {outcome.sentence}")
    return heard(outcome.final_text, spoken(agent, observed))


def _open(url: str, held: Held, row: AgentRun) -> None:
    with db.transaction(url) as session:
        if session.scalar(select(PlanDraft.id).where(*held.where())) is None:
            raise LeaseLost()
        row.started_at = db.now(session)
        session.add(row)


def _close(url: str, held: Held, run_id: str, outcome: AgentOutcome, observed: Observed, **more: Any) -> None:
    """Write a run's end, once, while the draft is ours; else that is the reaper's. Raises `LeaseLost`."""
    with db.transaction(url) as session:
        if session.scalar(select(PlanDraft.id).where(*held.where())) is None:
            raise LeaseLost()
        run = session.get_one(AgentRun, run_id)
        if run.finished_at is None:
            endings.write(run, outcome.reason, outcome.sentence, observed, db.now(session))
            endings.claim(run, outcome)
            for name, value in more.items():
                setattr(run, name, value)


def _converse(
    parts: Parts, held: Held, agent: Agent, choice: Choice, others: tuple[str, ...], left: Left, prompt: str, ws: Path,
    place: Place, run_id: str, number: int, lease: Keeper,
) -> tuple[AgentOutcome, Observed]:  # fmt: skip
    token, seconds = new_token(), min(parts.settings.step_timeout, left.seconds or parts.settings.step_timeout)
    provider, _, model = choice.model.partition("/")
    until = datetime.now(UTC) + timedelta(seconds=seconds + 60)
    sha, log = hashlib.sha256(token.encode()).hexdigest(), str(place.kept / "gateway.jsonl")
    asked = (run_id, held.id, sha, "plan", "planner", provider, model, parts.settings.agent_max_requests, until, log)
    limits: dict[str, Any] = {"max_tokens": left.tokens, "max_usd": left.usd, "shares": left.shares, "beside": left.open}
    parts.gateway.open(Grant(*asked, run=number, fallback=others, **limits))
    base = f"{parts.gateway.base_url(sandbox=parts.runner.name)}/t/{token}"
    task, parser = AgentTask("Draft a plan", prompt, choice.model, base, token, role="planner"), agent.parser("planner")
    try:
        spec = _run_spec(parts, held, agent, task, place, ws, seconds)
        with (place.kept / STREAM).open("wb") as out, (place.kept / "agent-stderr.txt").open("wb") as err:
            result = parts.runner.run(spec, sink=partial(_take_in, parser, out, err), cancelled=lease.lost)
    finally:
        known = parts.gateway.close(run_id)
    outcome, observed = judged(agent, parser.outcome(result), known, place, run_id)
    if lease.lost():
        raise LeaseLost()
    ran = {"exit_code": result.exit_code, "container_id": result.container_id, "image_id": result.image_id}
    _close(parts.settings.db_url, held, run_id, outcome, observed, cli_version=parts.agent_version(agent), **ran)
    return outcome, observed


def _take_in(parser: StreamParser, out: BinaryIO, err: BinaryIO, stream: str, data: bytes, /) -> None:
    (out if stream == "stdout" else err).write(data)
    if stream == "stdout":
        list(parser.feed(data))


def _keep(parts: Parts, prefix: str, place: Place) -> None:
    """Store what the planner and the gateway said, and the files it left as logs."""
    for name in (STREAM, "agent-stderr.txt", "gateway.jsonl"):
        path = place.kept / name
        if path.is_file() and path.stat().st_size:
            parts.storage.put(f"{prefix}/{name}", path.read_bytes())
    for name in intake.take(place.logs, place.kept / "logs").names:
        parts.storage.put(f"{prefix}/workflow-logs/{name}", (place.kept / "logs" / name).read_bytes())


def _run_spec(parts: Parts, held: Held, agent: Agent, task: AgentTask, place: Place, ws: Path, seconds: float) -> RunSpec:
    command = agent.command(task)
    place.give("prompt", command.files)
    return RunSpec(
        role="agent",
        argv=command.argv,
        env=command.env,
        owner=_owner(parts, held, seconds),
        mounts=[Mount(ws, "/workspace"), Mount(place.inp, "/in"), Mount(place.logs, "/logs", read_only=False)],
        timeout=seconds,
        gateway_socket=parts.gateway.data_socket,
    )
