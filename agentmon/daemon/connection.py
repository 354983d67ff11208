"""One accepted connection on the control socket: messages in, messages and descriptors out, in order.

Not an asyncio stream, because those cannot carry descriptors (SCM_RIGHTS).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

from agentmon import wire
from agentmon.channel import Peer, peer_of

_BACKLOG = 10_000  # messages that nobody waits for with drained(); a reader that far behind is cut off


class Connection:
    """:raises OSError: from the constructor, if the peer is already gone."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.peer: Peer = peer_of(sock)
        self._out: asyncio.Queue[tuple[wire.Message, tuple[int, ...]] | None] = asyncio.Queue()
        self._writing = asyncio.create_task(self._write())
        self._gone = asyncio.Event()
        self.closed = False

    async def wait_closed(self) -> None:
        """Return when the peer is gone."""
        await self._gone.wait()

    def send(self, message: wire.Message, fds: tuple[int, ...] = ()) -> None:
        """Queue one message. `fds` belong to this connection from now on and are closed when they have been sent."""
        if self.closed or self._out.qsize() > _BACKLOG:
            _close_all(fds)
            self.shut()
            return
        self._out.put_nowait((message, fds))

    @property
    def waiting(self) -> int:
        """Messages that the socket has not taken yet."""
        return self._out.qsize()

    async def drained(self) -> None:
        """Return when all that is queued has been taken by the socket: how a long answer keeps a slow reader's pace.
        Never returns once the peer is gone (wait_closed() does)."""
        await self._out.join()

    async def messages(self) -> AsyncIterator[Any]:
        """:raises wire.WireError: the peer does not speak the protocol."""
        loop = asyncio.get_running_loop()
        frames = wire.Frames()
        with contextlib.suppress(ConnectionError):
            try:
                while data := await loop.sock_recv(self._sock, 1 << 16):
                    for message in frames.feed(data):
                        yield message
            finally:
                self._gone.set()

    async def close(self) -> None:
        """Send what is queued, then close; messages() has ended when this is called."""
        self._out.put_nowait(None)
        with contextlib.suppress(asyncio.CancelledError, TimeoutError):
            await asyncio.wait_for(self._writing, 1.0)
        self.shut()
        self._sock.close()

    def shut(self) -> None:
        self._gone.set()
        if not self.closed:
            self.closed = True
            self._writing.cancel()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # ends messages(); a closed descriptor would stay in the loop's poll

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while (item := await self._out.get()) is not None:
            message, fds = item
            data = wire.encode(message)
            try:
                if fds:
                    sent = await self._send_fds(data, fds)
                    data = data[sent:]
                if data:
                    await loop.sock_sendall(self._sock, data)
            except OSError:
                self.closed = True
                self._gone.set()
                return
            finally:
                _close_all(fds)
            self._out.task_done()

    async def _send_fds(self, data: bytes, fds: tuple[int, ...]) -> int:
        while True:
            try:
                return socket.send_fds(self._sock, [data], list(fds))
            except BlockingIOError:
                await asyncio.sleep(0.001)


def _close_all(fds: tuple[int, ...]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
