"""What every agent CLI must do behind its adapter: real opencode and the bundled mock, through the real gateway."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from hyperagent_tasks.agents.base import AgentEvent, AgentOutcome, AgentTask, EndReason
from hyperagent_tasks.agents.choose import agent as adapter
from hyperagent_tasks.runners.base import Mount, Owner, Runner, RunnerResult, RunSpec
from hyperagent_tasks.runners.docker import DockerRunner
from hyperagent_tasks.runners.process import ProcessRunner
from tests import parts
from tests.contract.test_gateway import CANARY, Served, start

WRITE = {"text": "I write.", "calls": [{"op": "write", "path": "hello.txt", "content": "hi\n"}]}
DONE = {"text": "Done."}
PROMPT = "--help me: \"say\" 'hi'\n- $HOME `x` \\n\n--agent é漢字"
SCRIPTS: dict[str, dict[str, Any]] = {
    "good": {"turns": [WRITE, DONE]},
    "expects": {"turns": [{**WRITE, "expect": {"user_contains": PROMPT}}, DONE]},
    "nothing": {"turns": [{"text": "All is well."}]},
    "unknown": {"turns": [{"text": "x", "calls": [{"name": "frobnicate", "args": {}}]}, DONE]},
    "outside": {"turns": [{"text": "x", "calls": [{"name": "write", "args": {"filePath": "/etc/x", "content": "x"}}]}, DONE]},
    "slow": {"turns": [{"text": "x", "calls": [{"op": "shell", "command": "sleep 60; touch late"}]}, DONE]},
    "looping": {"turns": [{"text": "x", "calls": [{"op": "shell", "command": "echo again"}]}], "loop": True},
    "length": {"turns": [{"text": "I wri", "finish": "length"}]},
    "filter": {"turns": [{"text": "I", "finish": "content_filter"}]},
    "401": {"turns": [DONE], "faults": [{"status": 401, "message": "no such key"}]},
    "404": {"turns": [DONE], "faults": [{"status": 404, "message": "no such model"}]},
    "throttled": {"turns": [DONE], "faults": [{"status": 400, "message": "provider failed: throttled"}]},
    "context": {"turns": [DONE], "faults": [{"status": 400, "message": "maximum context length is 10 tokens"}]},
    "500-once": {"turns": [WRITE, DONE], "faults": [{"turn": 0, "attempts": 1, "status": 500}]},
    "cut-once": {"turns": [WRITE, DONE], "faults": [{"turn": 0, "attempts": 1, "cut_after": 2}]},
    "cut": {"turns": [WRITE, DONE], "faults": [{"cut_after": 2}]},
    "garbage": {"turns": [WRITE, DONE], "faults": [{"turn": 1, "malformed": 0}]},
    "exhausted": {"turns": [WRITE]},
    "limited": {"turns": [DONE], "faults": [{"status": 429, "message": "rate limit", "headers": {"Retry-After": "0"}}]},
    "quota": {"turns": [DONE], "faults": [{"status": 429, "message": "insufficient_quota"}]},
    "down": {"turns": [DONE], "faults": [{"status": 503, "message": "service unavailable"}]},
}


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts as scenario files."""
    path = tmp_path_factory.mktemp("scenarios")
    for name, script in SCRIPTS.items():
        (path / f"{name}.yaml").write_text(yaml.safe_dump({"scenario": name, "scripts": {"*": {"*": script}}}))
    return path


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory, scenarios: Path) -> Iterator[Served]:
    """A second gateway that plays the model provider."""
    yield from start(tmp_path_factory.mktemp("p"), scenarios, {})


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, scenarios: Path, provider: Served) -> Iterator[Served]:
    """The gateway before the agents; `up-<scenario>` passes through to the provider."""
    upstream: dict[str, Any] = {}
    for name in ("limited", "quota", "down", "cut"):
        token, _ = provider.grant(model=name, max_requests=1000)
        base = f"{provider.client.base_url(sandbox='process')}/t/{token}/v1"
        upstream[f"up-{name}"] = {"kind": "openai", "base_url": base, "api_key": CANARY, "models": {"m1": name}}
    yield from start(tmp_path_factory.mktemp("g"), scenarios, upstream)


