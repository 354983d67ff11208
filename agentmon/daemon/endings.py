"""Ends the flows that a change of rules has left behind, apart from whatever comes next.

The change itself refuses their packets at once. Finding them takes a walk of conntrack's table, which all bottles and
the host share (10 ms and more): it runs in a thread of its own, and only what it found is ended in the kernel's thread.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agentmon.errors import AgentmonError
from agentmon.events import Event

if TYPE_CHECKING:
    from agentmon.daemon.app import Daemon


class Endings:
    """For one Daemon. A slot that is owed an ending while it waits for one gets a single one."""

    def __init__(self, daemon: Daemon) -> None:
        self._d = daemon
        self._owed: set[int] = set()
        self._one_walk = asyncio.Lock()

    def owe(self, slot: int) -> None:
        """The rules of a bottle have taken something back."""
        if slot not in self._owed:
            self._owed.add(slot)
            self._d.spawn(self._end(slot), "endings")

    async def _end(self, slot: int) -> None:
        nft = self._d.kernel.nft
        async with self._one_walk:
            self._owed.discard(slot)  # what is taken back from here on may be missed by this walk
            try:
                walk = await self._d.in_kernel(nft.walk, slot)
                found = await asyncio.to_thread(walk)
                await self._d.in_kernel(nft.end_refused, slot, found)
            except (OSError, AgentmonError) as error:
                bottle = self._d.host.bottles.get(slot)
                if bottle is not None:  # otherwise its flows ended with it
                    reason = f"flows that the rules refuse now were not ended, their packets are refused: {error}"
                    self._d.log.add(Event("daemon", "refused", bottle=bottle.name, layer="daemon", reason=reason))
