"""`agentmon ledger check|backup|export`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from agentmon.cli.console import emit, emit_json, example
from agentmon.cli.when import since_ns
from agentmon.render.ledger import check_object, check_text, csv_lines


@click.group(epilog=example("sudo agentmon ledger check"))
def ledger() -> None:
    """Check, back up and export the ledger."""


@ledger.command(epilog=example("sudo agentmon ledger check", "sudo agentmon ledger check --json"))
@click.option("--json", "as_json", is_flag=True, help="One object.")
def check(as_json: bool) -> int:
    """Check the ledger's file: its pages, its tables and triggers, references, every total against its rows, holds.
    Works while it is in use. Exit status 1 if anything is wrong."""
    from agentmon.cli.books import check_ledger

    findings = check_ledger()
    if as_json:
        emit_json(check_object(findings))
    else:
        emit(check_text(findings))
    return 1 if any(finding.problems for finding in findings) else 0


@ledger.command(epilog=example("sudo agentmon ledger backup /var/backups/agentmon-ledger.db"))
@click.argument("file", type=click.Path(path_type=Path))
def backup(file: Path) -> None:
    """Copy the ledger to FILE while it is in use."""
    from agentmon.cli.books import back_up_ledger

    back_up_ledger(file)
    emit(f"the ledger is copied to {file}")


@ledger.command(
    epilog=example("sudo agentmon ledger export", "sudo agentmon ledger export audit --since 7d --csv > audit.csv")
)
@click.argument("what", type=click.Choice(["usage", "folded", "enforcement", "audit", "approvals"]), default="usage")
@click.option("--since", metavar="TIME", help="15m, 2h, 7d ago, or 2026-01-31T12:00:00Z.")
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values with a header.")
@click.option("--json", "as_json", is_flag=True, help="One object per line (the default).")
def export(what: str, since: str | None, as_csv: bool, as_json: bool) -> None:
    """Write every row of usage (the default), of the sums that old usage is kept as (folded), of enforcement, audit
    or approvals, oldest first."""
    from agentmon.cli.books import export_ledger

    if as_csv and as_json:
        raise click.UsageError("--csv and --json: choose one")
    rows = export_ledger(what, since_ns(since, time.time_ns()))
    if as_csv:
        for line in csv_lines(rows):
            sys.stdout.write(line + "\r\n")
    else:
        for row in rows:
            emit_json(row)