@dataclass
class Ran:
    """One agent run as the worker would see it."""

    outcome: AgentOutcome
    result: RunnerResult
    events: list[AgentEvent]
    ws: Path
    logs: Path
    spec: RunSpec
    requests: int
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

    def run(
        self,
        model: str,
        *,
        prompt: str = "Write hello.txt",
        title: str = "Write hello",
        timeout: float = 60,
        max_requests: int = 20,
        cancelled: Callable[[], bool] | None = None,
        **env: str,
    ) -> Ran:
        """Run the agent on a scenario of `replay`, or on `up-<scenario>/m1`."""
        provider, slash, name = model.partition("/")
        provider, name = (provider, name) if slash else ("replay", model)
        token, grant = self.gateway.grant(provider=provider, model=name, max_requests=max_requests)
        base = f"{self.gateway.client.base_url(sandbox=self.runner.name)}/t/{token}"
        agent = adapter(self.name, sandbox=self.runner.name)
        command = agent.command(AgentTask(title, prompt, f"{provider}/{name}", base, token))
        places = {name: self.root / "work" / f"a{uuid4().hex[:8]}" / name for name in ("ws", "in", "logs")}
        for place in places.values():
            place.mkdir(parents=True)
        (places["in"] / "prompt").mkdir()
        for file, data in command.files.items():
            (places["in"] / "prompt" / file).write_bytes(data)
        self.runner.workspace(places["ws"])
        self.runner.workspace(places["logs"])
        spec = RunSpec(
            role="agent",
            argv=command.argv,
            env={**command.env, **env},
            owner=Owner("t" + uuid4().hex[:6], "wf", "st", "at", 1, datetime.now(UTC) + timedelta(minutes=5)),
            mounts=[
                Mount(places["ws"], "/workspace", read_only=False),
                Mount(places["in"], "/in"),
                Mount(places["logs"], "/logs", read_only=False),
            ],
            timeout=timeout,
            gateway_socket=self.gateway.client.data_socket,
        )
        parser, events, began = agent.parser(), [], time.monotonic()
        result = self.runner.run(
            spec, sink=lambda stream, data: events.extend(parser.feed(data) if stream == "stdout" else ()),
            cancelled=cancelled,
        )  # fmt: skip
        seen = self.gateway.client.close(grant.agent_run_id)
        seconds = time.monotonic() - began
        return Ran(parser.outcome(result), result, events, places["ws"], places["logs"], spec, seen.requests, seconds)


@pytest.fixture(params=["opencode-docker", "mock-docker", "mock-process"])
def bench(request: pytest.FixtureRequest, tmp_path: Path, gateway: Served) -> Iterator[Bench]:
    """Each agent in each runner it is meant for."""
    name, _, where = request.param.partition("-")
    instance = f"t{uuid4().hex[:8]}"
    work = tmp_path / "work"
    runner: Runner
    if where == "docker":
        runner = DockerRunner(instance=instance, image=parts.require_runner_image(), work_root=work)
    else:
        runner = ProcessRunner(instance=instance, work_root=work)
    yield Bench(name, runner, tmp_path, gateway)
    for place in work.glob("a*"):
        runner.remove_tree(place)


def test_a_run_that_goes_well_changes_files_and_tells_its_tokens(bench: Bench) -> None:
    ran = bench.run("good")
    assert ran.outcome.ok, (ran.outcome, ran.result.stderr_tail)
    assert (ran.ws / "hello.txt").read_text() == "hi\n"
    assert (ran.outcome.usage.input, ran.outcome.usage.output, ran.requests) == (200, 40, 2)
    assert (ran.outcome.final_text, ran.outcome.tool_calls, ran.outcome.malformed) == ("Done.", 1, 0)
    assert [event.kind for event in ran.events] == ["session", "text", "tool", "usage", "text", "usage"]
    assert ran.outcome.session_id
    assert ran.events[0].data["mock"] is (bench.name == "mock")


