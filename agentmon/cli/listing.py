"""Looking: ps, events, usage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import click

from agentmon.cli.console import emit, emit_json, example
from agentmon.cli.control import ask, reachable, stream
from agentmon.cli.when import since_ns
from agentmon.events import rfc3339
from agentmon.render.bottles import bottles_table
from agentmon.render.events import paragraph
from agentmon.render.usage import usage_csv, usage_table

_KINDS = (
    "connect", "send", "dns", "packet", "bypass", "escape", "socket", "request", "websocket", "secret", "injection",
    "approval", "usage", "threshold", "cutoff", "freeze", "kill", "resume", "policy", "tamper", "lost", "daemon",
)  # fmt: skip
_SINCE = click.option("--since", metavar="TIME", help="15m, 2h, 7d ago, or 2026-01-31T12:00:00Z.")


@click.command(epilog=example("agentmon ps", "agentmon ps --json"))
@click.option("--json", "as_json", is_flag=True, help="One object per bottle.")
def ps(as_json: bool) -> None:
    """List running bottles."""
    rows: list[dict[str, Any]] = ask("ps")
    if not as_json:
        emit(bottles_table(rows, time.time_ns()) or "no bottle is running\n")
        return
    for row in rows:
        started = row.pop("started_ns")
        emit_json(row | {"started": rfc3339(started)})


@click.command(epilog=example("agentmon events -f", "agentmon events --bottle build-17 --kind dns --since 1h"))
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("--bottle", metavar="B", help="Only of this bottle.")
@click.option("--kind", metavar="K", type=click.Choice(_KINDS), help=f"Only of this kind: {', '.join(_KINDS)}.")
@_SINCE
@click.option("--json", "as_json", is_flag=True, help="One object per line.")
def events(follow: bool, bottle: str | None, kind: str | None, since: str | None, as_json: bool) -> None:
    """Show what happened: what was refused, to whom, by which layer, why, and the command that would allow it. Works
    without a daemon, but for -f."""
    for event in _events(follow, bottle or "", kind or "", since_ns(since, time.time_ns())):
        if not isinstance(event, dict) or "kind" not in event:
            continue  # the reply at the end
        if as_json:
            emit_json(event)
        else:
            emit(paragraph(event))


def _events(follow: bool, bottle: str, kind: str, since: int) -> Iterator[Any]:
    """From the daemon, or from what the last one stored."""
    if follow or reachable():
        return stream("events", bottle=bottle, kind=kind, since_ns=since, follow=follow)
    from agentmon.cli.books import stored_events

    return stored_events(bottle, kind, since)


@click.command(epilog=example("agentmon usage", "agentmon usage --by model --since 7d --csv"))
@click.option(
    "--by", type=click.Choice(["bottle", "agent", "provider", "model", "day"]), default="bottle", show_default=True
)
@_SINCE
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values.")
@click.option("--json", "as_json", is_flag=True, help="One object per line.")
def usage(by: str, since: str | None, as_csv: bool, as_json: bool) -> None:
    """Show tokens used, from the ledger. Works without a daemon."""
    from agentmon.cli.books import usage_rows

    rows = usage_rows(by, since_ns(since, time.time_ns()))
    if as_json:
        for row in rows:
            emit_json(row)
    elif as_csv:
        emit(usage_csv(rows, by))
    else:
        emit(usage_table(rows, by) or "nothing was used\n")
