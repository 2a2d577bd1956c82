"""Commands for those who submit plans: plan, run, list, show, watch, logs, artifact."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import yaml

from hyperagent_api import bodies
from hyperagent_api.cli.follow import watched
from hyperagent_api.cli.output import FAILED, emit, first_line, guarded, json_option, patch_lines, plain, words
from hyperagent_api.client import ApiClient, lines
from hyperagent_api.stream import LOG_PAGE
from hyperagent_common import plan as plans
from hyperagent_common import settings
from hyperagent_common.errors import AgentFailed, BadInput, DependencyDown, Fault, NotReady
from hyperagent_common.ids import new_id

MAX_PLAN = 64 << 20
DRAFTING = ("queued", "running")
output_option = click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the plan here; default: stdout.")


def api() -> ApiClient:
    """The API of the settings."""
    return ApiClient(settings.load())


def read_plan(path: str) -> dict[str, Any]:
    """A plan file (YAML or JSON; `-` is stdin) as a mapping. Raises `BadInput`."""
    try:
        raw = sys.stdin.buffer.read(MAX_PLAN) if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise BadInput(f"The plan {path} cannot be read.", faults=[Fault("FILE", error.strerror or str(error))]) from error
    value = bodies.decode(raw, as_yaml=not raw.lstrip().startswith(b"{"))
    if not isinstance(value, dict):
        raise BadInput("The plan is wrong.", faults=[Fault("FILE", "must hold a mapping with kind, title and tasks")])
    return value


class _Plan(click.Group):
    """`hyperagent plan PROJECT GOAL` is short for `hyperagent plan draft PROJECT GOAL`."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """The named command, or `draft` where the first word names none."""
        short = args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None
        return super().resolve_command(ctx, ["draft", *args] if short else args)


@click.group(cls=_Plan)
def plan() -> None:
    """Draft a plan from a goal, or look at one before it runs."""


@plan.command("draft")
@click.argument("project_name", metavar="PROJECT")
@click.argument("goal")
@output_option
@click.option("--timeout", type=float, default=1800, show_default=True, help="Seconds to wait for the planner.")
@json_option
@guarded
def plan_draft(project_name: str, goal: str, output: Path | None, timeout: float, as_json: bool) -> None:
    """Let the planner agent write a plan for GOAL, to edit and submit with `hyperagent run`."""
    client, deadline = api(), time.monotonic() + timeout
    made = client.post(f"/api/v1/projects/{quote(project_name, safe='')}/drafts", {"goal": goal})
    for warning in made["warnings"]:
        words(f"warning: {warning}")
    words(f"draft {made['id']}: the planner is at work")
    while made["state"] in DRAFTING:
        if time.monotonic() > deadline:
            raise DependencyDown(
                f"The draft {made['id']} is still {made['state']}.", mend=f"Later: hyperagent plan show {made['id']}"
            )
        time.sleep(0.5)
        made = client.get(f"/api/v1/drafts/{made['id']}")
    _give(made, output, as_json)


@plan.command("show")
@click.argument("draft")
@output_option
@json_option
@guarded
def plan_show(draft: str, output: Path | None, as_json: bool) -> None:
    """The plan of a DRAFT that was asked for before."""
    made = api().get(f"/api/v1/drafts/{quote(draft, safe='')}")
    if made["state"] in DRAFTING:
        raise NotReady(f"The draft {made['id']} is still {made['state']}.", mend="Ask again in a minute.")
    _give(made, output, as_json)


def _give(made: dict[str, Any], output: Path | None, as_json: bool) -> None:
    """A draft's plan, to a file or to stdout; `--json` tells the draft itself on stdout. Raises `AgentFailed`, `BadInput`."""
    if made["state"] != "done":
        raise AgentFailed(made["reason"] or "The planner wrote no plan.")
    text = yaml.safe_dump(made["plan"], sort_keys=False, allow_unicode=True, width=100)
    if as_json:
        emit(made)
    elif output is None:
        click.echo(text.rstrip())
    if output is None:
        return
    try:
        output.write_text(text)
    except OSError as error:
        fault = Fault("--output", f"{output} cannot be written: {error.strerror}")
        raise BadInput(
            "The plan is kept, but not in that file.", faults=[fault], mend=f"hyperagent plan show {made['id']}"
        ) from error
    words(f"{output}: edit it, then: hyperagent run {output} --project {made['project']}")


