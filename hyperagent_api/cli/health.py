"""`hyperagent health`: how the forge is, for a person or as JSON. Exit code 0 only where everything is in order."""

from __future__ import annotations

import sys
from typing import Any

import click

from hyperagent_api.cli.output import DONE, UNREACHABLE, emit, guarded, json_option, plain
from hyperagent_api.cli.work import api


@click.group()
def health() -> None:
    """How the parts are that HyperAgent works with."""


@health.command("radicle")
@click.option("--no-refresh", is_flag=True, help="What hosts last said, without asking them anew.")
@json_option
@guarded
def radicle(no_refresh: bool, as_json: bool) -> None:
    """Node, identities, peers, and how each project stands. Exits 0 where all is in order, 5 where something is not.

    \b
    hyperagent health radicle
    hyperagent health radicle --json | jq '.projects[] | {name, synced}'
    """
    said = api().get("/api/health/radicle", refresh="false" if no_refresh else "true")
    emit(said) if as_json else click.echo("\n".join(plain(line) for line in _lines(said)))
    sys.exit(DONE if said["ok"] else UNREACHABLE)


def _lines(said: dict[str, Any]) -> list[str]:
    """The answer in lines."""
    lines = [line for host in said["hosts"] for line in _host(host)]
    lines += [line for each in said["projects"] for line in _project(each)]
    if not said["projects"]:
        lines.append("no projects yet: hyperagent project add NAME PATH")
    for problem in [p for entry in (*said["hosts"], *said["projects"]) for p in entry["problems"]]:
        lines.append(f"{'FAIL' if problem['blocking'] else 'note'} {problem['message']} {problem['mend']}")
    if not said["hosts"]:
        lines += [f"FAIL {problem['message']} {problem['mend']}" for problem in said["problems"]]
    return [*lines, "in order" if said["ok"] else "not in order"]


def _host(host: dict[str, Any]) -> list[str]:
    node, age = host["node"], "never" if host["seconds"] is None else f"{host['seconds']:.0f} s ago"
    running = f"node runs since {node['since']}" if node["running"] and node["nid"] else "no node runs"
    running = "nothing leaves this machine" if host["forge"] == "stand-in" else running
    lines = [f"host {host['host']} ({host['id']}): {host['forge']} {node['version'] or ''}, {running}, reported {age}"]
    lines += [f"  identity {i['role']:10} {i['did']} {i['alias'] or ''}" for i in host["identities"]]
    for peer in host["peers"]:
        lines.append(f"  peer     {'connected' if peer['connected'] else 'not there':10} {peer['nid']} {peer['address']}")
    return lines if host["peers"] or host["forge"] == "stand-in" else [*lines, "  no peers"]


def _project(each: dict[str, Any]) -> list[str]:
    marks = {True: "yes", False: "NO", None: "?"}
    seeds = "?" if each["synced"] is None else f"{each['synced']} of {len(each['seeds'])} seeds"
    push = each["last_push"]
    last = f"{push['kind']} {push['commit'][:12]} at {push['at'][:19]}" if push else "never"
    return [
        f"project {each['name']}: {each['state']} {each['remote'] or ''}",
        f"  registered {marks[each['registered']]}, reachable {marks[each['reachable']]}, in sync with {seeds}",
        f"  {each['default_branch']} is at {(each['head'] or '?')[:12]}, last push: {last}",
    ]


COMMANDS = (health,)
