"""Events told to one connection: history as fast as it is read, then what comes, with what a slow reader missed.

    events.db ─ pages, each when the one before is out ─▶ connection        EventLog ─ Following (bounded) ─▶ connection

A reader of history is waited for and misses nothing. A reader of what comes is not: what finds no room is counted, and
told as a `lost` event at the place where it would have been. Neither costs more than a page or a Following's room.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from agentmon import events, wire
from agentmon.daemon.connection import Connection
from agentmon.daemon.eventlog import EventLog
from agentmon.events import Event
from agentmon.wanted import Wanted

PAGE = 1_000  # events sent before the reader is waited for
ROOM = 5_000  # events kept for a reader that does not keep up


class Following:
    """What comes and is wanted, until it is taken. Called in the loop."""

    def __init__(self, wanted: Wanted, room: int = ROOM) -> None:
        self._wanted = wanted
        self._room = room
        self._waiting: list[dict[str, Any]] = []
        self._lost = 0
        self._some = asyncio.Event()

    def show(self, event: dict[str, Any]) -> None:
        """What finds no room is only counted."""
        if not self._wanted(event):
            return
        if len(self._waiting) < self._room:
            self._waiting.append(event)
        else:
            self._lost += 1
        self._some.set()

    async def take(self) -> list[dict[str, Any]]:
        """What has come since the last time, at least one; at its end, what was left out meanwhile."""
        await self._some.wait()
        self._some.clear()
        taken, self._waiting = self._waiting, []
        if self._lost:
            taken.append(_missed(self._wanted.bottle, self._lost))
            self._lost = 0
        return taken


def _missed(bottle: str, count: int) -> dict[str, Any]:
    reason = "this reader was too slow for what came; agentmon events shows what is stored"
    lost = Event("lost", bottle=bottle, layer="daemon", count=count, reason=reason, ts_ns=events.now_ns())
    return events.to_dict(lost)


async def tell(log: EventLog, connection: Connection, request: wire.Request) -> None:
    """Answer `events`: history, then (args `follow`) what comes, in one order, without a gap or a double. Returns when
    it is told, or the reader is gone.

    :raises EventsTrouble: the store cannot be read.
    """
    telling = asyncio.ensure_future(_tell(log, connection, request.id, request.args))
    gone = asyncio.ensure_future(connection.wait_closed())
    try:
        await asyncio.wait({telling, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (gone, telling):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await telling


async def _tell(log: EventLog, connection: Connection, number: int, args: Mapping[str, Any]) -> None:
    wanted = Wanted.of(args)
    since_ns = int(args.get("since_ns") or 0)

    async def told(after: int, until: int) -> int:
        while page := await log.page(wanted, since_ns=since_ns, after=after, until=until, limit=PAGE):
            for _, event in page:
                connection.send(wire.Item(number, event))
            await connection.drained()
            after = page[-1][0]
        return after

    last = await told(0, await log.flushed())
    if not args.get("follow"):
        connection.send(wire.Reply(number, {"lost": log.lost}))
        return
    last = await told(last, await log.flushed())  # a long history is not caught up with in memory
    following = Following(wanted)
    end, mark = await log.follow_from(following.show)
    try:
        await told(last, await log.stored(mark))
        while True:
            for event in await following.take():
                connection.send(wire.Item(number, event))
            await connection.drained()
    finally:
        end()
