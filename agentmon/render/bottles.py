"""`agentmon ps` as a table. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentmon.render.table import table
from agentmon.render.words import command, duration, printable, tokens

_HEAD = ("BOTTLE", "STATE", "AGE", "PROCS", "USED", "REMAINING", "ADDRESS", "COMMAND")


def bottles_table(rows: Sequence[Mapping[str, Any]], now_ns: int) -> str:
    """One line per bottle; an observed one says so in its state, on every display; a stale one: see stale()."""
    return table(_HEAD, [_row(row, now_ns) for row in rows], right=frozenset({2, 3, 4, 5}))


def stale(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each newer file that cannot be used, and whose bottles go on with what was in force."""
    bottles: dict[str, list[str]] = {}
    for row in rows:
        if row.get("stale"):
            bottles.setdefault(printable(str(row["stale"])), []).append(printable(str(row["bottle"])))
    return [f"{what}: what was in force stays ({', '.join(names)})" for what, names in bottles.items()]


def _row(row: Mapping[str, Any], now_ns: int) -> tuple[str, ...]:
    used, remaining = _tightest(row.get("budgets") or ())
    saved = " (saved)" if row.get("slot", 0) is None else ""
    state = (
        str(row["phase"]) + saved + (" OBSERVE" if row.get("observe") else "") + (" STALE" if row.get("stale") else "")
    )
    return (
        printable(str(row["bottle"])), state, duration(max(0, now_ns - int(row["started_ns"]))),
        str(len(row["processes"])),
        used, remaining, str(row["addr4"]), command(row["command"], 40),
    )  # fmt: skip


def _tightest(budgets: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """(used, remaining) of the budget with the least left; ("-", "-") where none is defined."""
    limited = [b for b in budgets if b.get("tokens") is not None and b.get("remaining") is not None]
    if not limited:
        return "-", "-"
    least = min(limited, key=lambda b: int(b["remaining"]))
    return tokens(int(least["used"])), tokens(int(least["remaining"]))
