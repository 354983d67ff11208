"""Watching what others started: put back what its own root takes away, and clean up when nothing is left of it.

A flushed table, rules, routes and devices inside are told by the kernel (healing.py) and back in milliseconds. Here
they are looked for once more, seldom, in case that something was not told. The host's side holds meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Awaitable, Callable, Mapping

from agentmon.control import events as e
from agentmon.control.state import Attached, Bottle, Phase
from agentmon.daemon.cgroups import Tree
from agentmon.errors import AgentmonError
from agentmon.events import Event

EVERY_S = 0.5
THOROUGH = 20  # of so many looks one is also for what was taken away


class AttachWatch:
    """Looks every EVERY_S whether each attached bottle still has something to hold.

    :param hold_again: Kernel.hold_again, in the kernel's thread.
    """

    def __init__(
        self,
        bottles: Callable[[], Mapping[int, Bottle]],
        tree: Tree,
        hold_again: Callable[[int], Awaitable[tuple[str, ...]]],
        dispatch: Callable[[e.Event], object],
        emit: Callable[[Event], object],
    ) -> None:
        self._bottles = bottles
        self._tree = tree
        self._hold_again = hold_again
        self._dispatch = dispatch
        self._emit = emit
        self._failed: set[int] = set()

    async def watch(self) -> None:
        """Until cancelled."""
        for number in itertools.count(1):
            await asyncio.sleep(EVERY_S)
            for bottle in tuple(self._bottles().values()):
                if bottle.attached is None or bottle.phase in {Phase.STARTING, Phase.STOPPING}:
                    continue
                if reason := gone(bottle.slot, bottle.attached, self._tree):
                    self._dispatch(e.TargetGone(bottle.slot, reason))
                elif number % THOROUGH == 0:
                    await self.hold(bottle)

    async def hold(self, bottle: Bottle) -> None:
        """Put back what is missing, and tell it; what cannot be put back is told once."""
        try:
            found = await self._hold_again(bottle.slot)
        except (OSError, AgentmonError) as error:
            if bottle.slot not in self._failed and bottle.slot in self._bottles():
                self._failed.add(bottle.slot)
                what = f"what was taken away in there could not be put back: {error}; the host's side holds"
                self._emit(Event("tamper", "refused", bottle=bottle.name, reason=what, layer="host-nft"))
            return
        self._failed.discard(bottle.slot)
        if found:
            what = f"put back: {', '.join(found)}"
            self._emit(Event("tamper", "observed", bottle=bottle.name, reason=what, layer="bottle-nft"))


def gone(slot: int, attached: Attached, tree: Tree) -> str:
    """Why nothing is left to hold; empty: something is."""
    if tree.populated(slot):
        return ""
    if attached.named:
        with contextlib.suppress(OSError):
            if os.stat(attached.namespace).st_ino == attached.inode:
                return ""
        return f"{attached.what} has gone: nothing is held any more"
    return f"{attached.what} has ended: nothing is held any more"
