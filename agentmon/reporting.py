"""Reports of one service: repeats counted, hints composed, flushed while the service runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from agentmon import events
from agentmon.events import Event, now_ns
from agentmon.repeats import Repeats

SendOf = Callable[[dict[str, Any], int, str, int], Awaitable[None]]


class Reporter:
    """:param send: what takes an event's dict to the daemon (service.Control.report).
    :param send_of: the same with a socket's protocol and port (service.Control.report_of)."""

    def __init__(self, send: Callable[[dict[str, Any]], None], send_of: SendOf | None = None) -> None:
        self._send = send
        self._send_of = send_of
        self._repeats = Repeats()

    def note(self, slot: int, event: Event) -> None:
        """Report now if this is new (bottle, kind, host, address, reason, what was found), else with the next count."""
        first = self._first(slot, event)
        if first is not None:
            self._send(msgspec.to_builtins(first))

    def note_of(self, slot: int, event: Event, proto: str, port: int) -> Awaitable[None] | None:
        """As note(), naming the process that holds `port` in the bottle: to be awaited before the bottle is answered;
        None: nothing to wait for."""
        first = self._first(slot, event)
        if first is None:
            return None
        if self._send_of is None:
            self._send(msgspec.to_builtins(first))
            return None
        return self._send_of(msgspec.to_builtins(first), slot, proto, port)

    def each(self, event: Event) -> None:
        """Report it by itself, however often the like of it was told."""
        self._send(msgspec.to_builtins(_now(event)))

    async def each_of(self, slot: int, event: Event, proto: str, port: int) -> None:
        """Report it although it is not new: the process that holds `port` may be. The daemon, which alone knows that,
        tells the same thing of the same process once."""
        if self._send_of is not None:
            await self._send_of(msgspec.to_builtins(_now(event)), slot, proto, port)

    def _first(self, slot: int, event: Event) -> Event | None:
        event = _now(event)
        found = str(event.detail.get("detector", "")), str(event.detail.get("where", "")).partition(" ")[0]
        key = (event.kind, event.verdict, event.reason, event.host, event.dst, event.port, *found)
        return self._repeats.note(slot, key, event, time.monotonic_ns())

    def flush(self) -> None:
        for event in self._repeats.flush(time.monotonic_ns(), now_ns()):
            self._send(msgspec.to_builtins(event))

    def drop(self, slot: int) -> None:
        """The bottle is gone: what was counted of it is reported now."""
        for event in self._repeats.drop(slot, now_ns()):
            self._send(msgspec.to_builtins(event))

    async def run(self) -> None:
        """Flush once a second until cancelled."""
        while True:
            await asyncio.sleep(1)
            self.flush()


def _now(event: Event) -> Event:
    return msgspec.structs.replace(event, ts_ns=now_ns(), hint=events.hint(event))