@plan.command("check")
@click.argument("file")
@json_option
@guarded
def plan_check(file: str, as_json: bool) -> None:
    """Check a plan file; names every fault at once."""
    parsed = plans.parse(read_plan(file))
    if as_json:
        emit({"ok": True, "digest": parsed.digest(), "order": [task.id for task in parsed.tasks]})
    else:
        click.echo(f"ok: {len(parsed.tasks)} planner tasks: {', '.join(task.id for task in parsed.tasks)}")


@click.command()
@click.argument("file")
@click.option("--project", "project_name", required=True, help="The registered project to work on.")
@click.option("--watch", "follow", is_flag=True, help="Show what happens until it has ended.")
@click.option("--idempotency-key", default="", help="Submitting again with this key finds the same workflow.")
@json_option
@guarded
def run(file: str, project_name: str, follow: bool, idempotency_key: str, as_json: bool) -> None:
    """Submit the plan in FILE (YAML or JSON, - for stdin)."""
    client = api()
    workflow = _submitted(client, {"project": project_name, "plan": read_plan(file)}, idempotency_key or new_id())
    for warning in workflow["warnings"]:
        words(f"warning: {warning}")
    if follow:
        workflow = watched(client, workflow["id"])
    emit(workflow) if as_json else click.echo(workflow["id"] if not follow else summary(workflow))
    if follow and workflow["state"] != "done":
        sys.exit(FAILED)


def _submitted(client: ApiClient, body: dict[str, Any], key: str, *, again: bool = False) -> dict[str, Any]:
    """The workflow; where the connection broke it is asked for once more, under a key that makes two requests one.

    Raises `DependencyDown` where that broke too, and `NotReady` where the API's database ended: each tells the key, for
    whether the plan was taken is not known then.
    """
    try:
        workflow: dict[str, Any] = client.post("/api/v1/workflows", body, **{"Idempotency-Key": key})
    except (DependencyDown, NotReady) as error:
        if isinstance(error, DependencyDown) and not again:
            return _submitted(client, body, key, again=True)
        mend = f"{error.mend} Then submit with --idempotency-key {key}: what was taken already is found."
        raise type(error)(error.message, mend=mend.strip()) from error
    return workflow


def summary(workflow: dict[str, Any]) -> str:
    """A workflow in a few lines; much in them is an agent's."""
    lines = [f"{workflow['title']}  [{workflow['state']}]  {workflow['id']}"]
    lines += [f"project {workflow['project']}, branch {workflow['branch']}"]
    for step in workflow["steps"]:
        lines.append(f"  {step['state']:9} {step['key']:20} {(step['commit'] or '')[:12]:12} attempts {step['attempt_count']}")
        lines += [f"            {line}" for attempt in step["attempts"][-1:] for line in said(attempt)]
        if step["reason"] and step["state"] != "done":
            lines += [f"            {line}" for line in step["reason"].splitlines()]
    lines += patch_lines(workflow)
    if workflow["reason"]:
        lines.append(f"reason: {first_line(workflow['reason'])}")
    return "\n".join(plain(line) for line in lines)


def said(attempt: dict[str, Any]) -> list[str]:
    """Who worked on an attempt with which model, for how much, and what the verifier said."""
    verdicts = {verdict["agent_run_id"]: verdict for verdict in attempt["verdicts"]}
    lines = []
    for run in attempt["agent_runs"]:
        cost = "cost unknown" if run["cost_usd"] is None else f"{run['cost_usd']:.4f} USD"
        tokens = f"{run['input_tokens'] or 0}+{run['output_tokens'] or 0} tokens, {cost}"
        lines.append(f"round {run['round']} {run['role']}: {run['provider']} {run['model']}, {run['end_reason']}, {tokens}")
        if verdict := verdicts.get(run["id"]):
            lines.append(f"  {verdict['decision']}: {' '.join(verdict['summary'].split())[:200]}")
            lines += [f"  - [{f['severity']}] {f['path'] or ''} {f['message']}" for f in verdict["findings"]]
    return lines


