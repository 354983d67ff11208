"""Messages of wire.py over a connected Unix socket, for asyncio (Channel) and for plain code (BlockingChannel).

`call()` matches answers to questions by `id`; everything unasked goes to the handler. A closed or broken
peer fails every open call with ConnectionError: nobody waits for ever.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from agentmon import wire

_UCRED = struct.Struct("3i")
Handler = Callable[[Any], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, by the kernel's word (SO_PEERCRED, SO_PEERGROUPS), at connect time."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]


def peer_of(sock: socket.socket) -> Peer:
    """Nobody (uid -1) for what is not a connected Unix socket."""
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    so_peergroups = 59  # include/uapi/asm-generic/socket.h
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, so_peergroups, 1024)  # CPython's limit: 256 groups
    except OSError:  # ERANGE: a peer in more groups than that counts as in its primary one only
        raw = b""
    groups = frozenset(struct.unpack(f"{len(raw) // 4}I", raw[: len(raw) // 4 * 4]))
    return Peer(pid, uid, gid, groups | {gid})


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
        if not self.closed:
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
                    future = self._waiting.get(getattr(message, "id", 0)) if _is_answer(message) else None
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


_ANSWERS = (
    wire.Ack, wire.Committed, wire.Looked, wire.Granted, wire.Denied, wire.Settled,
    wire.Done, wire.Failed, wire.Reply,
)  # fmt: skip


def _is_answer(message: object) -> bool:
    return isinstance(message, _ANSWERS)


class BlockingChannel:
    """The same for code without an event loop: the command line, the launcher, tests. Carries descriptors."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._frames = wire.Frames()
        self._ready: list[Any] = []
        self._ids = itertools.count(1)
        self.fds: list[int] = []  # descriptors received and not yet taken

    @classmethod
    def connect(cls, path: str, timeout_s: float | None = None) -> BlockingChannel:
        """:raises OSError: nobody listens at `path`."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout_s)
        try:
            sock.connect(path)
        except OSError:
            sock.close()
            raise
        return cls(sock)

    def next_id(self) -> int:
        return next(self._ids)

    def send(self, message: wire.Message, fds: tuple[int, ...] = ()) -> None:
        data = wire.encode(message)
        if fds:
            sent = socket.send_fds(self.sock, [data], list(fds))
            data = data[sent:]
        if data:
            self.sock.sendall(data)

    def recv(self) -> Any:
        """The next message.

        :raises ConnectionError: the peer closed. :raises TimeoutError: see connect().
        """
        while not self._ready:
            data, fds, _flags, _addr = socket.recv_fds(self.sock, 1 << 16, 8)
            self.fds += fds
            if not data:
                raise ConnectionResetError("the peer closed the channel")
            self._ready = self._frames.feed(data)
        return self._ready.pop(0)

    def pending(self) -> bool:
        """Whether recv() would return without reading the socket."""
        return bool(self._ready)

    def call(self, message: Any) -> Any:
        """Send and wait for the answer; unasked messages before it are dropped."""
        self.send(message)
        while True:
            answer = self.recv()
            if getattr(answer, "id", None) == message.id and _is_answer(answer):
                return answer

    def stream(self, request: wire.Request) -> Iterator[Any]:
        """The values of Item messages until the Reply, which is yielded last as itself."""
        self.send(request)
        while True:
            message = self.recv()
            if getattr(message, "id", None) != request.id:
                continue
            if isinstance(message, wire.Item):
                yield message.value
            else:
                yield message
                return

    def close(self) -> None:
        self.sock.close()
