"""Messages of wire.py over a connected Unix socket, for asyncio. blocking.py is the same for plain code.

`call()` matches answers to questions by `id`; everything unasked goes to the handler. A closed or broken
peer fails every open call with ConnectionError: nobody waits for ever.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from agentmon import wire
from agentmon.blocking import BlockingChannel, Peer, is_answer, peer_of

__all__ = ["BlockingChannel", "Channel", "Handler", "Peer", "peer_of"]

Handler = Callable[[Any], Awaitable[None]]


class Channel:
    """Messages over an asyncio stream.

    :param handler: awaited for each message that is not the answer to a call(), one after another.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler | None = None
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._handler = handler
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self.closed = False

    @classmethod
    async def connect(cls, path: str, handler: Handler | None = None) -> Channel:
        """:raises OSError: nobody listens at `path`."""
        return cls(*await asyncio.open_unix_connection(path), handler)

    @property
    def peer(self) -> Peer:
        return peer_of(self._writer.get_extra_info("socket"))

    def next_id(self) -> int:
        return next(self._ids)

    def send(self, message: wire.Message) -> None:
        """Queue one message; never blocks. A closed channel drops it (the reader side reports the loss)."""
        if not self.closed and not self._writer.transport.is_closing():
            self._writer.write(wire.encode(message))

    @property
    def backlog_bytes(self) -> int:
        """What is queued and not yet taken by the kernel: how far the peer lags behind."""
        return self._writer.transport.get_write_buffer_size()

    async def drain(self) -> None:
        await self._writer.drain()

    async def call(self, message: Any, timeout_s: float = 10.0) -> Any:
        """Send `message` (which has an `id` from next_id()) and return its answer.

        :raises ConnectionError: the peer went away before it answered.
        :raises TimeoutError: it did not answer in time.
        """
        if self.closed:
            raise ConnectionResetError("channel is closed")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[message.id] = future
        try:
            self.send(message)
            return await asyncio.wait_for(future, timeout_s)
        finally:
            self._waiting.pop(message.id, None)

    async def messages(self) -> AsyncIterator[Any]:
        """Every message that answers no call, until the peer closes.

        :raises wire.WireError: the peer does not speak the protocol.
        """
        frames = wire.Frames()
        try:
            while data := await self._reader.read(1 << 16):
                for message in frames.feed(data):
                    future = self._waiting.get(getattr(message, "id", 0)) if is_answer(message) else None
                    if future is not None and not future.done():
                        future.set_result(message)
                    else:
                        yield message
        except ConnectionError:
            pass
        finally:
            self.close()

    async def run(self) -> None:
        """Read until the peer closes, passing what is unasked to the handler."""
        async for message in self.messages():
            if self._handler is not None:
                await self._handler(message)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._writer.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionResetError("the peer closed the channel"))
