"""Events for people, once per distinct thing: the first at once, repeats as a count every few seconds. Pure.

A noisy bottle costs a bounded number of events: beyond MAX_KEYS distinct things in one period, the rest are counted
together, under the bottle and the reason alone.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import msgspec

from agentmon.events import Event

PERIOD_NS = 5_000_000_000
MAX_KEYS = 64  # distinct things of one bottle in one period


@dataclass(slots=True)
class _Seen:
    event: Event
    since_ns: int
    more: int = 0


class Repeats:
    """note() returns the event if it is to be reported now; flush() what piled up in periods that have ended."""

    def __init__(self) -> None:
        self._seen: dict[int, dict[Hashable, _Seen]] = {}

    def note(self, slot: int, key: Hashable, event: Event, now_ns: int) -> Event | None:
        seen = self._seen.setdefault(slot, {})
        known = seen.get(key)
        if known is None and len(seen) >= MAX_KEYS:
            key = ("others", event.reason)
            event = Event(event.kind, event.verdict, event.bottle, event.reason, event.layer, detail={"others": True})
            known = seen.get(key)
        if known is None:
            seen[key] = _Seen(event, now_ns)
            return msgspec.structs.replace(event, count=1)
        known.more += 1
        return None

    def flush(self, now_ns: int, ts_ns: int) -> list[Event]:
        """:param ts_ns: CLOCK_REALTIME for the events; `now_ns` is monotonic."""
        out = []
        for slot, seen in list(self._seen.items()):
            for key, known in list(seen.items()):
                if now_ns - known.since_ns < PERIOD_NS:
                    continue
                if known.more:
                    out.append(msgspec.structs.replace(known.event, count=known.more, ts_ns=ts_ns))
                    known.more = 0
                    known.since_ns = now_ns
                else:
                    del seen[key]
            if not seen:
                del self._seen[slot]
        return out

    def drop(self, slot: int, ts_ns: int) -> list[Event]:
        """Forget a bottle; what was counted and not yet reported."""
        seen = self._seen.pop(slot, {})
        return [msgspec.structs.replace(k.event, count=k.more, ts_ns=ts_ns) for k in seen.values() if k.more]
