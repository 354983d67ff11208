"""One bottle's searches leave a thread to the others."""

from __future__ import annotations

import asyncio
import threading

from agentmon.proxy.turns import THREADS, Turns


def test_a_bottle_with_much_to_search_waits_for_itself() -> None:
    async def both() -> None:
        turns, go, began = Turns(), threading.Event(), threading.Semaphore(0)

        def long() -> bool:
            began.release()
            return go.wait(20)

        busy = [asyncio.ensure_future(turns.run(16, long)) for _ in range(4 * THREADS)]
        try:
            assert await asyncio.wait_for(turns.run(17, lambda: "served"), 10) == "served"
            assert not any(task.done() for task in busy) and began.acquire(timeout=10)
            assert not began.acquire(blocking=False), "two searches of one bottle at a time"
        finally:
            go.set()
        assert await asyncio.wait_for(asyncio.gather(*busy), 20) == [True] * len(busy)

    asyncio.run(both())
