"""Proposals as text for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from agentmon.render.table import table
from agentmon.render.words import duration, printable

_ENDED = ("ID", "ASKED", "BOTTLE", "WHAT", "WHERE", "TO", "STATE", "BY", "REASON")


def approvals_text(rows: Sequence[Mapping[str, Any]], now_ns: int) -> str:
    """A paragraph for each that waits; "" for none."""
    return "\n".join(_paragraph(row, now_ns) for row in rows)


def _paragraph(row: Mapping[str, Any], now_ns: int) -> str:
    left = duration(max(0, _ns(str(row["until"])) - now_ns))
    waiting = f", {row['requests']} requests wait" if int(row.get("requests") or 1) > 1 else ""
    target = printable(f"{row['method']} {row['host']}{row['path']}")
    lines = [
        f"{row['id']}  {printable(str(row['bottle']))}: {target}",
        f"   {printable(str(row['detector']))} in {printable(str(row['place']))}; {left} left{waiting}",
    ]
    if row.get("context"):
        lines.append(f"   {printable(str(row['context']))}")
    lines.append(f"   agentmon approvals approve|reject {row['id']} --reason WHY")
    return "\n".join(lines) + "\n"


def ended_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line for each that has ended; "" for none."""
    return table(
        _ENDED,
        [
            (
                str(row["id"]), _local(str(row["ts"])), printable(str(row["bottle"])), printable(str(row["detector"])),
                printable(str(row["place"])), printable(str(row["subject"])), str(row["state"]),
                "-" if row.get("uid") is None else f"uid {row['uid']}", printable(str(row["reason"])),
            )
            for row in rows
        ],
        right=frozenset({0}),
    )  # fmt: skip


def _ns(ts: str) -> int:
    return int(datetime.fromisoformat(ts[:19] + "+00:00").timestamp()) * 1_000_000_000


def _local(ts: str) -> str:
    return datetime.fromtimestamp(_ns(ts) / 1e9).strftime("%Y-%m-%d %H:%M:%S")
