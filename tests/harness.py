"""A whole HyperAgent of its own for tests and benchmarks: its own home, port and processes, ended by itself."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests import parts

ROOT = Path(__file__).resolve().parent.parent
KIND = "hyperagent/plan"


def plan_of(tasks: Sequence[dict[str, Any]], *, title: str = "A test plan", checks: Sequence[str] = ()) -> dict[str, Any]:
    """A plan document with defaults filled in."""
    return {
        "kind": KIND,
        "title": title,
        "tasks": [
            {"title": f"Do {t['id']}", "instructions": f"Do the step {t['id']}.", "checks": list(checks), **t} for t in tasks
        ],
    }


def until(ask: Callable[[], Any], seconds: float) -> Any:
    """What `ask` answers, once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := ask()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)
    return found


def free_port() -> int:
    """A loopback port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Host:
    """HyperAgent as `hyperagent up --detach` runs it, in `home`."""

    def __init__(self, home: Path, *, agent: str = "opencode", **settings: object) -> None:
        self.home, self.port = home, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        chosen = {
            "HYPERAGENT_HOME": home,
            "HYPERAGENT_API_PORT": self.port,
            "WORKFLOW_AGENT_PROVIDER": agent,
            "HYPERAGENT_SANDBOX": "docker",
            "HYPERAGENT_RUNNER_IMAGE": parts.RUNNER_IMAGE,
            "HYPERAGENT_RADICLE_IMAGE": parts.RADICLE_IMAGE,
            "HYPERAGENT_FORGE": "radicle",
            "HYPERAGENT_LEASE_SECONDS": 4,
            "HYPERAGENT_HEARTBEAT_SECONDS": 1,
            "HYPERAGENT_RECONCILE_SECONDS": 1,
            "HYPERAGENT_RETRY_BACKOFF": 1,
            "HYPERAGENT_RETRY_BACKOFF_MAX": 4,
            "HYPERAGENT_REQUEUE_AFTER": 10,
            "HYPERAGENT_OUTAGE_PATIENCE": 0,
            "HYPERAGENT_RADICLE_LISTEN": "0.0.0.0:8776",
            **({"HYPERAGENT_VERIFY": "off", "WORKFLOW_AGENT_MAX_ROUNDS": 1} if agent == "null" else {}),
            **settings,
        }
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HYPERAGENT_", "WORKFLOW_AGENT_"))}
        self.env = {**clean, **{name: str(value) for name, value in chosen.items() if value is not None}}

    def __enter__(self) -> Host:
        self.up()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self.show_logs()
        self.cli("down", check=False)

    def cli(self, *argv: str, check: bool = True, timeout: float = 180, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `hyperagent ...` in this home."""
        done = subprocess.run(
            [sys.executable, "-m", "hyperagent_api.cli", *argv],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**self.env, **env},
            cwd=ROOT,
        )
        if check and done.returncode:
            raise AssertionError(f"hyperagent {' '.join(argv)} exited {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def json(self, *argv: str, **env: str) -> Any:
        """The last line of a command's output as JSON."""
        return json.loads(self.cli(*argv, "--json", **env).stdout.strip().splitlines()[-1])

    def up(self, **env: str) -> None:
        """Start; returns once it answers that it is ready."""
        self.cli("up", "--detach", **env)

    def down(self) -> None:
        """Stop."""
        self.cli("down")

    def await_node(self, seconds: float = 120) -> None:
        """Wait until the host, asked anew, names nothing that would keep a workflow from being published: what it said before
        its node was stopped is no word on the node that was started since."""

        def well() -> bool:
            said = self.get("/api/health/radicle?refresh=true")
            named = [p for entry in (*said["hosts"], *said["projects"]) for p in entry["problems"] if p["blocking"]]
            asked = said["hosts"] and all(host["node"]["running"] for host in said["hosts"])
            return bool(asked) and not named and self.request("GET", "/readyz")[0] == 200

        until(well, seconds)

    def register_example(self, name: str = "example") -> None:
        """The demo's example repository, registered as `name`."""
        example = self.home / name
        subprocess.run(
            [sys.executable, "-m", "hyperagent_tasks.example", str(example)],
            check=True, env=self.env, cwd=ROOT, timeout=60, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self.post("/api/v1/projects", {"name": name, "path": str(example)})

    def request(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """Status and decoded answer; a refusal is an answer too."""
        data = None if body is None else (body if isinstance(body, bytes) else json.dumps(body).encode())
        asked = urllib.request.Request(
            self.url + path, data=data, method=method, headers={"Content-Type": "application/json", **headers}
        )
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"null")

    def get(self, path: str) -> Any:
        """GET that must succeed."""
        status, answer = self.request("GET", path)
        assert status == 200, (status, answer)
        return answer

    def post(self, path: str, body: object, **headers: str) -> Any:
        """POST that must succeed."""
        status, answer = self.request("POST", path, body, **headers)
        assert status in (200, 201, 202), (status, answer)
        return answer

    def submit(self, plan: dict[str, Any], project: str = "example") -> str:
        """Submit a plan; the workflow's id."""
        return str(self.post("/api/v1/workflows", {"project": project, "plan": plan})["id"])

    def workflow(self, workflow_id: str) -> dict[str, Any]:
        """The workflow as the API tells it."""
        return dict(self.get(f"/api/v1/workflows/{workflow_id}"))

    def wait(self, workflow_id: str, timeout: float = 180) -> dict[str, Any]:
        """The workflow once it ended."""
        deadline = time.monotonic() + timeout
        while True:
            workflow = self.workflow(workflow_id)
            if workflow["state"] != "running":
                return workflow
            assert time.monotonic() < deadline, f"still running: {json.dumps(workflow, indent=1)[:4000]}"
            time.sleep(0.25)

    def run(self, plan: dict[str, Any], *, project: str = "example", timeout: float = 180) -> dict[str, Any]:
        """Submit and wait."""
        return self.wait(self.submit(plan, project), timeout)

    def events(self, workflow_id: str) -> list[dict[str, Any]]:
        """Every RunnerEvent of a workflow."""
        found: list[dict[str, Any]] = []
        while True:
            after = found[-1]["id"] if found else 0
            page = self.get(f"/api/v1/workflows/{workflow_id}/events?after={after}")
            page = page["events"] if isinstance(page, dict) else page
            if not page:
                return found
            found += page

    def show_logs(self) -> None:
        """The end of every log, for a failed test."""
        for path in sorted((self.home / "logs").glob("*.log")):
            print(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}", file=sys.stderr)
