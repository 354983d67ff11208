"""LedgerClient: how a proxy worker takes holds and settles them, across restarts of the ledger.

Every call is safe to repeat (reserve by key, settle by hold and request id, release by hold), so a broken connection
is retried within a deadline. What the ledger cannot record is refused: LedgerUnavailable, which the proxy shows as 503.
A hold that may have been taken although nobody was told of it is given back as soon as the ledger answers again.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, cast

from agentmon import errors, wire
from agentmon.channel import Channel

_RETRY_MIN_S = 0.01
_RETRY_MAX_S = 0.5


class LedgerUnavailable(errors.AgentmonError):
    """The ledger cannot be reached, or cannot write; nothing that costs tokens may be forwarded."""

    unanswered = False  # it was asked at least once and did not answer: it may have done it


class LedgerClient:
    """One connection to the ledger's socket, opened at the first call and again after each loss.

    :param timeout_s: how long reserve, progress and totals may take, reconnecting included.
    :param settle_s: how long settle() and release() go on trying; what is given up is charged as an estimate (the hold
        is durable).
    """

    def __init__(self, path: str, *, timeout_s: float = 3.0, settle_s: float = 60.0) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._settle_s = settle_s
        self._channel: Channel | None = None
        self._reading: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()
        self._owed: dict[tuple[int, str], None] = {}  # slot and key of holds that nobody was told of
        self._giving: asyncio.Task[None] | None = None

    async def reserve(
        self, slot: int, provider: str, model: str, *, input: int, output: int, key: str
    ) -> wire.Granted | wire.Denied:
        """Hold what the request may cost at most. `key` is unique per attempt; the same key gives the same hold.

        :raises LedgerUnavailable: it cannot be held. :raises errors.Refused: the slot has no open run.
        """
        message = wire.Reserve(0, slot, provider, model, input, output, key)
        try:
            return cast("wire.Granted | wire.Denied", await self._call(message, self._timeout_s))
        except LedgerUnavailable as e:
            if e.unanswered:
                self._owed[slot, key] = None
                if self._giving is None or self._giving.done():
                    self._giving = asyncio.ensure_future(self._give_back())
            raise

    async def settle(self, hold: int, usage: wire.Usage) -> wire.Settled:
        """Turn the hold into a usage row. Tries for `settle_s`, also while the ledger's disk is full.

        :raises LedgerUnavailable: not recorded within that time.
        """
        message = wire.Settle(0, hold, usage)
        return cast(wire.Settled, await self._call(message, self._settle_s, patient=True))

    async def progress(self, hold: int, usage: wire.Usage) -> bool:
        """Tell the cumulative usage so far; returns whether a budget is spent now (the daemon is told by the ledger).

        :raises LedgerUnavailable: nobody listens.
        """
        return bool((await self._call(wire.Progress(0, hold, usage), self._timeout_s)).value)

    async def release(self, hold: int) -> None:
        """Give the hold back: the request is not billed. Tries as settle() does, or it would be charged after an hour.

        :raises LedgerUnavailable: not recorded within that time.
        """
        await self._call(wire.Release(0, hold), self._settle_s, patient=True)

    async def _give_back(self) -> None:
        """One task for all that is owed, however long the ledger is away."""
        while self._owed:
            slot, key = next(iter(self._owed))
            with contextlib.suppress(LedgerUnavailable):
                await self._call(wire.Release(0, 0, slot, key), self._settle_s, patient=True)
                self._owed.pop((slot, key), None)

    async def totals(self, slot: int) -> list[dict[str, Any]]:
        """Budgets of a running bottle: scope, name, provider, per, tokens, used, held, remaining, governs."""
        return cast("list[dict[str, Any]]", (await self._call(wire.Totals(0, slot), self._timeout_s)).value)

    async def close(self) -> None:
        if self._giving is not None:
            self._giving.cancel()
            await asyncio.wait([self._giving])
        if self._channel is not None:
            self._channel.close()
        if self._reading is not None:
            await self._reading

    async def _connected(self) -> Channel:
        async with self._connecting:
            if self._channel is None or self._channel.closed:
                if self._reading is not None:
                    await self._reading
                self._channel = await Channel.connect(self._path)
                self._reading = asyncio.ensure_future(_read(self._channel))
            return self._channel

    async def _call(self, message: Any, limit_s: float, *, patient: bool = False) -> Any:
        """:param patient: also wait while the ledger answers that it cannot write."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limit_s
        pause = _RETRY_MIN_S
        attempts = answers = 0
        while True:
            try:
                channel = await self._connected()
                numbered = _with_id(message, channel.next_id())
                attempts += 1
                answer = await channel.call(numbered, max(0.05, min(self._timeout_s, deadline - loop.time())))
                answers += 1
                if not isinstance(answer, wire.Failed):
                    return answer
                if answer.error != "unavailable":
                    raise errors.BY_NAME.get(answer.error, errors.AgentmonError)(answer.message, answer.hint)
                trouble = LedgerUnavailable(answer.message, answer.hint)
                trouble.unanswered = attempts > answers
                if not patient:
                    raise trouble
            except (OSError, TimeoutError) as e:
                trouble = LedgerUnavailable(
                    f"the ledger does not answer on {self._path} ({str(e) or type(e).__name__})",
                    "see the end of ledger.log beside the socket; the daemon starts a ledger that has died",
                )
                trouble.unanswered = attempts > answers
            if loop.time() + pause >= deadline:
                raise trouble
            await asyncio.sleep(pause)
            pause = min(2 * pause, _RETRY_MAX_S)


async def _read(channel: Channel) -> None:
    with contextlib.suppress(wire.WireError):  # the channel is closed then, and open calls have failed
        await channel.run()


def _with_id(message: Any, id: int) -> Any:
    fields = {name: getattr(message, name) for name in message.__struct_fields__}
    return type(message)(**(fields | {"id": id}))
