"""Commands that steer workflows: pause, resume, cancel, retry, and dead letters."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from hyperagent_api.cli.output import emit, first_line, guarded, json_option, plain, words
from hyperagent_api.cli.work import api
from hyperagent_common.errors import BadInput

version_option = click.option("--version", "version", type=int, help="Refuse where the workflow is at another version.")
reason_option = click.option("--reason", default="", help="Kept with the workflow.")


def _steer(path: str, as_json: bool, **body: Any) -> None:
    answer = api().post(path, {name: value for name, value in body.items() if value not in (None, "")})
    emit(answer) if as_json else click.echo(f"{answer['id']}  {answer['state']}  version {answer['version']}")


def _path(workflow: str, action: str) -> str:
    return f"/api/v1/workflows/{quote(workflow, safe='')}/{action}"


@click.command()
@click.argument("workflow")
@reason_option
@version_option
@json_option
@guarded
def pause(workflow: str, reason: str, version: int | None, as_json: bool) -> None:
    """Begin nothing new of WORKFLOW; what runs goes on to its end."""
    _steer(_path(workflow, "pause"), as_json, reason=reason, version=version)


@click.command()
@click.argument("workflow")
@version_option
@json_option
@guarded
def resume(workflow: str, version: int | None, as_json: bool) -> None:
    """Go on with a paused WORKFLOW."""
    _steer(_path(workflow, "resume"), as_json, version=version)


@click.command()
@click.argument("workflow")
@reason_option
@version_option
@json_option
@guarded
def cancel(workflow: str, reason: str, version: int | None, as_json: bool) -> None:
    """End WORKFLOW: within seconds nothing of it runs any more."""
    _steer(_path(workflow, "cancel"), as_json, reason=reason, version=version)


@click.command()
@click.argument("workflow")
@click.argument("step", required=False)
@version_option
@json_option
@guarded
def retry(workflow: str, step: str | None, version: int | None, as_json: bool) -> None:
    """Retry STEP, or every failed step of a failed WORKFLOW, with a new budget of attempts."""
    if step == "":
        raise BadInput("STEP is empty.", mend="Name a step, or leave it out to retry every failed one.")
    path = _path(workflow, f"steps/{quote(step, safe='')}/retry" if step else "retry")
    _steer(path, as_json, version=version)


@click.group("dead-letters")
def dead_letters() -> None:
    """Steps that were given up: look, replay, discard."""


@dead_letters.command("list")
@click.option("--resolved", is_flag=True, help="Those that were replayed or discarded instead of the open ones.")
@click.option("--limit", type=int, default=50, show_default=True)
@json_option
@guarded
def dead_letters_list(resolved: bool, limit: int, as_json: bool) -> None:
    """List dead letters, the newest first."""
    rows = api().get("/api/v1/dead-letters", resolved=str(resolved).lower(), limit=limit)
    for row in rows:
        said = f"{row['id']}  {row['workflow_id']}  {row['step']:20} {row['error_type']:16} {first_line(row['reason'])}"
        emit(row) if as_json else click.echo(plain(said))
    if not rows:
        words("No dead letters.")


@dead_letters.command("replay")
@click.argument("letter")
@version_option
@json_option
@guarded
def dead_letters_replay(letter: str, version: int | None, as_json: bool) -> None:
    """Retry the step of LETTER with a new budget of attempts."""
    _resolve(letter, "replay", version, as_json)


@dead_letters.command("discard")
@click.argument("letter")
@version_option
@json_option
@guarded
def dead_letters_discard(letter: str, version: int | None, as_json: bool) -> None:
    """Close LETTER without trying again; its step stays failed."""
    _resolve(letter, "discard", version, as_json)


def _resolve(letter: str, action: str, version: int | None, as_json: bool) -> None:
    asked = {} if version is None else {"version": version}
    row = api().post(f"/api/v1/dead-letters/{quote(letter, safe='')}/{action}", asked)
    emit(row) if as_json else click.echo(f"{row['id']}  {row['resolution']}  step {row['step']} of {row['workflow_id']}")


COMMANDS = (pause, resume, cancel, retry, dead_letters)
