"""Budgets as a table. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentmon.render.table import table
from agentmon.render.words import printable, tokens

_HEAD = ("SCOPE", "NAME", "PROVIDER", "PER", "TOKENS", "USED", "HELD", "REMAINING", "WHY")


def budgets_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per scope and provider, and why it decides or not; without a budget only what was used."""
    lines = [
        (
            str(row["scope"]), printable(str(row["name"])), str(row["provider"]), str(row["per"]),
            tokens(row["tokens"]), tokens(row["used"]), tokens(row["held"]), tokens(row["remaining"]),
            printable(str(row.get("why", ""))),
        )
        for row in rows
    ]  # fmt: skip
    return table(_HEAD, lines, right=frozenset({4, 5, 6, 7}))
