"""Events as groups for people: what the same program tried in the same place, once, with how often and when. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Any

from agentmon.events import TRAFFIC
from agentmon.render.events import hint_line, sentence
from agentmon.render.words import clock, printable

_GROUPED = TRAFFIC | {"bypass", "escape"}
_SAME = (
    "bottle",
    "kind",
    "verdict",
    "reason",
    "layer",
    "comm",
    "proto",
    "host",
    "port",
    "rule",
    "path",
    "library",
    "hint",
)


@dataclass(slots=True)
class _Group:
    last: Mapping[str, Any]
    first_ts: str
    count: int = 0
    pids: set[int] = field(default_factory=set)

    def add(self, event: Mapping[str, Any]) -> None:
        self.last = event
        self.count += max(int(event.get("count") or 0), 1)
        if event.get("pid"):
            self.pids.add(int(event["pid"]))


def grouped(events: Iterable[Mapping[str, Any]], zone: tzinfo | None = None) -> str:
    """A paragraph for each group, by the time of its last event; what happened to bottles stands alone.

    :param events: the contract's JSON objects, oldest first. Only one of each group is kept.
    """
    groups: dict[tuple[Any, ...], _Group] = {}
    for number, event in enumerate(events):
        key = _key(event) if event.get("kind") in _GROUPED else (number,)
        group = groups.pop(key, None) or _Group(event, str(event.get("ts", "")))
        group.add(event)
        groups[key] = group  # the last one last
    return "".join(_paragraph(group, zone) for group in groups.values())


def _key(event: Mapping[str, Any]) -> tuple[Any, ...]:
    names = tuple((event.get("detail") or {}).get("names", ()))
    where = () if event.get("host") else (names[:1] or event.get("dst"))
    return (*(event.get(name) for name in _SAME), where)


def _paragraph(group: _Group, zone: tzinfo | None) -> str:
    event = dict(group.last)
    first, last = clock(group.first_ts, zone), clock(str(event.get("ts", "")), zone)
    if event.get("kind") in _GROUPED:
        event["count"] = group.count
    if len(group.pids) > 1:
        event |= {"pid": 0, "comm": f"{event.get('comm') or 'a program'} ({len(group.pids)} processes)"}
    when = first if first == last else f"{first}–{last}"
    return f"{when} {printable(str(event.get('bottle') or '-'))}: {sentence(event)}\n{hint_line(event)}"
