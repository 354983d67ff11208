"""Events on their way to people: stored by a writer thread, sent to followers, counted per bottle and layer.

Nothing that decides waits for this: a queue that is full drops the event and counts it (`lost`).
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from agentmon import events
from agentmon.events import Event
from agentmon.ledger.events_store import EventStore, EventsTrouble, read
from agentmon.wanted import Wanted

_QUEUE = 20_000
_BATCH = 1000
_FLUSH_S = 10.0
_PAUSE_S = 0.01  # while the queue has no room for a mark
Follower = Callable[[dict[str, Any]], None]


@dataclass(slots=True, eq=False)
class Mark:
    """A place in the stream of events; its future gives the id of the last event before it, once that is stored."""

    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    last: asyncio.Future[int] = field(init=False)

    def __post_init__(self) -> None:
        self.last = self.loop.create_future()

    def reach(self, last: int) -> None:
        """Called by the writer's thread."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            self.loop.call_soon_threadsafe(self._set, last)

    def _set(self, last: int) -> None:
        if not self.last.done():
            self.last.set_result(last)


class EventLog:
    """One per daemon. add() is called in the loop and never blocks.

    :param log: the settings' `log`; with "off" a bottle's traffic is counted and neither stored nor shown, whoever
        reports it. What happens to bottles (cuts, policies, tampering, the daemon's own) is told all the same."""

    def __init__(self, path: str, *, max_bytes: int, max_age_s: int, log: str = "blocks") -> None:
        self._silent: frozenset[str]
        self.set_log(log)
        self._path = path
        self._limits = (max_bytes, max_age_s)
        self._queue: queue.Queue[Event | Mark | None] = queue.Queue(_QUEUE)
        self.followers: set[Follower] = set()
        self.refused: dict[str, Counter[str]] = {}  # bottle → layer → refusals
        self.lost = 0
        self._thread = threading.Thread(target=self._write, name="events")
        self._thread.start()

    def set_log(self, log: str) -> None:
        """The settings' `log` as it is now."""
        self._silent = events.TRAFFIC if log == "off" else frozenset()

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
        for follower in tuple(self.followers):
            follower(shown)
        return event

    def follow(self, follower: Follower) -> Callable[[], None]:
        """Call `follower` with every event from now on; returns what ends that."""
        self.followers.add(follower)
        return lambda: self.followers.discard(follower)

    async def follow_from(self, follower: Follower) -> tuple[Callable[[], None], Mark]:
        """As follow(), with the mark between what is stored and what `follower` is called with."""
        mark = await self._marked()
        return self.follow(follower), mark  # nothing is awaited since the mark was put

    def query(self, *, bottle: str, kind: str, since_ns: int) -> Iterator[dict[str, Any]]:
        """Stored events, oldest first, as the contract's JSON objects. :raises EventsTrouble: they cannot be read."""
        for _, event in read(self._path, bottle=bottle, kind=kind, since_ns=since_ns):
            yield events.to_dict(event)

    async def page(
        self, wanted: Wanted, *, since_ns: int, after: int, until: int, limit: int
    ) -> list[tuple[int, dict[str, Any]]]:
        """At most `limit` wanted events with ids in (after, until], oldest first; none: there are no more.

        :raises EventsTrouble: they cannot be read.
        """
        return await asyncio.to_thread(self._page, wanted, since_ns, after, until, limit)

    def _page(
        self, wanted: Wanted, since_ns: int, after: int, until: int, limit: int
    ) -> list[tuple[int, dict[str, Any]]]:
        found: list[tuple[int, dict[str, Any]]] = []
        for number, event in read(self._path, bottle=wanted.bottle, kind=wanted.kind, since_ns=since_ns, after=after):
            if number > until or len(found) >= limit:
                break
            shown = events.to_dict(event)
            if wanted(shown):
                found.append((number, shown))
        return found

    async def flushed(self) -> int:
        """Return when everything added so far can be read from the store: the id of the last event.

        :raises EventsTrouble: not in time.
        """
        return await self.stored(await self._marked())

    async def stored(self, mark: Mark) -> int:
        """The id of the last event before `mark`, when it can be read.

        :raises EventsTrouble: not in time.
        """
        try:
            return await asyncio.wait_for(mark.last, _FLUSH_S)
        except TimeoutError:
            what = f"events are not written: {self._path} takes more than {_FLUSH_S:.0f} s"
            raise EventsTrouble(what, "see how busy its disk is") from None

    async def _marked(self) -> Mark:
        mark = Mark()
        while True:
            try:
                self._queue.put_nowait(mark)
            except queue.Full:
                await asyncio.sleep(_PAUSE_S)
            else:
                return mark

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
            batch, end = self._batch()
            if batch:
                try:
                    if store is not None:
                        store.append(batch)
                except EventsTrouble as e:  # a full disk must not end the daemon; enforcement goes on
                    self.lost += len(batch)
                    print(f"warning: {len(batch)} events not stored: {e}, ignoring", file=sys.stderr)
            if isinstance(end, Mark):
                end.reach(self._last(store))
            elif end is None:
                return

    def _batch(self) -> tuple[list[Event], Event | Mark | None]:
        """Events until a mark or the end (None), which is the second; an event there: there may be more."""
        batch: list[Event] = []
        item = self._queue.get()
        while isinstance(item, Event):
            batch.append(item)
            if len(batch) >= _BATCH:
                break
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
        return batch, item

    def _last(self, store: EventStore | None) -> int:
        try:
            return store.last_id() if store is not None else 0
        except EventsTrouble:  # who reads it will say so
            return 0
