"""`agentmon audit-native`: what native code of an environment could do without the guard's knowledge."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agentmon.cli.console import emit, emit_json, example
from agentmon.cli.control import reachable, stream
from agentmon.errors import AgentmonError, BadInput

if TYPE_CHECKING:
    from agentmon.audit_native.sightings import Sightings


@click.command(
    epilog=example(
        "agentmon audit-native --venv .venv",
        "agentmon audit-native .venv/lib/python3.13/site-packages/uvloop --json",
        "agentmon audit-native --venv .venv --import-linter --source myapp --reviewed cryptography",
    )
)
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option(
    "--venv", metavar="DIR", type=click.Path(path_type=Path), help="A virtual environment, with its interpreter's own."
)
@click.option("--json", "as_json", is_flag=True, help="One object, with every native file.")
@click.option(
    "--import-linter", "as_contract", is_flag=True, help="Print a contract that forbids what could get past the guard."
)
@click.option("--source", "sources", multiple=True, metavar="PKG", help="Whom the contract binds.  [./pyproject.toml]")
@click.option("--reviewed", multiple=True, metavar="PKG", help="A package that the contract does not forbid.")
def audit_native(
    path: Path | None,
    venv: Path | None,
    as_json: bool,
    as_contract: bool,
    sources: tuple[str, ...],
    reviewed: tuple[str, ...],
) -> None:
    """List the native code below PATH, or of a virtual environment, that could reach the network without raising the
    audit events that the guard hears, by package and version, and whether the kernel layer has seen it do so.

    It goes by what a file imports and contains: what it could do, not what it does.
    """
    from agentmon.audit_native import linter, report, tree
    from agentmon.render.audit_native import audit_text

    if (path is None) == (venv is None):
        raise click.UsageError("name either a PATH or --venv DIR")
    if as_json and as_contract:
        raise click.UsageError("--json and --import-linter are two forms of output: choose one")
    bound = (sources or _root_packages()) if as_contract else ()
    found = tree.of_venv(venv) if venv is not None else tree.of_path(path or Path())
    with click.progressbar(found.files, label="reading", file=sys.stderr, hidden=not sys.stderr.isatty()) as files:
        audit = report.audit(found, files)
    if as_contract:
        emit(linter.contract(audit.findings, bound, reviewed))
        return
    data = report.to_dict(audit, _seen_by_layer3())
    if as_json:
        emit_json(data)
    else:
        emit(audit_text(data))


def _seen_by_layer3() -> Sightings:
    """From the daemon's events, or from what the last one stored. Never an error: without events it is unknown."""
    from agentmon.audit_native.sightings import collect, nothing_known
    from agentmon.cli.books import stored_events

    try:
        if reachable():
            return collect(stream("events", bottle="", kind="bypass", since_ns=0, follow=False))
        return collect(stored_events("", "bypass", 0))
    except AgentmonError as e:
        return nothing_known(e.message)


def _root_packages() -> tuple[str, ...]:
    """import-linter's own setting in ./pyproject.toml.

    :raises BadInput: there is none.
    """
    name = "pyproject.toml"
    hint = "name the packages that the contract binds: --source PKG"
    try:
        table = tomllib.loads(Path(name).read_text("utf-8"))["tool"]["importlinter"]
        packages = [table["root_package"]] if "root_package" in table else list(table["root_packages"])
    except (OSError, KeyError, TypeError) as e:
        raise BadInput("there is no [tool.importlinter] with root_packages in ./pyproject.toml", hint) from e
    except ValueError as e:
        raise BadInput(f"./{name}: is not TOML: {e}", hint) from e
    return tuple(str(package) for package in packages)
