"""The gateway from outside: real processes on sockets and loopback, the second being the provider of the first."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from hyperagent_common.errors import DependencyDown, NotReady
from hyperagent_tasks.gateway.client import GatewayClient, new_token
from hyperagent_tasks.gateway.grants import Grant

CANARY = "canary-provider-key-0f3a"
WRITE = [{"type": "function", "function": {"name": "write"}}]
FAULTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "unauthorised": {"status": 401, "message": "bad api key"},
    "limited-twice": {"status": 429, "attempts": 2, "message": "rate limit", "headers": {"Retry-After": "0"}},
    "limited": {"status": 429, "message": "rate limit", "headers": {"Retry-After": "0"}},
    "quota": {"status": 429, "message": "insufficient_quota"},
    "down": {"status": 500, "message": "boom"},
    "dropped": {"drop": True},
    "cut": {"cut_after": 1},
    "garbage": {"malformed": 0},
    "long": {"status": 400, "message": "maximum context length exceeded"},
}


@dataclass
class Served:
    """A gateway process and the way to it."""

    client: GatewayClient
    home: Path

    def grant(self, **changes: Any) -> tuple[str, Grant]:
        """A token and its grant, in force."""
        token = new_token()
        made = Grant(
            agent_run_id=f"run-{token[-8:]}",
            attempt_id="attempt",
            token_sha256=hashlib.sha256(token.encode()).hexdigest(),
            step_key="mend-add",
            role="coder",
            provider="replay",
            model="demo",
            max_requests=20,
            expires_at=datetime.now(UTC) + timedelta(minutes=5),
            log_path=str(self.home / f"calls-{token[-8:]}.jsonl"),
        )
        made = replace(made, **changes)
        self.client.open(made)
        return token, made

    def ask(self, token: str, model: str = "demo", *, path: str = "chat/completions", **body: Any) -> tuple[int, str]:
        """One request as an agent makes it: status and text."""
        sent = {"model": model, "stream": True, "messages": [{"role": "user", "content": "x"}], "tools": WRITE, **body}
        request = urllib.request.Request(
            f"{self.client.base_url(sandbox='process')}/t/{token}/v1/{path}",
            data=json.dumps(sent).encode(),
            headers={"Content-Type": "application/json", "Authorization": "Bearer stolen"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except (http.client.HTTPException, OSError) as error:
            return 0, type(error).__name__


def start(home: Path, scenarios: Path, providers: dict[str, Any]) -> Iterator[Served]:
    """A gateway process in `home`."""
    env = {
        **os.environ,
        "HYPERAGENT_HOME": str(home),
        "HYPERAGENT_SCENARIO_DIRS": str(scenarios),
        "HYPERAGENT_PROVIDERS": json.dumps(providers),
    }
    process = subprocess.Popen([sys.executable, "-m", "hyperagent_tasks.gateway"], env=env)
    client = GatewayClient(home / "run")
    try:
        for _ in range(200):
            try:
                client.health()
                break
            except DependencyDown:
                assert process.poll() is None
                time.sleep(0.05)
        yield Served(client, home)
    finally:
        process.terminate()
        process.wait(15)


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scenario for each fault."""
    path = tmp_path_factory.mktemp("scenarios")
    turns = [{"text": "I write.", "calls": [{"op": "write", "path": "a.py", "content": "x"}]}, {"text": "Done."}]
    for name, fault in FAULTS.items():
        script = {"turns": turns, "faults": [fault] if fault else []}
        (path / f"{name}.yaml").write_text(yaml.safe_dump({"scenario": name, "scripts": {"*": {"*": script}}}))
    (path / "broken.yaml").write_text("scenario: broken\nscripts: {'*': {coder: {turns: [{calls: [{op: write}]}]}}}\n")
    return path


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory, scenarios: Path) -> Iterator[Served]:
    """The second gateway: what the first takes for a real provider."""
    yield from start(tmp_path_factory.mktemp("p"), scenarios, {})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, scenarios: Path, provider: Served) -> Iterator[Served]:
    """The gateway under test; its providers are the second gateway, one grant a scenario, and two broken ones."""
    providers: dict[str, Any] = {}
    for name in FAULTS:
        token, _ = provider.grant(model=name, max_requests=1000)
        base = f"{provider.client.base_url(sandbox='process')}/t/{token}/v1"
        providers[name] = {"kind": "openai", "base_url": base, "api_key": CANARY, "models": {"m1": name}}
    providers["nobody"] = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "api_key": CANARY}
    providers["keyless"] = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"}
    yield from start(tmp_path_factory.mktemp("g"), scenarios, providers)


