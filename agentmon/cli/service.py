"""`agentmon daemon`, `agentmon completion`."""

from __future__ import annotations

from pathlib import Path

import click

from agentmon.cli.console import example


@click.command(epilog=example("sudo agentmon daemon", "sudo agentmon daemon --settings ./settings.yml"))
@click.option(
    "--settings", type=click.Path(path_type=Path), help="Settings file.  [default: /etc/agentmon/settings.yml]"
)
@click.option("--until-idle", is_flag=True, help="End after the last bottle has ended.")
def daemon(settings: Path | None, until_idle: bool) -> None:
    """Run the daemon in the foreground, until a signal ends it.

    Bottles that an earlier daemon left running are adopted. `run` and `demo` start a daemon by themselves where none
    is running.
    """
    from agentmon.daemon.main import main

    main(settings, until_idle=until_idle)


@click.command(epilog=example("agentmon completion bash > /etc/bash_completion.d/agentmon"))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL."""
    from click.shell_completion import get_completion_class

    from agentmon.cli.main import agentmon

    kind = get_completion_class(shell)
    if kind is not None:
        click.echo(kind(agentmon, {}, "agentmon", "_AGENTMON_COMPLETE").source())
