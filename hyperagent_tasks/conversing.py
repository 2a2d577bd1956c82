"""One agent run: a role's conversation in an agent container, watched, metered at the gateway, kept whatever its end."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Literal

from hyperagent_common import db, events
from hyperagent_common.choices import Choice
from hyperagent_common.errors import (
    DependencyDown,
    LeaseLost,
)
from hyperagent_common.events import EventKind
from hyperagent_common.ids import new_id
from hyperagent_common.models import AgentRun, StepAttempt
from hyperagent_tasks import claims, endings, judging, recording
from hyperagent_tasks.agents.base import Agent, AgentOutcome, AgentRole, AgentTask, StreamParser
from hyperagent_tasks.budget import Left
from hyperagent_tasks.claims import Lease
from hyperagent_tasks.gateway.client import Grant, Observed, new_token
from hyperagent_tasks.live import LiveLog
from hyperagent_tasks.parts import Parts
from hyperagent_tasks.preparing import owner
from hyperagent_tasks.runners.base import Mount, RunnerResult, RunSpec
from hyperagent_tasks.spec import Place, StepSpec


@dataclass(frozen=True)
class Turn:
    """One agent run to be: who, in which workspace, told what, with how much of the budgets left; `fallback` names the
    models that the gateway may move it to."""

    role: AgentRole
    round: int
    number: int
    choice: Choice
    prompt: str
    persona: str
    ws: Path
    place: Place
    left: Left
    fallback: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ran:
    """An agent run that ended, well or not. `said`: what its model said last at the gateway, None where it has no model."""

    agent_run_id: str
    agent: str
    model: str
    persona: str
    cli_version: str | None
    outcome: AgentOutcome
    observed: Observed
    result: RunnerResult
    said: str | None


class Tee:
    """The runner's sink: raw output to files, parsed events to the live log."""

    def __init__(self, parser: StreamParser, live: LiveLog, stdout: BinaryIO, stderr: BinaryIO) -> None:
        self._parser, self._live, self._files = parser, live, {"stdout": stdout, "stderr": stderr}

    def __call__(self, stream: Literal["stdout", "stderr"], data: bytes, /) -> None:
        self._files[stream].write(data)
        if stream == "stdout":
            for event in self._parser.feed(data):
                self._live.write(event)


def run(parts: Parts, step: StepSpec, turn: Turn, lease: Lease) -> Ran:
    """Run one agent to its end; its log is kept in any case. Raises `LeaseLost`, `NotReady`, `DependencyDown`."""
    agent = parts.agent(turn.choice.provider)
    turn.place.make()
    parts.runner.workspace(turn.place.logs)
    run_id = _open(parts, step, turn, agent)
    try:
        ran = _converse(parts, step, turn, lease, agent, run_id)
    except BaseException as error:
        with contextlib.suppress(LeaseLost, DependencyDown):  # then its end is for the reaper to write
            _broke_off(parts, step, turn, run_id, error)
        raise
    finally:
        if not lease.lost():
            recording.keep_logs(recording.of_step(parts, step), turn.place, turn.ws if turn.role == "coder" else None)
    if lease.lost():
        raise LeaseLost()
    return ran


def _broke_off(parts: Parts, step: StepSpec, turn: Turn, run_id: str, error: BaseException) -> None:
    """The end of a run that has no outcome: this side stopped within it. Raises `LeaseLost`, `DependencyDown`."""
    reason, told = judging.broken_off(error)
    observed = judging.figures(parts, run_id, turn.place)
    with claims.fenced(parts.settings.db_url, step.claim) as (session, row):
        run = session.get_one(AgentRun, run_id)
        if run.finished_at is None:
            endings.write(run, reason, told, observed, db.now(session))
            endings.tell(session, run, session.get_one(StepAttempt, step.claim.attempt_id), row, observed)


def _open(parts: Parts, step: StepSpec, turn: Turn, agent: Agent) -> str:
    run_id = new_id()
    with claims.fenced(parts.settings.db_url, step.claim) as (session, row):
        attempt = session.get_one(StepAttempt, step.claim.attempt_id)
        moment = db.now(session)
        session.add(
            AgentRun(
                id=run_id,
                attempt_id=attempt.id,
                role=turn.role,
                round=turn.round,
                provider=agent.name,
                model=turn.choice.model,
                log_key=f"{step.attempt_key}/{turn.place.prefix}agent-stream.jsonl",
                started_at=moment,
            )
        )
        said: dict[str, Any] = {"agent": agent.name, "model": turn.choice.model, "role": turn.role, "round": turn.round}
        events.record(session, EventKind.AGENT_STARTED, step=row, attempt=attempt, at=moment, sandbox=parts.runner.name, **said)
    return run_id


