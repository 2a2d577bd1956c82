"""The planner: a goal and a read-only clone in, a plan without faults out; asked once more with the faults where wrong."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import update

from hyperagent_common import choices, db
from hyperagent_common import plan as plans
from hyperagent_common.choices import Choice
from hyperagent_common.errors import AgentFailed, BadInput, HyperagentError
from hyperagent_common.ids import new_id
from hyperagent_common.models import AgentRun, PlanDraft, Project
from hyperagent_tasks import fallback, preparing, prompts
from hyperagent_tasks.agents.base import Agent, AgentTask, StreamParser
from hyperagent_tasks.conversing import answered_by, seen_by_gateway
from hyperagent_tasks.gateway.client import Grant, new_token
from hyperagent_tasks.parts import Parts, instance
from hyperagent_tasks.runners.base import Mount, Owner, RunSpec
from hyperagent_tasks.spec import Place
from hyperagent_tasks.verdict import Malformed, heard, only_object

ASKS = 2
STREAM = "agent-stream.jsonl"
SCHEMA = {
    "type": "object",
    "required": ["kind", "title", "tasks"],
    "properties": {"kind": {"const": plans.KIND}, "title": {"type": "string"}, "tasks": {"type": "array", "minItems": 1}},
}


def draft(parts: Parts, draft_id: str) -> None:
    """Write a draft's plan, or why there is none. A second delivery finds it taken and does nothing."""
    url = parts.settings.db_url
    taken = (PlanDraft.id == draft_id, PlanDraft.state == "queued")
    with db.transaction(url) as session:
        if session.scalar(update(PlanDraft).where(*taken).values(state="running").returning(PlanDraft.id)) is None:
            return
        row = session.get_one(PlanDraft, draft_id)
        goal, project = row.goal, session.get_one(Project, row.project_id)
    root = parts.settings.home / "work" / draft_id
    try:
        plan = _written(parts, draft_id, project, goal, root)
        _end(url, draft_id, state="done", document=plan.document())
    except HyperagentError as error:
        _end(url, draft_id, state="failed", reason=str(error))
    except Exception as error:
        _end(url, draft_id, state="failed", reason=f"HyperAgent itself failed: {type(error).__name__}: {error}")
        raise
    finally:
        if root.exists():
            parts.runner.remove_tree(root)


def _end(url: str, draft_id: str, **values: Any) -> None:
    with db.transaction(url) as session:
        row = session.get_one(PlanDraft, draft_id)
        row.finished_at = db.now(session)
        for name, value in values.items():
            setattr(row, name, value)


def _written(parts: Parts, draft_id: str, project: Project, goal: str, root: Path) -> plans.Plan:
    chosen = choices.settle(parts.settings.choices(), project.settings)
    parts.runner.check()
    ws = _clone(parts, draft_id, project, root)
    persona = prompts.persona("planner", chosen.prompts)
    faults = ""
    for number in range(1, ASKS + 1):
        again = f"Your last answer was no plan:\n{faults}\nAnswer again." if faults else ""
        told = [persona.text, f"## The goal\n\n{goal}", again, persona.answer(schema=json.dumps(SCHEMA))]
        text = _asked(parts, draft_id, chosen.of("planner"), "\n\n".join(filter(None, told)), ws, root, number)
        try:
            return plans.parse(only_object(text))
        except Malformed as error:
            faults = f"- {error}"
        except BadInput as error:
            faults = "\n".join(f"- {fault}" for fault in error.faults[:20])
    raise AgentFailed(
        f"The planner wrote no plan that can be used, asked {ASKS} times:\n{faults}", mend="Say the goal otherwise."
    )


def _clone(parts: Parts, draft_id: str, project: Project, root: Path) -> Path:
    ws, inp = root / "ws", root / "base"
    inp.mkdir(parents=True, mode=0o755)
    ws.mkdir()
    parts.runner.workspace(ws)
    head = parts.gitgate.refresh(project.name, project.source, project.default_branch)
    parts.gitgate.base_bundle(project.name, head, inp / "base.bundle")
    preparing.materialise(parts, _owner(parts, draft_id, preparing.MATERIALISE_SECONDS), ws, inp)
    return ws


