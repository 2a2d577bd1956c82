"""`hyperagent demo`: the main job in one command, and an honest word on which parts were real."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from hyperagent_api import supervise
from hyperagent_api.cli.follow import watched
from hyperagent_api.cli.output import FAILED, emit, words
from hyperagent_api.client import ApiClient
from hyperagent_common import plan as plans
from hyperagent_common.errors import NotReady
from hyperagent_common.settings import Settings

PROJECT = "example"
STAND_INS = {
    (
        "sandbox",
        "process",
    ): "agents ran as plain processes, WITHOUT ANY SANDBOX. Get Docker and the image: ops/parts runner-image",
    ("agent", "mock"): "the agent was the bundled MOCK of opencode, not opencode. Get it: ops/parts runner-image",
    ("forge", "stand-in"): "the forge was a STAND-IN: nothing left this machine. Get Radicle: ops/parts radicle-image",
}


def run(settings: Settings, *, again: bool, as_json: bool) -> None:
    """Run the demo and leave with 0, or 1 where the workflow failed."""
    began = time.monotonic()
    if supervise.pid_file(settings).pid() is None:
        words(f"Starting HyperAgent in {settings.home} ...")
        supervise.make_home(settings)
        supervise.detach(settings)
    client = ApiClient(settings)
    example = settings.home / "example"
    _make_example(example)
    project = client.post("/api/v1/projects", {"name": PROJECT, "path": str(example)})
    if project["state"] != "ready":
        raise NotReady("The example could not be registered in time.", mend=f"Look into {settings.home / 'logs'}.")
    document = yaml.safe_load((resources.files("hyperagent_api") / "demo_plan.yaml").read_text())
    key = f"demo-{plans.parse(document).digest()[:16]}"
    submitted = _submit(client, document, f"{key}-{time.time_ns()}" if again else key)
    if submitted["state"] in ("failed", "cancelled") and not again:
        words(f"The demo ran before and {submitted['state']}; running it once more.")
        submitted = _submit(client, document, f"{key}-{time.time_ns()}")
    reused = submitted["state"] != "running"
    words(f"Workflow {submitted['id']}" + (" ran before; --again runs the plan once more." if reused else ":"))
    workflow = submitted if reused else watched(client, submitted["id"])
    result = _result(settings, workflow, reused)
    _tell(result, workflow, time.monotonic() - began)
    if as_json:
        emit(result)
    if workflow["state"] != "done":
        sys.exit(FAILED)


def _submit(client: ApiClient, document: dict[str, Any], key: str) -> dict[str, Any]:
    submitted: dict[str, Any] = client.post(
        "/api/v1/workflows", {"project": PROJECT, "plan": document}, **{"Idempotency-Key": key}
    )
    return submitted


def _make_example(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hyperagent_tasks.example", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        env=dict(os.environ),
    )
    if done.returncode:
        raise NotReady(f"The example repository could not be made: {done.stderr.strip()[-500:]}")


def _result(settings: Settings, workflow: dict[str, Any], reused: bool) -> dict[str, Any]:
    patch = workflow["patch"]
    artifacts = workflow["artifacts"]
    return {
        "workflow": workflow["id"],
        "state": workflow["state"],
        "reason": workflow["reason"],
        "commits": [step["commit"] for step in workflow["steps"] if step["commit"]],
        "patch": patch and {"id": patch["patch_id"], "rid": patch["rid"], "head": patch["head"]},
        "logs": [a["location"] for a in artifacts if a["name"] == "agent-stream.jsonl"],
        "provenance": [a["location"] for a in artifacts if a["name"] == "provenance.json"],
        "api": settings.url,
        "reused": reused,
        **workflow["parts"],
    }


def _tell(result: dict[str, Any], workflow: dict[str, Any], seconds: float) -> None:
    words("")
    for step in workflow["steps"]:
        words(f"  commit      {step['commit'] or '-':40}  {step['key']}")
        if step["state"] == "failed":
            words(f"  FAILED      {step['key']}: {step['reason']}")
    if result["patch"]:
        words(f"  patch       {result['patch']['id']}  on {result['patch']['rid']}")
    for name in ("logs", "provenance"):
        for place in result[name]:
            words(f"  {name:11} {place}")
    words(f"  API         {result['api']}  (hyperagent show {result['workflow'][:13]}; hyperagent down stops it)")
    words("  parts       " + ", ".join(f"{k}={result[k]}" for k in ("agent", "sandbox", "forge", "database", "broker")))
    for (part, name), sentence in STAND_INS.items():
        if result[part] == name:
            words(f"  NOTE: {sentence}")
    words(f"  {result['state']} in {seconds:.1f} s")