def test_its_structured_log_is_in_the_log_directory(bench: Bench) -> None:
    logs = list(bench.run("good").logs.iterdir())
    assert [log.name for log in logs] == ["opencode-mock.jsonl" if bench.name == "mock" else "opencode.log"]
    lines = logs[0].read_text().splitlines()
    if bench.name == "mock":
        assert all(json.loads(line)["mock"] for line in lines)
    else:
        assert all(line.startswith("timestamp=") for line in lines)


def test_a_prompt_arrives_byte_for_byte(bench: Bench) -> None:
    ran = bench.run("expects", prompt=PROMPT, title=PROMPT)
    assert ran.outcome.ok, ran.outcome


def test_a_prompt_of_a_mebibyte_arrives(bench: Bench) -> None:
    ran = bench.run("expects", prompt="x" * (1 << 20) + PROMPT)
    assert ran.outcome.ok, ran.outcome


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("nothing", EndReason.NO_CHANGE),
        ("unknown", EndReason.NO_CHANGE),
        ("outside", EndReason.REFUSED),
        ("length", EndReason.CONTEXT),
        ("filter", EndReason.REFUSED),
        ("401", EndReason.AUTH),
        ("404", EndReason.MODEL_NOT_FOUND),
        ("throttled", EndReason.RATE_LIMIT),
        ("context", EndReason.CONTEXT),
        ("garbage", EndReason.PROVIDER),
        ("exhausted", EndReason.REFUSED),
    ],
)
def test_a_run_that_goes_wrong_ends_for_its_reason(bench: Bench, model: str, reason: EndReason) -> None:
    ran = bench.run(model)
    assert ran.result.ended == "exited"
    assert ran.outcome.reason is reason, (ran.outcome, ran.result.stderr_tail)
    assert ran.outcome.sentence.endswith(".")


@pytest.mark.parametrize("model", ["500-once", "cut-once"])
def test_a_fault_that_passes_is_no_failure(bench: Bench, model: str) -> None:
    assert bench.run(model).outcome.ok


@pytest.mark.parametrize("model", ["looping", "cut"])
def test_the_gateways_budget_ends_a_run_that_would_never_end(bench: Bench, model: str) -> None:
    ran = bench.run(model, max_requests=2)
    expected = {EndReason.BUDGET, EndReason.PROVIDER} if bench.name == "mock" and model == "cut" else {EndReason.BUDGET}
    assert ran.outcome.reason in expected, ran.outcome
    assert ran.requests == 2


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("up-limited/m1", EndReason.RATE_LIMIT),
        ("up-quota/m1", EndReason.QUOTA),
        ("up-down/m1", EndReason.PROVIDER),
        ("up-cut/m1", EndReason.PROVIDER),
    ],
)
def test_a_final_answer_of_the_gateway_is_not_asked_for_again(bench: Bench, model: str, reason: EndReason) -> None:
    ran = bench.run(model, timeout=40)
    assert (ran.outcome.reason, ran.requests) == (reason, 1), (ran.outcome, ran.seconds)


def test_a_run_past_its_deadline_is_ended_with_its_tools(bench: Bench) -> None:
    ran = bench.run("slow", timeout=15 if bench.name == "opencode" else 3)
    assert ran.outcome.reason is EndReason.TIMED_OUT
    assert ran.files == []


def test_a_cancelled_run_is_cancelled(bench: Bench) -> None:
    asked = threading.Event()
    threading.Timer(2, asked.set).start()
    assert bench.run("slow", cancelled=asked.is_set).outcome.reason is EndReason.CANCELLED


def test_no_key_but_the_phantom_token_is_in_the_sandbox(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    ran = bench.run("up-down/m1", timeout=30)
    seen = json.dumps([list(ran.spec.argv), dict(ran.spec.env), dict(ran.result.inspect)], default=str)
    assert CANARY not in seen + ran.result.stdout_tail + ran.result.stderr_tail
    assert "hap-" not in ran.outcome.sentence
