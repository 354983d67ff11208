"""`agentmon ledger check|backup`."""

from __future__ import annotations

from pathlib import Path

import click

from agentmon.cli.console import emit, emit_json, example


@click.group(epilog=example("sudo agentmon ledger check"))
def ledger() -> None:
    """Check and back up the ledger."""


@ledger.command(epilog=example("sudo agentmon ledger check", "sudo agentmon ledger check --json"))
@click.option("--json", "as_json", is_flag=True, help="One object.")
def check(as_json: bool) -> int:
    """Check the ledger's file, and its totals against its rows. Exit status 1 if anything is wrong."""
    from agentmon.cli.books import check_ledger

    problems = check_ledger()
    if as_json:
        emit_json({"ok": not problems, "problems": problems})
    else:
        emit("\n".join(problems) or "the ledger is in order")
    return 1 if problems else 0


@ledger.command(epilog=example("sudo agentmon ledger backup /var/backups/agentmon-ledger.db"))
@click.argument("file", type=click.Path(path_type=Path))
def backup(file: Path) -> None:
    """Copy the ledger to FILE while it is in use."""
    from agentmon.cli.books import back_up_ledger

    back_up_ledger(file)
    emit(f"the ledger is copied to {file}")
