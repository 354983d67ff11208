"""`agentmon budget show|set`."""

from __future__ import annotations

from typing import Any

import click

from agentmon.cli.console import emit, emit_json, example
from agentmon.cli.control import ask
from agentmon.errors import BadInput
from agentmon.render.budgets import budgets_table

_KINDS = ("agent", "bottle", "parent", "host", "ceiling")
_JSON = click.option("--json", "as_json", is_flag=True, help="One object per line instead of a table.")


@click.group(epilog=example("agentmon budget show build-17"))
def budget() -> None:
    """Show and set budgets of running bottles."""


@budget.command(epilog=example("agentmon budget show build-17", "sudo agentmon budget show --json"))
@click.argument("scope", required=False)
@_JSON
def show(scope: str | None, as_json: bool) -> None:
    """Show the budgets that hold for SCOPE, a running bottle: used, held, remaining. Without SCOPE: every budget, from
    the ledger."""
    if scope is not None:
        _print(ask("budget_show", bottle=scope), as_json)
        return
    from agentmon.cli.books import budget_rows

    _print(budget_rows(), as_json)


@budget.command(
    "set",
    epilog=example(
        "sudo agentmon budget set build-17 claude 400000",
        "sudo agentmon budget set host:host claude 5000000 --per day",
        "sudo agentmon budget set parent:base '*' 900000",
    ),
)
@click.argument("scope")
@click.argument("provider")
@click.argument("tokens", type=click.IntRange(min=1))
@click.option(
    "--per",
    type=click.Choice(["run", "hour", "day", "week", "month"]),
    help="Window of the budget, with KIND:NAME. Default: run for agent and bottle, month for the others.",
)
@_JSON
def set_(scope: str, provider: str, tokens: int, per: str | None, as_json: bool) -> None:
    """Set the budget of SCOPE for PROVIDER to TOKENS in all.

    SCOPE is a running bottle: what governs it is set. Or KIND:NAME of what `budget show` lists (agent, bottle, parent,
    host, ceiling): the budget there, for all that are charged to it; root only.
    """
    kind, colon, name = scope.partition(":")
    wanted = f"{provider}={tokens}"
    if not colon:
        if per:
            raise BadInput(
                "--per goes with KIND:NAME", f"agentmon budget set bottle:{scope} {provider} {tokens} --per {per}"
            )
        _print(ask("budget_set", bottle=scope, budget=wanted), as_json)
        return
    if kind not in _KINDS or not name:
        raise BadInput(
            f"scope {scope!r} is not KIND:NAME", f"kinds: {', '.join(_KINDS)}; agentmon budget show lists them"
        )
    ask("budget_set", scope=kind, name=name, budget=wanted, per=per or ("run" if kind in _KINDS[:2] else "month"))
    from agentmon.cli.books import budget_rows

    _print([row for row in budget_rows() if (row["scope"], row["name"]) == (kind, name)], as_json)


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        for row in rows:
            emit_json(row)
    else:
        emit(budgets_table(rows) or "no budget is defined\n")
