"""Rows of what was cut, frozen, saved or killed: one that the ledger cannot take now is kept, and written when it can.

Nothing that stops a bottle waits for the ledger to be well. What lets one go on does: it asks LedgerLink itself.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from agentmon.control.state import Bottle
from agentmon.errors import AgentmonError
from agentmon.events import now_ns, rfc3339

_AGAIN_S = 0.5
_KEPT = 10_000

Record = Callable[[Bottle, str, str, str, int, str], Awaitable[None]]


class Enforcements:
    """For one daemon.

    :param record: writes one row; raises AgentmonError when it cannot. :param spawn: runs a coroutine beside.
    """

    def __init__(self, record: Record, spawn: Callable[[Coroutine[Any, Any, None], str], None]) -> None:
        self._record = record
        self._spawn = spawn
        self._waiting: deque[tuple[Bottle, str, str, str, int, str]] = deque()

    async def record(self, bottle: Bottle, policy: str, trigger: str, by: str, latency_ns: int, result: str) -> None:
        """Write the row, now or later; never raises AgentmonError."""
        why = ""
        if not self._waiting:
            try:
                await self._record(bottle, policy, trigger, by, latency_ns, result)
                return
            except AgentmonError as error:
                why = f": {error}"
        told = f"{policy} of {bottle.name}: its row in enforcement_v"
        if len(self._waiting) >= _KEPT:
            print(f"warning: {told} is lost, the ledger has been away for too long", file=sys.stderr, flush=True)
            return
        print(f"warning: {told} is written when the ledger is back{why}", file=sys.stderr, flush=True)
        late = f"{result}; recorded late, done at {rfc3339(now_ns())}"
        self._waiting.append((bottle, policy, trigger, by, latency_ns, late))
        if len(self._waiting) == 1:
            self._spawn(self._write(), "enforcements")

    async def _write(self) -> None:
        """What waits, oldest first."""
        while self._waiting:
            await asyncio.sleep(_AGAIN_S)
            try:
                await self._record(*self._waiting[0])
            except AgentmonError:
                continue
            self._waiting.popleft()
