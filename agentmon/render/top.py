"""The dashboard's view as text and as JSON, and the cells of its table. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentmon.events import rfc3339
from agentmon.render.table import table
from agentmon.render.words import duration, printable
from agentmon.tui.model import Line, Meter, View

HEAD = ("BOTTLE", "STATE", "BUDGET", "USED", "/MIN", "LASTS", "REFUSED", "LIVE")
_BAR = 8


def bar(meter: Meter, width: int = _BAR) -> str:
    """`█` used, `▒` held, `·` left; readable without colour. "" without a budget."""
    if not meter.limit:
        return ""
    used = min(width, round(width * meter.used / meter.limit))
    held = min(width - used, round(width * meter.held / meter.limit))
    return "█" * used + "▒" * held + "·" * (width - used - held)


def short(count: int) -> str:
    """950, 12.3k, 4.5M: at most five characters."""
    for size, letter in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if count >= size:
            value = count / size
            return f"{value:.1f}{letter}" if value < 99.95 else f"{value:.0f}{letter}"
    return str(count)


def cells(line: Line) -> tuple[str, ...]:
    """As HEAD."""
    meter = line.meter
    used = f"{short(meter.used)}/{short(meter.limit)}" if meter.limit else (short(meter.used) if meter.used else "-")
    return (
        "  " * line.depth + printable(line.name),
        line.state,
        bar(meter),
        used,
        short(line.burn) if line.burn else "-",
        "-" if line.left_s is None else duration(line.left_s * 1_000_000_000),
        short(line.refused) if line.refused else "-",
        str(line.live) if line.live else "-",
    )


def text(view: View) -> str:
    """`top --once`."""
    found = table(HEAD, [cells(line) for line in view.lines], right=frozenset({3, 4, 5, 6, 7}))
    said = [problem for problem in (view.problem, view.blind) if problem]
    waiting = [f"{len(view.approvals)} proposals wait: agentmon approvals list"] if view.approvals else []
    return "\n".join([found.rstrip("\n"), *said, *waiting])


def as_object(view: View) -> dict[str, Any]:
    """`top --once --json`."""
    return {
        "ts": rfc3339(view.at_ns),
        "problem": view.problem or view.blind or None,
        "lines": [_line(line) for line in view.lines],
        "live": [
            {"bottle": r.bottle, "provider": r.provider, "model": r.model, "held": r.held} for r in view.live
        ],
        "approvals": [dict(row) for row in view.approvals],
    }  # fmt: skip


def _line(line: Line) -> Mapping[str, Any]:
    meter = line.meter
    return {
        "name": line.name, "depth": line.depth, "bottle": line.bottle or None, "state": line.state,
        "budget": {"of": meter.of, "used": meter.used, "held": meter.held, "tokens": meter.limit,
                   "remaining": meter.remaining} if meter.limit else None,
        "burn_per_min": line.burn, "exhausted_in_s": line.left_s, "refused": dict(line.layers), "live": line.live,
        "processes": line.processes,
    }  # fmt: skip
