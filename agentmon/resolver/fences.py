"""Addresses of names that are held by relay or proxy are known before a direct rule can open them (DESIGN 3).

A bottle that has direct rules *and* names held at a deeper level gets these names looked up on its behalf as soon as it
is known, and again before the answers are old. Each look-up commits the addresses as the service's; the daemon then
opens none of them as direct, and fences off those that a direct rule covers. Wildcards cannot be looked up ahead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from agentmon import wire
from agentmon.policy.rules import Depth
from agentmon.views import View

EVERY_S = 20.0
FIRST_S = 2.0  # how long a direct name waits for the first round; what is slower is fenced when it comes
MAX_NAMES = 64
AT_ONCE = 8  # look-ups: the rest of the bottle's share of questions is its own


def held_names(view: View) -> list[tuple[str, int]]:
    """(name, port) of exact names that relay or proxy hold; [] where no direct rule could open their addresses."""
    rules = [rule for rule in view.policy.rules if not rule.deny]
    if not any(rule.depth is Depth.DIRECT for rule in rules):
        return []
    out: dict[str, int] = {}
    for rule in rules:
        if not rule.host or rule.wildcard or rule.depth is Depth.DIRECT:
            continue
        port = next((p for p in (443, 80) if view.policy.decide_name(rule.host, p).allowed), 0)
        if port:
            out.setdefault(rule.host, port)
    return list(out.items())[:MAX_NAMES]


class Fences:
    """:param look: looks a name up for a service and commits it (LookupDesk.looked)."""

    def __init__(self, look: Callable[[wire.Lookup], Awaitable[wire.Looked]]) -> None:
        self._look = look
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._ready: dict[int, asyncio.Event] = {}

    def set(self, view: View) -> None:
        """Begin anew for a bottle's new view."""
        self.drop(view.slot)
        names = held_names(view) if view.mode in {"enforce", "observe"} else []
        if names:
            self._ready[view.slot] = ready = asyncio.Event()
            self._tasks[view.slot] = asyncio.ensure_future(self._watch(view.slot, names, ready))

    def drop(self, slot: int) -> None:
        task = self._tasks.pop(slot, None)
        if task is not None:
            task.cancel()
        self._ready.pop(slot, None)

    async def known(self, slot: int) -> None:
        """Return when the first round is done, or after FIRST_S."""
        ready = self._ready.get(slot)
        if ready is not None and not ready.is_set():
            try:
                await asyncio.wait_for(ready.wait(), FIRST_S)
            except TimeoutError:
                return

    async def _watch(self, slot: int, names: list[tuple[str, int]], ready: asyncio.Event) -> None:
        places = asyncio.Semaphore(AT_ONCE)

        async def look(name: str, port: int) -> None:
            async with places:
                await self._look(wire.Lookup(0, slot, name, port))

        while True:
            await asyncio.gather(*(look(name, port) for name, port in names))
            ready.set()
            await asyncio.sleep(EVERY_S)
