"""Client of the resolver's lookup socket, for relay and proxy: vetted addresses of a permitted name.

The addresses returned are committed: the service namespace may dial them, for at least as long as their TTL. There
is no second look: what is returned is what is dialled.
"""

from __future__ import annotations

import asyncio
import contextlib

from agentmon import wire
from agentmon.channel import Channel


class LookupRefused(Exception):
    """`reason`: denied | nxdomain | timeout | servfail | stripped | uncommitted | limit (as in wire.Looked), or
    unavailable: the resolver does not answer."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Lookups:
    """Connects when first used and again after the resolver was restarted; one connection carries all lookups."""

    def __init__(self, path: str, timeout_s: float = 10.0) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._channel: Channel | None = None
        self._reading: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()

    async def lookup(self, slot: int, name: str, port: int) -> list[str]:
        """:raises LookupRefused: with the reason; never an empty list."""
        for attempt in (1, 2):
            try:
                channel = await self._connected()
                answer = await channel.call(wire.Lookup(channel.next_id(), slot, name, port), self._timeout_s)
            except TimeoutError:
                raise LookupRefused("timeout") from None
            except OSError as e:  # the connection was of a resolver that is gone: ask its successor once
                if attempt == 2:
                    raise LookupRefused("unavailable") from e
                continue
            if answer.error or not answer.addresses:
                raise LookupRefused(answer.error or "servfail")
            return list(answer.addresses)
        raise AssertionError("unreachable")

    async def alive(self, timeout_s: float) -> bool:
        """Whether a resolver is connected, or can be."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._connected()
        except (OSError, TimeoutError):
            return False
        return True

    async def _connected(self) -> Channel:
        async with self._connecting:
            if self._channel is None or self._channel.closed:
                self._channel = await Channel.connect(self._path)
                self._reading = asyncio.ensure_future(self._read(self._channel))
            return self._channel

    @staticmethod
    async def _read(channel: Channel) -> None:
        with contextlib.suppress(wire.WireError):
            await channel.run()

    async def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._reading is not None:
            await self._reading
