"""`agentmon budget show|set`."""

from __future__ import annotations

from typing import Any

import click

from agentmon.cli.console import emit, emit_json, example
from agentmon.cli.control import ask
from agentmon.render.budgets import budgets_table

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


@budget.command("set", epilog=example("sudo agentmon budget set build-17 claude 400000"))
@click.argument("scope")
@click.argument("provider")
@click.argument("tokens", type=click.IntRange(min=1))
@_JSON
def set_(scope: str, provider: str, tokens: int, as_json: bool) -> None:
    """Set the budget of SCOPE, a running bottle, for PROVIDER to TOKENS in all."""
    _print(ask("budget_set", bottle=scope, budget=f"{provider}={tokens}"), as_json)


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        for row in rows:
            emit_json(row)
    else:
        emit(budgets_table(rows) or "no budget is defined\n")