def _owner(parts: Parts, draft_id: str, seconds: float) -> Owner:
    until = datetime.now(UTC) + timedelta(seconds=seconds + 60)
    return Owner(instance(parts.settings), draft_id, draft_id, draft_id, 1, until)


def _asked(parts: Parts, draft_id: str, among: list[Choice], prompt: str, ws: Path, root: Path, number: int) -> str:
    """The final text of the first planner, which the gateway may move to further models of its CLI. Raises `AgentFailed`."""
    choice, others = among[0], fallback.of_same_cli(among, 0)
    agent, token, run_id = parts.agent(choice.provider), new_token(), new_id()
    place = Place(root / f"planner-{number}", "")
    place.make()
    parts.runner.workspace(place.logs)
    provider, _, model = choice.model.partition("/")
    seconds = parts.settings.step_timeout
    until = datetime.now(UTC) + timedelta(seconds=seconds + 60)
    sha, log = hashlib.sha256(token.encode()).hexdigest(), str(place.kept / "gateway.jsonl")
    limit = parts.settings.agent_max_requests
    said = (run_id, draft_id, sha, "plan", "planner", provider, model, limit, until, log)
    parts.gateway.open(Grant(*said, run=number, fallback=others))
    base = f"{parts.gateway.base_url(sandbox=parts.runner.name)}/t/{token}"
    task = AgentTask("Draft a plan", prompt, choice.model, base, token, role="planner")
    parser, began = agent.parser("planner"), datetime.now(UTC)
    try:
        spec = _run_spec(parts, draft_id, agent, task, place, ws)
        with (place.kept / STREAM).open("wb") as kept:
            result = parts.runner.run(spec, sink=partial(_take_in, parser, kept))
    finally:
        observed = parts.gateway.close(run_id)
    outcome = seen_by_gateway(parser.outcome(result), observed)
    row = AgentRun(
        id=run_id, draft_id=draft_id, role="planner", round=number, provider=agent.name,
        model=answered_by(choice.model, observed),
        cli_version=parts.agent_version(agent), session_id=outcome.session_id, end_reason=outcome.reason,
        sentence=outcome.sentence, exit_code=result.exit_code, container_id=result.container_id, image_id=result.image_id,
        input_tokens=observed.input, output_tokens=observed.output, cached_tokens=observed.cached,
        requests=observed.requests, cost_usd=observed.cost, started_at=began, finished_at=result.finished_at,
        log_key=_keep(parts, draft_id, run_id, place),
        claimed={"usage": asdict(outcome.usage), "tool_calls": outcome.tool_calls, "events": outcome.events},
    )  # fmt: skip
    with db.transaction(parts.settings.db_url) as session:
        session.add(row)
    if not outcome.ok:
        raise AgentFailed(f"The planner {agent.name} gave no answer: {outcome.sentence}")
    try:
        return heard(outcome.final_text, observed.text)
    except Malformed as error:
        raise AgentFailed(f"The planner {agent.name} cannot be believed: {error}.") from error


def _take_in(parser: StreamParser, kept: BinaryIO, stream: str, data: bytes, /) -> None:
    if stream == "stdout":
        kept.write(data)
        list(parser.feed(data))


def _keep(parts: Parts, draft_id: str, run_id: str, place: Place) -> str:
    """Store the planner's event stream; where it is."""
    key = f"drafts/{draft_id}/{run_id}/{STREAM}"
    parts.storage.put(key, (place.kept / STREAM).read_bytes())
    return key


def _run_spec(parts: Parts, draft_id: str, agent: Agent, task: AgentTask, place: Place, ws: Path) -> RunSpec:
    command = agent.command(task)
    files = place.inp / "prompt"
    files.mkdir(mode=0o755)
    for name, data in command.files.items():
        (files / name).write_bytes(data)
        (files / name).chmod(0o644)
    return RunSpec(
        role="agent",
        argv=command.argv,
        env=command.env,
        owner=_owner(parts, draft_id, parts.settings.step_timeout),
        mounts=[Mount(ws, "/workspace"), Mount(place.inp, "/in"), Mount(place.logs, "/logs", read_only=False)],
        timeout=parts.settings.step_timeout,
        gateway_socket=parts.gateway.data_socket,
    )
