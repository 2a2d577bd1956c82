"""`hyperagent doctor`: one line a check, each failure with its mend. Exit code 0 only where everything is right."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from hyperagent_common import settings
from hyperagent_common.errors import HyperagentError
from hyperagent_tasks import checks
from hyperagent_tasks.checks import Check
from hyperagent_tasks.parts import Parts

NOT_RIGHT = 5


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
def doctor(as_json: bool) -> None:
    """Look at every part of this host. Exits 0 where all is right, 5 where something is not, 2 on wrong settings."""
    try:
        parts = Parts(settings.load())
        found = checks.examine(parts)
        chosen = dict(parts.chosen.__dict__) if all(c.name != "parts" for c in found) else {}
    except HyperagentError as error:
        found, chosen = [Check("settings", False, str(error))], {}
    ok = all(check.ok for check in found)
    if as_json:
        click.echo(json.dumps({"ok": ok, "parts": chosen, "checks": [asdict(check) for check in found]}))
    else:
        _print(found)
    sys.exit(0 if ok else (2 if found[0].name == "settings" else NOT_RIGHT))


def _print(found: list[Check]) -> None:
    for check in found:
        click.echo(f"{'ok  ' if check.ok else 'FAIL'} {check.name:10} {check.message}")
        if check.mend and not check.ok:
            click.echo(f"     {'':10} mend: {check.mend}")
