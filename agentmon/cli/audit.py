"""`agentmon audit`: who changed what, when."""

from __future__ import annotations

import time

import click

from agentmon.cli.console import emit, emit_json, example
from agentmon.cli.when import since_ns
from agentmon.render.audit import audit_table


@click.command(
    epilog=example("sudo agentmon audit --since 2h", "sudo agentmon audit --user alice --action resume --json")
)
@click.option("--since", metavar="TIME", help="15m, 2h, 7d ago, or 2026-01-31T12:00:00Z.")
@click.option("--user", metavar="U", help="Only by this user, a name or a uid.")
@click.option("--action", metavar="A", help="Only this: run, cut, freeze, resume, kill, allow, deny, budget …")
@click.option("--target", metavar="T", help="Only about this bottle or KIND:NAME.")
@click.option("--json", "as_json", is_flag=True, help="One object per line.")
def audit(since: str | None, user: str | None, action: str | None, target: str | None, as_json: bool) -> None:
    """Show every command that changed something, or tried to: when, who, what, to what, and how it ended. From the
    ledger, without a daemon; root only."""
    from agentmon.cli.books import audit_rows

    rows = [
        row for row in audit_rows(since_ns(since, time.time_ns()))
        if user in (None, row["user"], str(row["uid"])) and action in (None, row["action"])
        and target in (None, row["target"])
    ]  # fmt: skip
    if as_json:
        for row in rows:
            emit_json({key: row[key] for key in ("ts", "uid", "user", "action", "target", "detail", "id")})
    else:
        emit(audit_table(rows) or "nothing was changed\n")
