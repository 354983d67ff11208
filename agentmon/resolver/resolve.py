"""Name to addresses: cache, one question at a time per name, aliases followed from the question on.

A question that goes upstream takes a place of the bottle that asked it first, until it is answered or TOTAL_S is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

from agentmon.resolver.cache import Cache
from agentmon.resolver.chain import MAX_CNAMES, Chain, Unusable
from agentmon.resolver.shares import Shares
from agentmon.resolver.turns import Turns
from agentmon.resolver.upstream import TOTAL_S

CACHE_SIZE = 20_000
MAX_TTL_S = 3600  # an answer is asked for again, and its element renewed, within the hour
MAX_NEGATIVE_S = 60
MAX_ADDRESSES = 64  # of one answer; what a bottle's learned set takes
IN_FLIGHT, IN_FLIGHT_EACH = 512, 32  # questions upstream, of all bottles and of one
RESERVED, FEW = 128, 4


class Asks(Protocol):
    """What resolve needs of upstream.Upstream."""

    async def ask(self, name: str, rdtype: int) -> Chain: ...


@dataclass(frozen=True, slots=True)
class Found:
    """`expires_ns` is monotonic. `exists` False: the name does not exist upstream."""

    addresses: tuple[str, ...]
    expires_ns: int
    exists: bool

    def ttl_s(self, now_ns: int) -> int:
        return max(0, (self.expires_ns - now_ns) // 1_000_000_000)


class Resolve:
    def __init__(self, upstream: Asks, now_ns: Callable[[], int]) -> None:
        self._upstream = upstream
        self._now_ns = now_ns
        self._cache: Cache[tuple[str, int], Found] = Cache(CACHE_SIZE)
        self._asking: dict[tuple[str, int], asyncio.Task[Found]] = {}
        self._turns = Turns(Shares(IN_FLIGHT, IN_FLIGHT_EACH, reserved=RESERVED, few=FEW))

    async def find(self, name: str, rdtype: int, owner: Hashable) -> Found:
        """:param owner: the bottle whose place a question upstream takes.

        :raises TimeoutError: no server answered. :raises Unusable: none gave a usable answer.
        :raises Crowded: the bottle has too many questions under way.
        """
        key = (name, rdtype)
        known = self._known(key)
        if known is None:
            await self._turns.take(owner)  # of its own: nobody waits for the place of another bottle
            known = self._known(key)
            if known is None:
                known = self._begin(key, owner)
            else:
                self._turns.give(owner)
        if isinstance(known, Found):
            return known
        return await asyncio.shield(known)  # one who gives up does not take the answer from the others

    def _known(self, key: tuple[str, int]) -> Found | asyncio.Task[Found] | None:
        return self._cache.get(key, self._now_ns()) or self._asking.get(key)

    def _begin(self, key: tuple[str, int], owner: Hashable) -> asyncio.Task[Found]:
        task = self._asking[key] = asyncio.ensure_future(self._ask(*key))

        def done(task: asyncio.Task[Found]) -> None:
            self._turns.give(owner)
            self._asked(key, task)

        task.add_done_callback(done)
        return task

    def has(self, name: str, rdtype: int) -> bool:
        """Whether find() would ask nobody, or join a question that is under way."""
        key = (name, rdtype)
        return key in self._asking or self._cache.get(key, self._now_ns()) is not None

    def _asked(self, key: tuple[str, int], task: asyncio.Task[Found]) -> None:
        del self._asking[key]
        if not task.cancelled():
            task.exception()  # seen, even when everybody has given up

    async def _ask(self, name: str, rdtype: int) -> Found:
        async with asyncio.timeout(TOTAL_S):
            return await self._follow(name, rdtype)

    async def _follow(self, name: str, rdtype: int) -> Found:
        at, ttl_s = name, MAX_TTL_S
        for _ in range(MAX_CNAMES):
            chain = await self._upstream.ask(at, rdtype)
            ttl_s = min(ttl_s, chain.ttl_s)
            if not chain.target:
                if not chain.addresses:
                    ttl_s = min(ttl_s, MAX_NEGATIVE_S)
                found = Found(
                    chain.addresses[:MAX_ADDRESSES], self._now_ns() + ttl_s * 1_000_000_000, chain.exists or at != name
                )
                if ttl_s:
                    self._cache.put((name, rdtype), found, found.expires_ns)
                return found
            at = chain.target
        raise Unusable("upstream's aliases form a loop")
