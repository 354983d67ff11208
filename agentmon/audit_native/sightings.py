"""What layer 3 has seen of each file: its `bypass` events name the library that made the call. Pure."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

_DELETED = " (deleted)"  # proc(5), maps: the file was replaced while it was mapped


@dataclass
class Seen:
    """Calls of one library that the guard did not vouch for. `last` is the event's time, RFC 3339."""

    count: int = 0
    last: str = ""
    bottles: set[str] = field(default_factory=set)
    destinations: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Sightings:
    """By the library's path. `unknown` says why nothing is known; "" when the events could be read."""

    by_path: dict[str, Seen]
    unknown: str = ""

    def of(self, path: str) -> Seen | None:
        """Events name the path inside the bottle, which is the host's for everything that is mounted from it."""
        return self.by_path.get(path) or self.by_path.get(os.path.realpath(path))


def nothing_known(why: str) -> Sightings:
    return Sightings({}, why)


def collect(events: Iterable[Any]) -> Sightings:
    """From the contract's JSON objects; other kinds, and the reply at the end of a stream, are passed over."""
    found: dict[str, Seen] = {}
    for event in events:
        if not isinstance(event, dict) or event.get("kind") != "bypass" or not event.get("library"):
            continue
        seen = found.setdefault(str(event["library"]).removesuffix(_DELETED), Seen())
        seen.count += max(1, int(event.get("count", 1)))
        seen.last = max(seen.last, str(event.get("ts", "")))
        if event.get("bottle"):
            seen.bottles.add(str(event["bottle"]))
        where = event.get("host") or event.get("dst")
        if where:
            seen.destinations.add(f"{where}:{event['port']}" if event.get("port") else str(where))
    return Sightings(found)
