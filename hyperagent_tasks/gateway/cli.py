"""`hyperagent gateway`: serve the gateway of this host, or check a scenario file."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click

from hyperagent_common import settings, telemetry
from hyperagent_common.errors import HyperagentError
from hyperagent_tasks.gateway import scenario
from hyperagent_tasks.gateway.config import from_settings
from hyperagent_tasks.gateway.server import serve


@click.command()
@click.option("--check", "file", type=click.Path(path_type=Path), help="Check a scenario file and serve nothing.")
def gateway(file: Path | None) -> None:
    """Serve the model gateway of this host until SIGTERM. Exits 2 on wrong settings or a wrong scenario."""
    try:
        if file is not None:
            scripts = scenario.load(file)
            click.echo(f"{file}: scripts for {', '.join(scripts)}")
            return
        loaded = settings.load()
        telemetry.configure(loaded, "gateway")
        asyncio.run(serve(from_settings(loaded)))
    except HyperagentError as error:
        click.echo(str(error), err=True)
        sys.exit(2)
