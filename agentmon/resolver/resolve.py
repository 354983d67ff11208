"""Name to addresses: cache, one question at a time per name, aliases followed from the question on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from agentmon.resolver.cache import Cache
from agentmon.resolver.chain import MAX_CNAMES, Chain, Unusable

CACHE_SIZE = 20_000
MAX_TTL_S = 3600  # an answer is asked for again, and its element renewed, within the hour
MAX_NEGATIVE_S = 60
MAX_ADDRESSES = 64  # of one answer; what a bottle's learned set takes


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

    async def find(self, name: str, rdtype: int) -> Found:
        """:raises TimeoutError: no server answered. :raises Unusable: none gave a usable answer."""
        key = (name, rdtype)
        found = self._cache.get(key, self._now_ns())
        if found is not None:
            return found
        task = self._asking.get(key)
        if task is None:
            task = asyncio.ensure_future(self._ask(name, rdtype))
            self._asking[key] = task
            task.add_done_callback(lambda done: self._asked(key, done))
        return await asyncio.shield(task)  # one who gives up does not take the answer from the others

    def has(self, name: str, rdtype: int) -> bool:
        """Whether find() would ask nobody, or join a question that is under way."""
        key = (name, rdtype)
        return key in self._asking or self._cache.get(key, self._now_ns()) is not None

    def _asked(self, key: tuple[str, int], task: asyncio.Task[Found]) -> None:
        del self._asking[key]
        if not task.cancelled():
            task.exception()  # seen, even when everybody has given up

    async def _ask(self, name: str, rdtype: int) -> Found:
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
