"""Searches in threads, one of a bottle at a time: a bottle that sends much waits for itself, not others for it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

THREADS = 2

T = TypeVar("T")


class Turns:
    """For one worker. With as many busy bottles as there are threads, another waits for one search of each."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="search")
        self._turn: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)  # by slot

    async def run(self, slot: int, work: Callable[[], T]) -> T:
        """What `work` returns, or raises."""
        async with self._turn[slot]:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