def _converse(parts: Parts, step: StepSpec, turn: Turn, lease: Lease, agent: Agent, run_id: str) -> Ran:
    token = new_token()
    grant = _grant(parts, step, turn, run_id, token)
    base_url = parts.gateway.base_url(sandbox=parts.runner.name)
    task = AgentTask(
        title=step.title,
        prompt=turn.prompt,
        model=turn.choice.model,
        base_url=f"{base_url}/t/{token}",
        token=token,
        role=turn.role,
    )
    parser, kept = agent.parser(turn.role), turn.place.kept
    live = LiveLog(parts.settings.broker, step.claim.attempt_id)
    parts.gateway.open(grant)
    try:
        with (kept / "agent-stream.jsonl").open("wb") as out, (kept / "agent-stderr.txt").open("wb") as err:
            spec = _run_spec(parts, step, turn, agent, task)
            result = parts.runner.run(spec, sink=Tee(parser, live, out, err), cancelled=lease.lost)
    finally:
        known = parts.gateway.close(run_id)
        live.close()
    outcome, observed = judging.judged(agent, parser.outcome(result), known, turn.place, run_id)
    version = parts.agent_version(agent)
    _close(parts, step, turn, run_id, outcome, observed, result, version)
    if outcome is judging.FORGOTTEN and not lease.lost():
        raise DependencyDown(judging.FORGOTTEN.sentence)
    model = endings.answered_by(turn.choice.model, observed)
    return Ran(run_id, agent.name, model, turn.persona, version, outcome, observed, result, judging.spoken(agent, observed))


def _grant(parts: Parts, step: StepSpec, turn: Turn, run_id: str, token: str) -> Grant:
    provider, _, model = turn.choice.model.partition("/")
    return Grant(
        agent_run_id=run_id,
        attempt_id=step.claim.attempt_id,
        token_sha256=hashlib.sha256(token.encode()).hexdigest(),
        step_key=step.claim.key,
        role=turn.role,
        provider=provider,
        model=model,
        max_requests=parts.settings.agent_max_requests,
        expires_at=datetime.now(UTC) + timedelta(seconds=parts.settings.step_timeout + 60),
        log_path=str(turn.place.kept / "gateway.jsonl"),
        run=turn.number,
        max_tokens=turn.left.tokens,
        max_usd=turn.left.usd,
        shares=turn.left.shares,
        beside=turn.left.open,
        fallback=turn.fallback,
    )


def _run_spec(parts: Parts, step: StepSpec, turn: Turn, agent: Agent, task: AgentTask) -> RunSpec:
    command = agent.command(task)
    turn.place.give("prompt", command.files)
    timeout = min(parts.settings.step_timeout, turn.left.seconds or parts.settings.step_timeout)
    return RunSpec(
        role="agent",
        argv=command.argv,
        env=command.env,
        owner=owner(parts, step, timeout),
        mounts=[
            Mount(turn.ws, "/workspace", read_only=turn.role != "coder"),
            Mount(turn.place.inp, "/in"),
            Mount(turn.place.logs, "/logs", read_only=False),
        ],
        timeout=timeout,
        gateway_socket=parts.gateway.data_socket,
    )


def _close(
    parts: Parts,
    step: StepSpec,
    turn: Turn,
    run_id: str,
    outcome: AgentOutcome,
    observed: Observed,
    result: RunnerResult,
    version: str | None,
) -> None:
    with claims.fenced(parts.settings.db_url, step.claim) as (session, row):
        run = session.get_one(AgentRun, run_id)
        endings.write(run, outcome.reason, outcome.sentence, observed, result.finished_at)
        endings.claim(run, outcome)
        run.cli_version = version
        run.exit_code, run.container_id, run.image_id = result.exit_code, result.container_id, result.image_id
        endings.tell(session, run, session.get_one(StepAttempt, step.claim.attempt_id), row, observed)
