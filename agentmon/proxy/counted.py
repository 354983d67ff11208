"""The estimate of a request that waits for room, until the provider has counted it. Pure: what asks is handed in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from agentmon.providers import asked_count
from agentmon.providers.declaration import Estimate

Count = Callable[[], Awaitable[int | None]]  # input tokens, as the provider counts them; None: it did not


class Counted:
    """The estimate of one request, and the provider's count that comes beside the asking: its place in the line, which
    a waiter has while it asks, is kept, and nothing waits for a provider."""

    def __init__(self, ours: Estimate, count: Count | None) -> None:
        self._ours = ours
        self._count = count
        self._task: asyncio.Future[int | None] | None = None

    def begin(self) -> None:
        """Have it counted; the first call counts."""
        if self._count is not None and self._task is None:
            self._task = asyncio.ensure_future(self._count())

    def estimate(self) -> Estimate:
        """With the count as soon as there is one."""
        if self._task is None or not self._task.done():
            return self._ours
        count = self._task.result()
        return self._ours if count is None else asked_count.held(self._ours, count)

    def end(self) -> None:
        """A count that nobody needs any more is given up."""
        if self._task is not None:
            self._task.cancel()
