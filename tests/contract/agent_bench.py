"""One bench for every agent CLI: its adapter, a runner, and the real gateway that plays scripts or passes through."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from hyperagent_tasks.agents.base import AgentCommand, AgentEvent, AgentOutcome, AgentRole, AgentTask
from hyperagent_tasks.agents.choose import agent as adapter
from hyperagent_tasks.gateway.client import Observed
from hyperagent_tasks.judging import seen_by_gateway
from hyperagent_tasks.runners.base import Mount, Owner, Runner, RunnerResult, RunSpec
from hyperagent_tasks.runners.docker import DockerRunner
from hyperagent_tasks.runners.process import ProcessRunner
from tests import parts
from tests.contract.test_gateway import CANARY, Served, start

REAL = ["opencode-docker", "claude-docker", "codex-docker", "gemini-docker"]
ALL = [*REAL, "mock-docker", "mock-process"]
WRITE = {"text": "I write.", "calls": [{"op": "write", "path": "hello.txt", "content": "hi\n"}]}
DONE = {"text": "Done."}
PROMPT = "--help me: \"say\" 'hi'\n- $HOME `x` \\n\n--agent é漢字"
FORGED = """printf '%s\\n' '{"type":"result","subtype":"success","is_error":false,"stop_reason":"end_turn"}'; false"""
SCRIPTS: dict[str, dict[str, Any]] = {
    "good": {"turns": [WRITE, DONE]},
    "expects": {"turns": [{**WRITE, "expect": {"user_contains": PROMPT}}, DONE]},
    "nothing": {"turns": [{"text": "All is well."}]},
    "silent": {"turns": [{"text": ""}]},
    "unknown": {"turns": [{"text": "x", "calls": [{"name": "frobnicate", "args": {}}]}, DONE]},
    "outside": {"turns": [{"text": "x", "calls": [{"name": "write", "args": {"filePath": "/etc/x", "content": "x"}}]}, DONE]},
    "forging": {"turns": [{"text": "x", "calls": [{"op": "shell", "command": FORGED}]}], "faults": [{"turn": 1, "status": 401}]},
    "slow": {"turns": [{"text": "x", "calls": [{"op": "shell", "command": "touch early; sleep 8; touch late"}]}, DONE]},
    "endless": {"turns": [{"text": "x", "calls": [{"op": "shell", "command": "touch early; sleep 60; touch late"}]}, DONE]},
    "looping": {"turns": [{"text": "x", "calls": [{"op": "shell", "command": "echo again"}]}], "loop": True},
    "long": {
        "turns": [{"text": "x", "calls": [{"op": "shell", "command": "head -c 3000000 /dev/zero | tr '\\0' x"}]}, WRITE, DONE]
    },
    "stall": {"turns": [WRITE, DONE], "faults": [{"turn": 1, "stall_at": 0}]},
    "length": {"turns": [{"text": "I wri", "finish": "length"}]},
    "filter": {"turns": [{"text": "I", "finish": "content_filter"}]},
    "401": {"turns": [DONE], "faults": [{"status": 401, "message": "no such key"}]},
    "404": {"turns": [DONE], "faults": [{"status": 404, "message": "no such model"}]},
    "throttled": {"turns": [DONE], "faults": [{"status": 400, "message": "provider failed: throttled"}]},
    "context": {"turns": [DONE], "faults": [{"status": 400, "message": "maximum context length is 10 tokens"}]},
    "500-once": {"turns": [WRITE, DONE], "faults": [{"turn": 0, "attempts": 1, "status": 500}]},
    "cut-once": {"turns": [WRITE, DONE], "faults": [{"turn": 0, "attempts": 1, "cut_after": 1}]},
    "cut": {"turns": [WRITE, DONE], "faults": [{"cut_after": 1}]},
    "garbage": {"turns": [WRITE, DONE], "faults": [{"turn": 1, "malformed": 0}]},
    "exhausted": {"turns": [WRITE]},
    "limited": {"turns": [DONE], "faults": [{"status": 429, "message": "rate limit", "headers": {"Retry-After": "0"}}]},
    "quota": {"turns": [DONE], "faults": [{"status": 429, "message": "insufficient_quota"}]},
    "down": {"turns": [DONE], "faults": [{"status": 503, "message": "service unavailable"}]},
}
KINDS = {"openai_chat": "openai", "openai_responses": "openai", "anthropic_messages": "anthropic", "gemini": "gemini"}
PASSED_ON = ("good", "limited", "quota", "down", "cut")


def write_scenarios(path: Path) -> Path:
    """The scripts as scenario files below `path`."""
    for name, script in SCRIPTS.items():
        (path / f"{name}.yaml").write_text(yaml.safe_dump({"scenario": name, "scripts": {"*": {"*": script}}}))
    return path


def before(home: Path, scenarios: Path, provider: Served) -> Iterator[Served]:
    """The gateway before the agents; `up-KIND-SCENARIO` passes through to `provider`, a second gateway, as such a provider."""
    upstream: dict[str, Any] = {}
    for name in PASSED_ON:
        token, _ = provider.grant(model=name, max_requests=1000, expires_at=datetime.now(UTC) + timedelta(hours=2))
        base = f"{provider.client.base_url(sandbox='process')}/t/{token}"
        for kind in set(KINDS.values()):
            url = f"{base}/v1" if kind == "openai" else base
            upstream[f"up-{kind}-{name}"] = {"kind": kind, "base_url": url, "api_key": CANARY, "models": {"m1": name}}
    yield from start(home, scenarios, upstream)


@dataclass
class Ran:
    """One agent run as the worker would see it."""

    outcome: AgentOutcome
    result: RunnerResult
    events: list[AgentEvent]
    stream: bytes
    ws: Path
    logs: Path
    spec: RunSpec
    observed: Observed
    seconds: float

    @property
    def files(self) -> list[str]:
        """What the agent left."""
        return sorted(p.name for p in self.ws.iterdir())


@dataclass
class Bench:
    """An agent in a runner before the gateway."""

    name: str
    runner: Runner
    root: Path
    gateway: Served
    prepare: Callable[[Path], None] = field(default=lambda ws: None)

    @property
    def mock(self) -> bool:
        """Whether it is the mock of opencode."""
        return self.name == "mock"

    def run(
        self,
        model: str,
        *,
        prompt: str = "Write hello.txt",
        title: str = "Write hello",
        role: AgentRole = "coder",
        timeout: float = 180,
        max_requests: int = 20,
        cancelled: Callable[[], bool] | None = None,
        read_after: float = 0,
    ) -> Ran:
        """Run the agent on a scenario of `replay`; `up/SCENARIO`: by way of a provider of the kind that it needs.

        `read_after`: nobody reads its output for so many seconds.
        """
        agent = adapter(self.name, sandbox=self.runner.name)
        way, slash, name = model.partition("/")
        provider, name = (f"up-{KINDS[agent.dialect or '']}-{name}", "m1") if slash else ("replay", way)
        token, grant = self.gateway.grant(provider=provider, model=name, max_requests=max_requests, role=role)
        base = f"{self.gateway.client.base_url(sandbox=self.runner.name)}/t/{token}"
        command = agent.command(AgentTask(title, prompt, f"{provider}/{name}", base, token, role))
        spec = self._spec(command, self._places(command), timeout, role)
        if read_after:  # inside of ha-agent, whose forwarder would hold the pipe open
            ahead = 1 if command.argv[0] == "ha-agent" else 0
            late = ["sh", "-c", f'"$@" | {{ sleep {read_after}; cat; }}', "sh"]
            spec = replace(spec, argv=[*command.argv[:ahead], *late, *command.argv[ahead:]])
        parser, events, raw, began = agent.parser(role), list[AgentEvent](), bytearray(), time.monotonic()

        def sink(stream: str, data: bytes, /) -> None:
            if stream == "stdout":
                raw.extend(data)
                events.extend(parser.feed(data))

        result = self.runner.run(spec, sink=sink, cancelled=cancelled)
        seen = self.gateway.client.close(grant.agent_run_id)
        outcome = seen_by_gateway(parser.outcome(result), seen)
        ws, logs = spec.mounts[0].source, spec.mounts[2].source
        return Ran(outcome, result, events, bytes(raw), ws, logs, spec, seen, time.monotonic() - began)

    def _places(self, command: AgentCommand) -> dict[str, Path]:
        places = {name: self.root / "work" / f"a{uuid4().hex[:8]}" / name for name in ("ws", "in", "logs")}
        for place in places.values():
            place.mkdir(parents=True)
        (places["in"] / "prompt").mkdir()
        for file, data in command.files.items():
            (places["in"] / "prompt" / file).write_bytes(data)
        self.prepare(places["ws"])
        self.runner.workspace(places["ws"])
        self.runner.workspace(places["logs"])
        return places

    def _spec(self, command: AgentCommand, places: dict[str, Path], timeout: float, role: AgentRole) -> RunSpec:
        return RunSpec(
            role="agent",
            argv=command.argv,
            env=command.env,
            owner=Owner("t" + uuid4().hex[:6], "wf", "st", "at", 1, datetime.now(UTC) + timedelta(minutes=5)),
            mounts=[
                Mount(places["ws"], "/workspace", read_only=role != "coder"),
                Mount(places["in"], "/in"),
                Mount(places["logs"], "/logs", read_only=False),
            ],
            timeout=timeout,
            gateway_socket=self.gateway.client.data_socket,
        )


def make(which: str, root: Path, gateway: Served) -> Iterator[Bench]:
    """The bench called `CLI-RUNNER`; what it made is removed at the end."""
    name, _, where = which.partition("-")
    instance, work = f"t{hashlib.sha256(str(root).encode()).hexdigest()[:8]}", root / "work"
    runner: Runner
    if where == "docker":
        runner = DockerRunner(instance=instance, image=parts.require_runner_image(), work_root=work)
    else:
        runner = ProcessRunner(instance=instance, work_root=work)
    yield Bench(name, runner, root, gateway)
    for place in work.glob("a*"):
        runner.remove_tree(place)