@click.command("list")
@click.option("--project", "project_name")
@click.option("--state")
@click.option("--limit", type=int, default=20, show_default=True)
@json_option
@guarded
def list_workflows(project_name: str | None, state: str | None, limit: int, as_json: bool) -> None:
    """List workflows, the newest first."""
    query = {"project": project_name, "state": state, "limit": limit}
    rows = api().get("/api/v1/workflows", **{k: v for k, v in query.items() if v is not None})
    for row in rows:
        emit(row) if as_json else click.echo(plain(f"{row['id']}  {row['state']:9} {row['project']:20} {row['title']}"))
    if not rows:
        words("No workflows. Submit a plan: hyperagent run FILE --project NAME")


@click.command()
@click.argument("workflow")
@json_option
@guarded
def show(workflow: str, as_json: bool) -> None:
    """Show a workflow (an id or a unique beginning of one)."""
    found = api().get(f"/api/v1/workflows/{quote(workflow, safe='')}")
    emit(found) if as_json else click.echo(summary(found))


@click.command()
@click.argument("workflow")
@json_option
@guarded
def watch(workflow: str, as_json: bool) -> None:
    """Follow a workflow until it has ended; exits 1 where it failed."""
    found = watched(api(), workflow)
    emit(found) if as_json else click.echo(summary(found))
    if found["state"] != "done":
        sys.exit(FAILED)


@click.command()
@click.argument("workflow")
@click.argument("step", required=False)
@click.option("--attempt", type=int, help="Which attempt; default: the last.")
@click.option("-f", "--follow", is_flag=True, help="Go on while it runs.")
@json_option
@guarded
def logs(workflow: str, step: str | None, attempt: int | None, follow: bool, as_json: bool) -> None:
    """Print the agent's log of STEP; default: the first step that runs, else the last that ran."""
    client = api()
    found = client.get(f"/api/v1/workflows/{quote(workflow, safe='')}")
    key = step or _interesting(found)
    query: dict[str, Any] = {} if attempt is None else {"attempt": attempt}
    after = "0"
    while True:
        answer = client.raw(f"/api/v1/workflows/{found['id']}/steps/{quote(key, safe='')}/log", after=after, **query)
        live = answer.headers.get("X-Log") == "live"
        query["attempt"], told = answer.headers["X-Attempt"], 0  # a retry is another log
        for line in filter(None, lines(answer, 4096)):
            after = json.loads(line).get("id", after) if live else after
            told += 1
            click.echo(line if as_json else readable(line))
        more = live and told == LOG_PAGE
        if not more and not (follow and live and answer.headers["X-Attempt-State"] == "running"):
            return
        time.sleep(0 if more else 0.5)


def _interesting(workflow: dict[str, Any]) -> str:
    tried = [step for step in workflow["steps"] if step["attempts"]]
    running = [step for step in tried if step["state"] == "running"]
    if not tried:
        raise BadInput("No step of this workflow has begun yet.", mend="`hyperagent watch` follows it.")
    return str((running or tried[-1:])[0]["key"])


def readable(line: str) -> str:
    """A log line for a person: control characters shown, not obeyed."""
    try:
        value = json.loads(line)
    except ValueError:
        value = line
    part = value.get("part", {}) if isinstance(value, dict) else {}
    data = value.get("data", {}) if isinstance(value, dict) else {}
    text = part.get("text") or data.get("text") if isinstance(part, dict) and isinstance(data, dict) else None
    shown = text if isinstance(text, str) else line
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in shown)


@click.command()
@click.argument("artifact_id")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@guarded
def artifact(artifact_id: str, output: Path) -> None:
    """Download an artifact."""
    answer = api().raw(f"/api/v1/artifacts/{quote(artifact_id, safe='')}")
    partial = output.with_name(output.name + ".partial")
    with partial.open("wb") as file:
        for chunk in answer.iter_content(1 << 20):
            file.write(chunk)
    partial.replace(output)
    words(f"{output}: {output.stat().st_size} bytes")


COMMANDS = (plan, run, list_workflows, show, watch, logs, artifact)
