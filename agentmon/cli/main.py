"""The command group, and the one place where an error becomes a message and an exit status.

1 anything else   2 usage or bad input   3 refused   4 the host lacks something   5 daemon not reachable
`run`: the command's own status; 125 for every failure of agentmon's own
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from agentmon import __version__
from agentmon.cli.console import complain
from agentmon.errors import AgentmonError, BadInput

EXIT_OWN = 125
_COMMANDS = {  # name: (module in agentmon.cli, its attribute, what it does)
    "daemon": ("service", "daemon", "Run the daemon in the foreground."),
    "run": ("run", "run", "Run a command in a new bottle."),
    "attach": ("attach", "attach", "Supervise what already runs: a container, a process, a namespace."),
    "detach": ("attach", "detach", "Let go of what was attached; it goes on without being held."),
    "ps": ("listing", "ps", "List running bottles."),
    "top": ("top", "top", "Watch bottles, budgets and refusals in a terminal, and act on them."),
    "events": ("listing", "events", "Show what was refused, and how to allow it."),
    "usage": ("listing", "usage", "Show tokens used."),
    "report": ("report", "report", "Report what was used, refused, cut and decided."),
    "ci": ("ci", "ci", "Observe or hold a CI job, and fail when it reached something new."),
    "cut": ("operator", "cut", "Cut a bottle off from everything but its proxy and resolver."),
    "freeze": ("operator", "freeze", "Cut a bottle and stop its processes."),
    "resume": ("resume", "resume", "Let a cut or frozen bottle go on."),
    "kill": ("operator", "kill", "End a bottle and every process in it."),
    "allow": ("operator", "allow", "Add a rule to a running bottle."),
    "deny": ("operator", "deny", "Take something away from a running bottle."),
    "approvals": ("approvals", "approvals", "Decide on what looks like a secret and waits."),
    "budget": ("budget", "budget", "Show and set budgets."),
    "policy": ("policy", "policy", "Check, explain and compare policies."),
    "audit-native": ("audit_native", "audit_native", "List native code that could connect behind the guard's back."),
    "audit": ("audit", "audit", "Show who changed what, when."),
    "ledger": ("ledger", "ledger", "Check, back up and export the ledger."),
    "posture": ("posture", "posture", "Report what agentmon's promises rest on, on this host, now."),
    "self-check": ("posture", "self_check", "The same as posture: self-check egress."),
    "drift": ("drift", "drift", "Compare a provider with what it was: certificate, shapes, usage."),
    "setup": ("setup_docker", "setup", "Make agentmon get along with what else runs on this host."),
    "demo": ("demo", "demo", "Show all of it against a local internet."),
    "completion": ("service", "completion", "Print a shell's completion script."),
}


class Lazy(click.Group):
    """A group that imports a command's module when the command is used: `agentmon --help` reads this file only."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f"agentmon.cli.{module}"), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            from agentmon.closest import closest

            meant = closest(args[0], _COMMANDS)
            raise BadInput(
                f"there is no command {args[0]!r}",
                f"did you mean: agentmon {meant}" if meant else "agentmon --help lists them",
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in _COMMANDS.items()])


@click.group(
    cls=Lazy, epilog="\b\nExample:\n  sudo agentmon run --allow api.example.com:443 -- curl https://api.example.com/"
)
@click.version_option(__version__, prog_name="agentmon")
def agentmon() -> None:
    """Run agents and jobs that nobody fully trusts: they reach what their policy allows, and stop when their token
    budget is spent."""


def main(argv: list[str] | None = None) -> int:
    """Run one command line; the exit status."""
    args = sys.argv[1:] if argv is None else argv
    own_failure = EXIT_OWN if args[:1] == ["run"] else 0
    try:
        result: Any = agentmon.main(args=args, prog_name="agentmon", standalone_mode=False)
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.exceptions.NoArgsIsHelpError as e:
        click.echo(e.format_message(), err=True)
        return own_failure or 2
    except click.UsageError as e:
        hint = f"{e.ctx.command_path} --help" if e.ctx else "agentmon --help"
        return _failed(e.format_message(), hint, own_failure or 2)
    except click.ClickException as e:
        return _failed(e.format_message(), "", own_failure or 2)
    except AgentmonError as e:
        return _failed(e.message, e.hint, own_failure or e.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return 130
    except Exception as e:  # noqa: BLE001 - people never see a traceback they did not ask for
        hint = "AGENTMON_DEBUG=1 shows where; please report it"
        return _failed(f"agentmon itself failed: {e!r}", hint, own_failure or 1)
    return result if isinstance(result, int) else 0


def _failed(message: str, hint: str, status: int) -> int:
    if os.environ.get("AGENTMON_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    complain(message, hint)
    return status
