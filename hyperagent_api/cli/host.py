"""Commands for those who run a host: up, down, status, config, db, demo."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from hyperagent_api import demo as demos
from hyperagent_api import supervise
from hyperagent_api.cli.output import emit, guarded, json_option, words
from hyperagent_common import db, settings


@click.command()
@click.option("--detach", is_flag=True, help="Start in the background; returns once the API and a worker answer.")
@json_option
@guarded
def up(detach: bool, as_json: bool) -> None:
    """Start HyperAgent on this host: Redis where none is set, gateway, workers, API. A second `up` changes nothing."""
    loaded = settings.load()
    running = supervise.pid_file(loaded).pid()
    if running is None:
        supervise.make_home(loaded)
        if not detach:
            supervise.Supervisor(loaded).run()
            return
        supervise.detach(loaded)
    said = _status(loaded)
    emit(said) if as_json else words(f"HyperAgent is up at {loaded.url} (pid {said['pid']}, home {loaded.home})")


@click.command()
@json_option
@guarded
def down(as_json: bool) -> None:
    """Stop what `up` started on this host. A second `down` changes nothing."""
    loaded = settings.load()
    stopped = supervise.stop(loaded)
    emit({"stopped": stopped}) if as_json else words("stopped" if stopped else "HyperAgent is not up.")


@click.command()
@json_option
@guarded
def status(as_json: bool) -> None:
    """Say whether HyperAgent is up on this host, and which parts it uses."""
    said = _status(settings.load())
    emit(said) if as_json else click.echo("\n".join(f"{key:8} {value}" for key, value in said.items()))


def _status(loaded: settings.Settings) -> dict[str, Any]:
    pid = supervise.pid_file(loaded).pid()
    setup = loaded.run_dir / "setup.json"
    parts = json.loads(setup.read_text()) if pid and setup.exists() else {}
    return {"up": pid is not None, "pid": pid, "api": loaded.url, "home": str(loaded.home), "parts": parts}


@click.command()
@json_option
@guarded
def config(as_json: bool) -> None:
    """Show the settings in force, secrets hidden."""
    shown = settings.load().shown()
    emit(shown) if as_json else click.echo("\n".join(f"{key:26} {value}" for key, value in shown.items()))


@click.group("db")
def database() -> None:
    """The database's schema."""


@database.command("upgrade")
@guarded
def upgrade() -> None:
    """Bring the schema to the newest version; a second run changes nothing."""
    loaded = settings.load()
    loaded.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    db.upgrade(loaded.db_url)
    words("The schema is the newest.")


@click.command()
@click.option("--again", is_flag=True, help="Run the plan once more, also where it ran before.")
@click.option("--home", type=click.Path(path_type=Path), help="Another HYPERAGENT_HOME.")
@json_option
@guarded
def demo(again: bool, home: Path | None, as_json: bool) -> None:
    """Run the main job: start HyperAgent, register an example, carry out a plan of two tasks, say where all is.

    HyperAgent stays up afterwards (`hyperagent down` stops it). A second run finds the finished workflow.
    """
    if home is not None:
        os.environ["HYPERAGENT_HOME"] = str(home.absolute())
    demos.run(settings.load(), again=again, as_json=as_json)


COMMANDS = (up, down, status, config, database, demo)