def test_a_scripted_turn_is_a_call_of_the_tool_the_client_offers(served: Served) -> None:
    token, grant = served.grant()
    status, text = served.ask(token)
    assert status == 200
    assert '\\"filePath\\": \\"/workspace/calc.py\\"' in text
    assert text.rstrip().endswith("data: [DONE]")
    seen = served.client.close(grant.agent_run_id)
    assert (seen.requests, seen.input, seen.output) == (1, 1200, 80)


def test_a_request_through_to_a_provider_is_metered_and_its_key_added_there(served: Served) -> None:
    token, grant = served.grant(provider="plain", model="m1")
    status, text = served.ask(token, "m1")
    assert status == 200
    assert "filePath" in text
    seen = served.client.observed(grant.agent_run_id)
    assert (seen.requests, seen.input, seen.output) == (1, 100, 20)


@pytest.mark.parametrize(
    ("name", "status", "kind"),
    [
        ("unauthorised", 401, "auth"),
        ("limited", 400, "rate_limit"),
        ("quota", 400, "quota"),
        ("down", 400, "server"),
        ("dropped", 400, "transport"),
        ("long", 400, "context"),
    ],
)
def test_a_failing_provider_ends_in_a_final_refusal_and_its_class_is_kept(
    served: Served, name: str, status: int, kind: str
) -> None:
    token, grant = served.grant(provider=name, model="m1")
    assert served.ask(token, "m1")[0] == status
    seen = served.client.close(grant.agent_run_id)
    assert seen.last_failure == kind
    assert seen.retries == (0 if name in ("unauthorised", "quota", "long") else 2)


def test_a_provider_that_recovers_is_retried_here_not_by_the_cli(served: Served) -> None:
    token, grant = served.grant(provider="limited-twice", model="m1")
    assert served.ask(token, "m1")[0] == 200
    assert served.client.close(grant.agent_run_id).retries == 2


@pytest.mark.parametrize("name", ["cut", "garbage"])
def test_a_stream_that_breaks_is_a_transport_failure_of_the_run(served: Served, name: str) -> None:
    token, grant = served.grant(provider=name, model="m1")
    served.ask(token, "m1")
    assert served.client.close(grant.agent_run_id).last_failure == "transport"


def test_a_provider_nobody_answers_for_is_a_transport_failure(served: Served) -> None:
    token, grant = served.grant(provider="nobody", model="m1")
    status, text = served.ask(token, "m1")
    assert status == 400
    assert "provider failed" in text
    assert served.client.close(grant.agent_run_id).last_failure == "transport"


