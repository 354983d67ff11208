"""What `agentmon report` says, as one value: what was used, cut, refused and decided in a period. Pure.

rows of the ledger, events ─▶ Report ─▶ report_markdown.py · report_html.py · as_object()
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentmon.events import TRAFFIC, rfc3339
from agentmon.render.events import hint_line, sentence

_REFUSED = TRAFFIC | {"bypass", "escape", "secret", "injection", "websocket"}
_TOP = 50  # refusals that are shown, the most frequent first
_USAGE = ("requests", "input", "cache_read", "cache_write", "output", "weighted", "estimated", "incomplete")

Section = tuple[str, list[tuple[str, ...]], str]  # heading, table with its head, what is said where it is empty


@dataclass(frozen=True, slots=True)
class Refusal:
    """The same thing refused `count` times. `hint`: the command that would allow it, "" for none."""

    bottle: str
    what: str
    layer: str
    count: int
    hint: str


@dataclass(frozen=True, slots=True)
class Used:
    """Tokens of one group: a provider, a model, a day …"""

    name: str
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Report:
    """`bottle` "": the whole host. `usage`: by what → groups; `days`: (day, provider) → weighted tokens; `more`
    kinds of refusals are not listed."""

    bottle: str
    since_ns: int
    until_ns: int
    zone: str
    usage: Mapping[str, tuple[Used, ...]]
    days: Mapping[tuple[str, str], int]
    budgets: tuple[Mapping[str, Any], ...]
    cuts: tuple[Mapping[str, Any], ...]
    approvals: tuple[Mapping[str, Any], ...]
    refusals: tuple[Refusal, ...]
    more: int
    layers: Mapping[str, int]
    events_from: str = ""  # time of the oldest event that was read; older ones may not be kept any more
    found: str = ""  # a sentence that goes before all others
    first: tuple[Section, ...] = ()  # sections that do

    @property
    def tokens(self) -> int:
        return sum(used.counts["weighted"] for used in self.usage.get("provider", ()))

    @property
    def refused(self) -> int:
        return sum(self.layers.values())


def used(rows: Iterable[Mapping[str, Any]], by: str) -> tuple[Used, ...]:
    """Of the ledger's sums, the largest first; days in their order."""
    groups = [Used(str(row[by]) or "-", {key: int(row[key] or 0) for key in _USAGE}) for row in rows]
    return tuple(groups if by == "day" else sorted(groups, key=lambda g: (-g.counts["weighted"], g.name)))


def refusals(events: Iterable[Mapping[str, Any]]) -> tuple[tuple[Refusal, ...], int, dict[str, int]]:
    """(the most frequent, how many more there are, by layer) of the contract's events."""
    counts: Counter[tuple[str, str, str, str]] = Counter()
    layers: Counter[str] = Counter()
    for event in events:
        if event.get("verdict") != "refused" or event.get("kind") not in _REFUSED:
            continue
        times = max(int(event.get("count") or 0), 1)
        one = {**event, "pid": 0, "count": 1}
        layer = str(event.get("layer", ""))
        hint = hint_line(event).strip().removeprefix("allow it: ").removeprefix("hint: ")
        counts[str(event.get("bottle", "")), sentence(one), layer, hint] += times
        layers[layer] += times
    found = [Refusal(bottle, what, layer, n, hint) for (bottle, what, layer, hint), n in counts.most_common()]
    return tuple(found[:_TOP]), max(0, len(found) - _TOP), dict(sorted(layers.items()))


def as_object(report: Report) -> dict[str, Any]:
    """`report --json`."""
    return {
        "bottle": report.bottle or None,
        "since": rfc3339(report.since_ns) if report.since_ns else None,
        "until": rfc3339(report.until_ns),
        "zone": report.zone,
        "tokens": report.tokens,
        "usage": {by: [{by: u.name, **u.counts} for u in groups] for by, groups in report.usage.items()},
        "budgets": [dict(row) for row in report.budgets],
        "cuts": [dict(row) for row in report.cuts],
        "approvals": [dict(row) for row in report.approvals],
        "refused": {"count": report.refused, "layers": dict(report.layers), "groups_left_out": report.more},
        "refusals": [
            {"bottle": r.bottle, "what": r.what, "layer": r.layer, "count": r.count, "hint": r.hint}
            for r in report.refusals
        ],
        "events_from": report.events_from or None,
    }


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[tuple[str, ...]]:
    """Text of a table, head first; nothing where there are no rows."""
    found = [tuple(str(cell) for cell in row) for row in rows]
    return [tuple(head), *found] if found else []


def sections(report: Report) -> list[Section]:
    """In the order of every front end."""
    groups = [
        (f"Usage by {by}", table((by, "requests", "input", "cache read", "cache write", "output", "weighted"), (
            (u.name, *(u.counts[k] for k in _USAGE[:6])) for u in found)), "nothing was used")
        for by, found in report.usage.items()
    ]  # fmt: skip
    budgets = table(("scope", "name", "provider", "per", "tokens", "used", "held", "remaining"), (
        [b.get(k, "") for k in ("scope", "name", "provider", "per", "tokens", "used", "held", "remaining")]
        for b in report.budgets))  # fmt: skip
    cuts = table(("when", "bottle", "what", "why", "by", "after ms", "result"), (
        (c.get("ts", ""), c.get("bottle", ""), c.get("policy", ""), c.get("trigger", ""), c.get("by", ""),
         _ms(c.get("latency_ns")), c.get("result", "")) for c in report.cuts))  # fmt: skip
    approvals = table(("when", "bottle", "host", "detector", "state", "by", "reason"), (
        [a.get(k, "") or "" for k in ("ts", "bottle", "host", "detector", "state", "by", "reason")]
        for a in report.approvals))  # fmt: skip
    refused = table(("times", "bottle", "what", "how to allow it"), (
        (r.count, r.bottle, r.what, r.hint) for r in report.refusals))  # fmt: skip
    return [
        *report.first,
        ("Refused", refused, "nothing was refused"),
        ("Cut, frozen, killed, resumed", cuts, "no bottle was"),
        ("Approvals", approvals, "nothing was asked"),
        *groups,
        ("Budgets now", budgets, "none is set"),
    ]


def _ms(ns: Any) -> str:
    return "" if ns is None else f"{int(ns) / 1e6:.1f}"
