"""Events on their way to people: stored by a writer thread, sent to followers, counted per bottle and layer.

Nothing that decides waits for this: a queue that is full drops the event and counts it (`lost`).
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from agentmon import events
from agentmon.events import Event
from agentmon.ledger.events_store import EventStore, EventsTrouble, read

_QUEUE = 20_000


class EventLog:
    """One per daemon. add() is called in the loop and never blocks.

    :param log: the settings' `log`; with "off" a bottle's traffic is counted and neither stored nor shown, whoever
        reports it. What happens to bottles (cuts, policies, tampering, the daemon's own) is told all the same."""

    def __init__(self, path: str, *, max_bytes: int, max_age_s: int, log: str = "blocks") -> None:
        self._silent = events.TRAFFIC if log == "off" else frozenset()
        self._path = path
        self._limits = (max_bytes, max_age_s)
        self._queue: queue.Queue[Event | threading.Event | None] = queue.Queue(_QUEUE)
        self._followers: set[Callable[[dict[str, Any]], None]] = set()
        self.refused: dict[str, Counter[str]] = {}  # bottle → layer → refusals
        self.lost = 0
        self._thread = threading.Thread(target=self._write, name="events")
        self._thread.start()

    def add(self, event: Event) -> Event:
        """Complete (time, hint), count, store and show one event; returns it as stored."""
        if not event.ts_ns:
            event = msgspec.structs.replace(event, ts_ns=events.now_ns())
        if (hint := events.hint(event)) != event.hint:
            event = msgspec.structs.replace(event, hint=hint)
        if event.verdict == "refused" and event.bottle and event.layer not in {"daemon", ""}:
            self.refused.setdefault(event.bottle, Counter())[event.layer] += max(event.count, 1)
        if event.kind in self._silent and event.layer != "daemon":
            return event
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            self.lost += 1
        shown = events.to_dict(event)
        for follower in tuple(self._followers):
            follower(shown)
        return event

    def follow(self, follower: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        """Call `follower` with every event from now on; returns what ends that."""
        self._followers.add(follower)
        return lambda: self._followers.discard(follower)

    def query(self, *, bottle: str, kind: str, since_ns: int) -> Iterator[dict[str, Any]]:
        """Stored events, oldest first, as the contract's JSON objects. :raises EventsTrouble: they cannot be read."""
        for _, event in read(self._path, bottle=bottle, kind=kind, since_ns=since_ns):
            yield events.to_dict(event)

    async def flushed(self) -> None:
        """Return when everything added so far can be read from the store."""
        mark = threading.Event()
        self._queue.put(mark)
        await asyncio.to_thread(mark.wait, 5.0)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(5.0)

    def _write(self) -> None:
        max_bytes, max_age_s = self._limits
        try:
            store = EventStore(self._path, max_bytes=max_bytes, max_age_s=max_age_s)
        except EventsTrouble as e:
            print(f"warning: {e}; events are shown to followers only", file=sys.stderr)
            store = None
        self._drain(store)
        if store is not None:
            store.close()

    def _drain(self, store: EventStore | None) -> None:
        while True:
            batch: list[Event] = []
            marks: list[threading.Event] = []
            item = self._queue.get()
            last = item is None
            while item is not None:
                if isinstance(item, threading.Event):
                    marks.append(item)
                else:
                    batch.append(item)
                if len(batch) >= 1000:
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
                last = item is None
            if batch:
                try:
                    if store is not None:
                        store.append(batch)
                except EventsTrouble as e:  # a full disk must not end the daemon; enforcement goes on
                    self.lost += len(batch)
                    print(f"warning: {len(batch)} events not stored: {e}, ignoring", file=sys.stderr)
            for mark in marks:
                mark.set()
            if last:
                return
