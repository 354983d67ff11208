"""What an operator does to running bottles: cut, freeze, kill, allow, deny; resume is in resume.py."""

from __future__ import annotations

from typing import Any

import click

from agentmon.cli.completing import bottles
from agentmon.cli.console import complain, emit, emit_json, example
from agentmon.cli.control import ask
from agentmon.errors import BadInput, Refused

_JSON = click.option("--json", "as_json", is_flag=True, help="Data instead of text.")
_DRY = click.option("--dry-run", is_flag=True, help="Print what would be done to the kernel's rules; change nothing.")
_ALL = click.option("--all", "every", is_flag=True, help="Every running bottle.")
_DONE = {"cut": "cut", "freeze": "frozen", "resume": "resumed", "kill": "ended"}


def operate(verb: str, bottle: str | None, every: bool, as_json: bool, **args: Any) -> int:
    """Ask for one bottle or all, print what was done; the exit status."""
    if bool(bottle) == every:
        raise BadInput(
            "name one bottle, or say --all", f"agentmon ps lists them; agentmon {verb} --all takes every one"
        )
    value = ask(verb, **({"all": True} if every else {"bottle": bottle}), **args)
    return report(verb, bottle, value, as_json)


def report(verb: str, bottle: str | None, value: Any, as_json: bool) -> int:
    """Print what the daemon answered; the exit status, 3 if it refused one of several.

    :param bottle: the one that was named, None: every.
    """
    refused = value.get("refused") or [] if isinstance(value, dict) else []
    if as_json:
        emit_json(value if isinstance(value, dict) else {"bottle": bottle, "result": value})
    elif bottle:
        emit(f"{bottle}: {_DONE[verb]}{_how(value)}")
    else:
        done = value.get("bottles") or [] if isinstance(value, dict) else []
        emit("\n".join(f"{name}: {_DONE[verb]}" for name in done) or ("" if refused else "no bottle is running"))
    for one in refused:
        complain(f"{one['bottle']}: {one['message']}", str(one.get("hint") or ""))
    return Refused.exit_code if refused else 0


def _how(value: Any) -> str:
    """`resume` and `freeze` say what was done, where the daemon says it."""
    return f" ({value['result']})" if isinstance(value, dict) and value.get("result") else ""


@click.command(epilog=example("agentmon cut build-17", "agentmon cut --all"))
@click.argument("bottle", required=False, shell_complete=bottles)
@_ALL
@_JSON
def cut(bottle: str | None, every: bool, as_json: bool) -> int:
    """Cut BOTTLE off: from now on it reaches only its proxy and resolver, which refuse. Its processes go on."""
    return operate("cut", bottle, every, as_json)


@click.command(epilog=example("agentmon freeze build-17"))
@click.argument("bottle", required=False, shell_complete=bottles)
@_ALL
@_JSON
def freeze(bottle: str | None, every: bool, as_json: bool) -> int:
    """Cut BOTTLE and stop every process in it, until `agentmon resume`."""
    return operate("freeze", bottle, every, as_json)


@click.command(epilog=example("agentmon kill build-17", "agentmon kill --all"))
@click.argument("bottle", required=False, shell_complete=bottles)
@_ALL
@_JSON
def kill(bottle: str | None, every: bool, as_json: bool) -> int:
    """End every process of BOTTLE at once; nothing is saved."""
    return operate("kill", bottle, every, as_json)


def _rule(verb: str, bottle: str, rule: str, as_json: bool, dry_run: bool) -> None:
    value = ask(verb, bottle=bottle, rule=rule, **({"dry_run": True} if dry_run else {}))
    if as_json:
        emit_json(value if isinstance(value, dict) else {"bottle": bottle, "rule": rule})
    elif dry_run:
        emit("\n".join(value["steps"]) or "nothing would change")
    else:
        emit(f"{bottle}: {'allowed' if verb == 'allow' else 'denied'} {rule}")


@click.command(
    epilog=example("agentmon allow build-17 index.example.org:443", "agentmon allow build-17 tcp://198.51.100.7:5432")
)
@click.argument("bottle", shell_complete=bottles)
@click.argument("rule")
@_DRY
@_JSON
def allow(bottle: str, rule: str, as_json: bool, dry_run: bool) -> None:
    """Add RULE to what the running BOTTLE may reach. Connections that are open stay open."""
    _rule("allow", bottle, rule, as_json, dry_run)


@click.command(epilog=example("agentmon deny build-17 index.example.org"))
@click.argument("bottle", shell_complete=bottles)
@click.argument("rule")
@_DRY
@_JSON
def deny(bottle: str, rule: str, as_json: bool, dry_run: bool) -> None:
    """Deny RULE to the running BOTTLE; it wins over what is allowed. Open connections to it are closed."""
    _rule("deny", bottle, rule, as_json, dry_run)
