"""Waits for a place among those that all bottles share: who holds the fewest is next, and nobody waits for long."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable

from agentmon.resolver.shares import Shares

PATIENCE_S = 0.8  # with upstream.TOTAL_S less than the 5 s that a stub waits
MAX_WAITING = 256  # of one owner


class Crowded(Exception):
    """The owner's share stayed used up: what it asks for now is refused, reason `limit`."""


class Turns:
    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}

    async def take(self, owner: Hashable) -> None:
        """A place, to be given back. :raises Crowded: none within PATIENCE_S, or too many wait already."""
        if self._shares.take(owner):
            return
        queue = self._waiting.setdefault(owner, deque())
        if len(queue) >= MAX_WAITING:
            raise Crowded
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await turn
        except BaseException as e:
            if turn.done() and not turn.cancelled():  # it came while we gave up
                self.give(owner)
            elif turn in queue:
                queue.remove(turn)
                self._forget(owner)
            if isinstance(e, TimeoutError):
                raise Crowded from e
            raise

    def give(self, owner: Hashable) -> None:
        self._shares.give(owner)
        while self._waiting:
            next_ = min(self._waiting, key=self._shares.held)
            if not self._shares.take(next_):
                return
            turn = self._waiting[next_].popleft()
            self._forget(next_)
            if turn.done():  # who waited has given up, and has not run since
                self._shares.give(next_)
            else:
                turn.set_result(None)

    def _forget(self, owner: Hashable) -> None:
        if not self._waiting[owner]:
            del self._waiting[owner]
