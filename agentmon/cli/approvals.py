"""`agentmon approvals list|approve|reject`: what waits for somebody to say whether it may leave a bottle."""

from __future__ import annotations

import time
from typing import Any

import click

from agentmon.cli.console import emit, emit_json, example, notice
from agentmon.cli.control import ask
from agentmon.cli.when import since_ns

_JSON = click.option("--json", "as_json", is_flag=True, help="Data instead of text.")
_REASON = click.option("--reason", metavar="R", required=True, help="Why: kept in the audit.")


@click.group(epilog=example("agentmon approvals list", 'agentmon approvals approve 3 --reason "our own test key"'))
def approvals() -> None:
    """Decide on what a bottle wants to send and looks like a secret. Its request waits meanwhile."""


@approvals.command(name="list", epilog=example("agentmon approvals list", "sudo agentmon approvals list --ended"))
@click.option("--bottle", metavar="B", help="Only of this bottle.")
@click.option("--ended", is_flag=True, help="What was decided, ran out of time or was withdrawn, from the ledger.")
@click.option("--since", metavar="TIME", help="With --ended: 15m, 2h, 7d ago, or 2026-01-31T12:00:00Z.")
@_JSON
def list_(bottle: str | None, ended: bool, since: str | None, as_json: bool) -> None:
    """Show what waits, oldest first: where it would go, what found it, and what stands around it, never the value."""
    from agentmon.render.approvals import approvals_text, ended_table

    if since and not ended:
        raise click.UsageError("--since goes with --ended: what waits is all shown")
    rows: list[dict[str, Any]]
    if ended:
        from agentmon.cli.books import ended_approvals

        rows = ended_approvals(bottle or "", since_ns(since, time.time_ns()))
    else:
        rows = [row for row in ask("approvals") if bottle in {None, row["bottle"]}]
    if as_json:
        for row in rows:
            emit_json(row)
    elif ended:
        emit(ended_table(rows) or "nothing was decided\n")
    else:
        emit(approvals_text(rows, time.time_ns()) or "nothing waits\n")


@approvals.command(epilog=example('agentmon approvals approve 3 --reason "our own test key"'))
@click.argument("number", metavar="ID", type=int)
@_REASON
@_JSON
def approve(number: int, reason: str, as_json: bool) -> None:
    """Let what proposal ID holds leave its bottle, to that host, now and until the bottle ends."""
    _decide("approve", number, reason, as_json)


@approvals.command(epilog=example('agentmon approvals reject 3 --reason "a production key"'))
@click.argument("number", metavar="ID", type=int)
@_REASON
@_JSON
def reject(number: int, reason: str, as_json: bool) -> None:
    """Refuse the request of proposal ID. The same value is asked about again when it is sent again."""
    _decide("reject", number, reason, as_json)


def _decide(verb: str, number: int, reason: str, as_json: bool) -> None:
    value = ask(verb, id=number, reason=reason)
    if as_json:
        emit_json(value)
        return
    emit(f"{number}: {value['state']}, {value['detector']} in {value['place']} to {value['host']} of {value['bottle']}")
    if verb == "approve":
        notice(f"this value may go to {value['host']} until {value['bottle']} ends")
