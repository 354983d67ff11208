"""Messages of wire.py for code without an event loop, and who is at the other end of a Unix socket.

Apart from channel.py so that a command line does not import asyncio: it starts in half the time.
"""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agentmon import wire

_UCRED = struct.Struct("3i")


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


_ANSWERS = (
    wire.Ack, wire.Committed, wire.Looked, wire.Granted, wire.Denied, wire.Settled,
    wire.Done, wire.Failed, wire.Reply, wire.Decided,
)  # fmt: skip


def is_answer(message: object) -> bool:
    """Whether a message ends a question (has the question's `id`)."""
    return isinstance(message, _ANSWERS)


class BlockingChannel:
    """Channel for the command line and tests: calls that block. Carries descriptors."""

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
            if getattr(answer, "id", None) == message.id and is_answer(answer):
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
