"""Reports of one service: repeats counted, hints composed, flushed while the service runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec

from agentmon.events import Event, allow_hint, now_ns
from agentmon.repeats import Repeats

# No allow rule would help.
_NO_HINT = frozenset({"deny", "inspected", "direct", "bad-name", "not-tls", "bad-sni", "slow", "rate", "limit"})


class Reporter:
    """:param send: what takes an event's dict to the daemon (service.Control.report)."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send
        self._repeats = Repeats()

    def note(self, slot: int, event: Event) -> None:
        """Report now if this is new (bottle, kind, host, address, reason), else with the next count."""
        hint = event.hint or ("" if event.reason in _NO_HINT else allow_hint(event))
        event = msgspec.structs.replace(event, ts_ns=now_ns(), hint=hint)
        key = (event.kind, event.verdict, event.reason, event.host, event.dst, event.port)
        first = self._repeats.note(slot, key, event, time.monotonic_ns())
        if first is not None:
            self._send(msgspec.to_builtins(first))

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
