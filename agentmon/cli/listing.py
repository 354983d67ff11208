"""Looking: ps, events, usage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import click

from agentmon.cli.completing import bottles
from agentmon.cli.console import emit, emit_json, example, notice
from agentmon.cli.control import ask, reachable, stream
from agentmon.cli.when import since_ns
from agentmon.events import rfc3339
from agentmon.render.bottles import bottles_table, stale
from agentmon.render.event_groups import grouped
from agentmon.render.events import paragraph
from agentmon.render.usage import usage_csv, usage_table
from agentmon.wanted import Wanted

_KINDS = (
    "connect", "send", "dns", "packet", "bypass", "escape", "socket", "request", "websocket", "secret", "injection",
    "approval", "usage", "count", "threshold", "cutoff", "freeze", "kill", "resume", "policy", "tamper", "lost",
    "daemon",
)  # fmt: skip
_LAYERS = ("host-nft", "bottle-nft", "bpf", "resolver", "relay", "proxy", "guard", "launcher", "daemon")
_SINCE = click.option("--since", metavar="TIME", help="15m, 2h, 7d ago, or 2026-01-31T12:00:00Z.")


@click.command(epilog=example("agentmon ps", "agentmon ps --json"))
@click.option("--json", "as_json", is_flag=True, help="One object per bottle.")
def ps(as_json: bool) -> None:
    """List running bottles."""
    rows: list[dict[str, Any]] = ask("ps")
    if not as_json:
        emit(bottles_table(rows, time.time_ns()) or "no bottle is running\n")
        for what in stale(rows):
            notice(what)
        return
    for row in rows:
        started, saved = row.pop("started_ns"), row.pop("saved_ns", None)
        emit_json(row | {"started": rfc3339(started), "saved": rfc3339(saved) if saved else None})


@click.command(
    epilog=example(
        "agentmon events --bottle build-17 --verdict refused --since 10m", "agentmon events -f --host '*.example.com'"
    )
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("--bottle", metavar="B", shell_complete=bottles, help="Only of this bottle.")
@click.option("--kind", metavar="K", type=click.Choice(_KINDS), help=f"Only of this kind: {', '.join(_KINDS)}.")
@click.option("--verdict", type=click.Choice(["refused", "observed", "allowed"]), help="Only with this verdict.")
@click.option("--layer", metavar="L", type=click.Choice(_LAYERS), help=f"Only of this layer: {', '.join(_LAYERS)}.")
@click.option("--host", metavar="H", help="Only about this name or address, or *.NAME: all that is below it.")
@_SINCE
@click.option("--each", is_flag=True, help="Each event by itself, not grouped.")
@click.option("--json", "as_json", is_flag=True, help="Each event as one object per line.")
def events(follow: bool, since: str | None, each: bool, as_json: bool, **wanted: str | None) -> None:
    """Show what happened: what was refused, to whom, by which layer, why, and the command that would allow it. The same
    thing is shown once, with how often it happened. Works without a daemon, but for -f."""
    found = _events(follow, Wanted.of(wanted), since_ns(since, time.time_ns()))
    if not (follow or each or as_json):
        emit(grouped(found))
        return
    for event in found:
        if as_json:
            emit_json(event)
        else:
            emit(paragraph(event))


def _events(follow: bool, wanted: Wanted, since: int) -> Iterator[dict[str, Any]]:
    """From the daemon, or from what the last one stored."""
    if follow or reachable():
        answers = stream("events", since_ns=since, follow=follow, **wanted.args())
        return (event for event in answers if isinstance(event, dict) and "kind" in event)  # not the reply at the end
    from agentmon.cli.books import stored_events

    return filter(wanted, stored_events(wanted.bottle, wanted.kind, since))


@click.command(epilog=example("agentmon usage", "agentmon usage --by model --since 7d --csv"))
@click.option(
    "--by", type=click.Choice(["bottle", "agent", "provider", "model", "day"]), default="bottle", show_default=True
)
@_SINCE
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values.")
@click.option("--json", "as_json", is_flag=True, help="One object per line.")
def usage(by: str, since: str | None, as_csv: bool, as_json: bool) -> None:
    """Show tokens used, from the ledger. Works without a daemon."""
    from agentmon.cli.books import folded_day, usage_rows

    began_ns = since_ns(since, time.time_ns())
    rows = usage_rows(by, began_ns)
    if day := folded_day(began_ns):
        notice(f"usage of {day} is kept as the sum of the day: all of it is counted, also what was before {since}")
    if as_json:
        for row in rows:
            emit_json(row)
    elif as_csv:
        emit(usage_csv(rows, by))
    else:
        emit(usage_table(rows, by) or "nothing was used\n")
        if rows and by == "day":
            notice(f"days of this host's time zone ({rows[0]['zone']})")
