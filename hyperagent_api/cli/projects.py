"""Commands for projects: add, list, show, set, remove, and what their triggers did."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from hyperagent_api import bodies
from hyperagent_api.cli.output import UNREACHABLE, emit, guarded, json_option, plain, words
from hyperagent_api.cli.work import api
from hyperagent_common.errors import BadInput, Fault

OWN = ("description", "default_branch", "remote")
MAX_FILE = 1 << 20
version_option = click.option("--version", "version", type=int, help="Refuse where the project is at another version.")


def _path(name: str, more: str = "") -> str:
    return f"/api/v1/projects/{quote(name, safe='')}{more}"


@click.group()
def project() -> None:
    """Register repositories, look at them, change them."""


@project.command("add")
@click.argument("name")
@click.argument("source", metavar="PATH|RID")
@click.option("--description", default="")
@click.option("--default-branch", default="", help="Default: the branch the repository is on.")
@click.option("--remote", default="", help="The Radicle id that patches go to; default: PATH is registered anew.")
@json_option
@guarded
def project_add(name: str, source: str, description: str, default_branch: str, remote: str, as_json: bool) -> None:
    """Register the repository at PATH (on the worker's host), or the Radicle repository RID, as NAME.

    \b
    hyperagent project add calc ./calc
    hyperagent project add heartwood rad:z3gqcJUoA1n9HaHKufZs5FCSGazv5
    """
    asked = {
        "name": name,
        "source": source if source.startswith("rad:") else str(Path(source).absolute()),
        "description": description,
        "default_branch": default_branch,
        **({"remote": remote} if remote else {}),
    }
    made = api().post("/api/v1/projects", asked)
    _show(made, as_json)
    if made["state"] != "ready":
        words(f"No worker has answered yet; `hyperagent project show {name}` tells what becomes of it.")
        sys.exit(UNREACHABLE)


def _show(made: dict[str, Any], as_json: bool) -> None:
    said = [made["name"], made["state"], made["remote"] or "", made["default_branch"], made["source"]]
    emit(made) if as_json else click.echo("  ".join(plain(word) for word in said))


@project.command("list")
@json_option
@guarded
def project_list(as_json: bool) -> None:
    """List the projects."""
    rows = api().get("/api/v1/projects")
    for row in rows:
        said = f"{row['name']:24} {row['state']:12} {row['remote'] or '':34} {row['default_branch']:12} {row['source']}"
        emit(row) if as_json else click.echo(plain(said))
    if not rows:
        words("No projects yet. Register one: hyperagent project add NAME PATH")


@project.command("show")
@click.argument("name")
@json_option
@guarded
def project_show(name: str, as_json: bool) -> None:
    """Show one project."""
    row = api().get(_path(name))
    emit(row) if as_json else click.echo("\n".join(f"{key:15} {plain(value)}" for key, value in row.items()))


@project.command("set")
@click.argument("name")
@click.argument("changes", metavar="KEY=VALUE...", nargs=-1, required=True)
@version_option
@json_option
@guarded
def project_set(name: str, changes: tuple[str, ...], version: int | None, as_json: bool) -> None:
    """Change settings of the project NAME: remote, default_branch, description, triggers, checks, agent_model, and so on.

    VALUE is read as YAML, @FILE is a YAML file, and nothing after the = takes the setting away.

    \b
    hyperagent project set calc default_branch=develop
    hyperagent project set calc remote=rad:z3gqcJUoA1n9HaHKufZs5FCSGazv5
    hyperagent project set calc triggers=@triggers.yaml checks='["make test"]'
    """
    body: dict[str, Any] = {}
    for entry in changes:
        key, separator, raw = entry.partition("=")
        if not separator or not key:
            raise BadInput("The change is wrong.", faults=[Fault(entry, "must read KEY=VALUE")])
        if key in OWN:
            body[key] = raw
        else:
            body.setdefault("settings", {})[key] = _value(key, raw)
    if version is not None:
        body["version"] = version
    before = api().get(_path(name))["version"]
    made = api().patch(_path(name), body)
    if made["version"] == before and not as_json:
        words("Nothing has changed: it was so already, or its host has not answered yet.")
    _show(made, as_json)


def _value(key: str, raw: str) -> Any:
    """A setting's value; None takes it away. Raises `BadInput`."""
    if not raw:
        return None
    if not raw.startswith("@"):
        return bodies.decode(raw.encode("utf-8", "surrogateescape"), as_yaml=True)
    try:
        with Path(raw[1:]).open("rb") as file:
            return bodies.decode(file.read(MAX_FILE), as_yaml=True)
    except OSError as error:
        raise BadInput("The change is wrong.", faults=[Fault(key, f"{raw[1:]} cannot be read: {error.strerror}")]) from error


@project.command("remove")
@click.argument("name")
@version_option
@json_option
@guarded
def project_remove(name: str, version: int | None, as_json: bool) -> None:
    """Take the project NAME out of use; its workflows, patches and repository stay. Refused while workflows run.
    One whose registration never succeeded is forgotten.

    \b
    hyperagent project remove calc
    """
    api().delete(_path(name), **({"If-Match": f'"{version}"'} if version is not None else {}))
    emit({"removed": name}) if as_json else words(
        f"{name} is removed; where it was ready, adding it again from the same source brings it back."
    )


@project.command("triggers")
@click.argument("name")
@click.option("--outcome", type=click.Choice(["fired", "refused", "passed", "before"]), help="Only these.")
@click.option("--limit", type=int, default=20, show_default=True)
@json_option
@guarded
def project_triggers(name: str, outcome: str | None, limit: int, as_json: bool) -> None:
    """What comments and pushes on NAME started or did not, the newest first.

    \b
    hyperagent project triggers calc --outcome fired
    """
    rows = api().get(_path(name, "/triggers"), limit=limit, **({"outcome": outcome} if outcome else {}))
    for row in rows:
        said = f"{row['at'][:19]}  {row['outcome']:8} {row['kind']:13} {row['rule']:16} {row['workflow_id'] or row['reason']}"
        emit(row) if as_json else click.echo(plain(said))
    if not rows:
        words("Nothing yet. Rules are set so: hyperagent project set NAME triggers=@FILE (docs/radicle.md)")


COMMANDS = (project,)
