"""The command group; commands of the worker's room (doctor, gateway) come by entry point, never by import."""

from __future__ import annotations

import importlib.metadata

import click

from hyperagent_api.cli import health, host, projects, steer, work
from hyperagent_common import __version__

GROUP = "hyperagent.commands"


class Commands(click.Group):
    """Our commands, and those the distribution names in the group `hyperagent.commands`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names."""
        return sorted({*super().list_commands(ctx), *(e.name for e in importlib.metadata.entry_points(group=GROUP))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, loaded when it is asked for; a broken one says so and breaks no other."""
        known = super().get_command(ctx, cmd_name)
        if known is not None:
            return known
        for entry in importlib.metadata.entry_points(group=GROUP, name=cmd_name):
            try:
                loaded: click.Command = entry.load()
            except Exception as error:  # somebody else's command: whatever it raises, the CLI lives on
                return _broken(cmd_name, error)
            return loaded
        return None


def _broken(name: str, error: Exception) -> click.Command:
    def say() -> None:
        raise click.ClickException(f"the command {name} cannot be loaded: {error}")

    return click.Command(name, callback=say, help="(cannot be loaded)")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hyperagent")
def main() -> None:
    """HyperAgent turns a plan into reviewed patches on Radicle.

    Exit codes: 0 done, 1 a workflow or draft failed, 2 wrong input, 3 not found, 4 refused, 5 not ready or not reachable,
    130 interrupted.
    """


for command in (*projects.COMMANDS, *work.COMMANDS, *health.COMMANDS, *steer.COMMANDS, *host.COMMANDS):
    main.add_command(command)