def test_an_unknown_token_an_ended_grant_and_an_expired_one_are_all_the_same_401(served: Served) -> None:
    ended, grant = served.grant()
    served.client.close(grant.agent_run_id)
    expired, _ = served.grant(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    for token in (new_token(), ended, expired):
        assert served.ask(token)[0] == 401


def test_a_grant_is_for_one_model(served: Served) -> None:
    token, _ = served.grant()
    assert served.ask(token, "another")[0] == 404


def test_only_the_paths_of_the_dialect_are_served(served: Served) -> None:
    token, _ = served.grant()
    assert served.ask(token, path="files")[0] == 404
    assert served.ask(token, path="../../grants")[0] == 404


def test_a_spent_request_budget_ends_the_run(served: Served) -> None:
    token, grant = served.grant(max_requests=2)
    assert [served.ask(token, tools=[])[0] for _ in range(3)] == [200, 200, 400]
    assert served.client.close(grant.agent_run_id).last_failure == "budget"


def test_an_exhausted_script_is_refused_never_repeated(served: Served) -> None:
    token, grant = served.grant()
    history = [{"role": "assistant", "tool_calls": [{"id": "a"}]}] * 5
    status, text = served.ask(token, messages=history)
    assert (status, "no turn 5" in text) == (400, True)
    assert served.client.close(grant.agent_run_id).last_failure == "scenario"


def test_fault_counters_of_two_runs_are_apart(served: Served) -> None:
    for _ in range(2):
        token, _grant = served.grant(model="limited-twice")
        assert [served.ask(token, "limited-twice")[0] for _ in range(3)] == [429, 429, 200]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_garbage_is_refused_in_one_answer(served: Served, body: bytes) -> None:
    token, _ = served.grant()
    request = urllib.request.Request(
        f"{served.client.base_url(sandbox='process')}/t/{token}/v1/chat/completions", data=body, method="POST"
    )
    with pytest.raises(urllib.error.HTTPError) as refused, urllib.request.urlopen(request, timeout=10):
        pass
    with refused.value as error:
        assert error.code == 400


def test_a_model_that_cannot_be_used_is_said_before_any_agent_starts(served: Served) -> None:
    for provider, model, word in [
        ("replay", "replay/nothing", "no scenario"),
        ("unknown", "unknown/m", "not configured"),
        ("keyless", "keyless/m", "no key"),
    ]:
        fault = served.client.fault(provider, model)
        assert fault is not None
        assert word in fault
    assert served.client.fault("replay", "replay/demo") is None
    with pytest.raises(NotReady, match="no key"):
        served.grant(provider="keyless", model="m")


def test_the_providers_key_is_in_no_log_and_no_answer(served: Served) -> None:
    token, grant = served.grant(provider="plain", model="m1")
    _, text = served.ask(token, "m1", messages=[{"role": "user", "content": f"my key is {CANARY}"}])
    served.client.close(grant.agent_run_id)  # what was asked before it is in the log when it returns
    log = Path(grant.log_path).read_text()
    assert "my key is ***" in log
    for told in (text, log, json.dumps(served.client.health())):
        assert CANARY not in told
    assert token not in log
    assert (Path(grant.log_path).stat().st_mode & 0o777) == 0o600


def test_ending_a_grant_cuts_what_is_under_way(served: Served, scenarios: Path) -> None:
    script = {"turns": [{"text": "x"}], "faults": [{"delay_s": 60}]}
    (scenarios / "slow.yaml").write_text(yaml.safe_dump({"scenario": "slow", "scripts": {"*": {"*": script}}}))
    token, grant = served.grant(model="slow")
    answers: list[tuple[int, str]] = []
    asking = threading.Thread(target=lambda: answers.append(served.ask(token, "slow")))
    asking.start()
    time.sleep(0.5)
    began = time.monotonic()
    served.client.close(grant.agent_run_id)
    asking.join(10)
    assert time.monotonic() - began < 5
    assert answers[0][0] == 0


def test_a_second_gateway_on_the_same_directory_refuses(served: Served) -> None:
    env = {**os.environ, "HYPERAGENT_HOME": str(served.home)}
    done = subprocess.run([sys.executable, "-m", "hyperagent_tasks.gateway"], env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "Another gateway" in done.stderr


def test_the_control_socket_is_private_and_the_data_socket_is_not_it(served: Served) -> None:
    control = served.home / "run" / "gateway-control"
    assert (control.stat().st_mode & 0o777) == 0o700
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        probe.connect(str(served.client.data_socket))
        probe.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"404" in probe.recv(100)


def test_a_broken_scenario_names_its_fault(served: Served, scenarios: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hyperagent_tasks.gateway", "--check", str(scenarios / "broken.yaml")],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 2
    assert "needs content, path" in done.stderr
