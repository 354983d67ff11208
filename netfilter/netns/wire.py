"""Netlink requests, many in one send. The socket belongs to the namespace of the thread that made it, for good.

Formats: linux/netlink.h. pyroute2's message classes do the encoding (`message`); dumps are read raw, since
decoding a conntrack entry into its objects takes 0.3 ms and a cut may meet hundreds.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from netfilter.errors import KernelRefused

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
CREATE, EXCL, REPLACE = 0x400, 0x200, 0x100
ROUTE, SOCK_DIAG, NETFILTER = 0, 4, 12  # netlink protocols
HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")
_ERROR, _DONE = 2, 3
_SOL_NETLINK, _STRICT = 270, 12  # NETLINK_GET_STRICT_CHK
_CHUNK_BYTES = 1 << 16
_FD_SETSIZE = 1024


class Request(NamedTuple):
    """One request: what it does, in words, and its bytes; the sequence number is filled in when it is sent."""

    what: str
    data: bytes
    fine: tuple[int, ...] = ()  # errno values that mean it is done already


def message(
    kind: Any, number: int, netlink_flags: int, what: str, fine: tuple[int, ...] = (), **fields: Any
) -> Request:
    """A request from a pyroute2 message class; `attrs` are (name, value) pairs."""
    msg = kind()
    for name, value in fields.items():
        msg[name] = value
    msg["header"]["type"], msg["header"]["flags"] = number, netlink_flags | REQUEST
    msg.encode()
    return Request(what, bytes(msg.data), fine)


def attribute(kind: int, data: bytes) -> bytes:
    """One struct nlattr, padded to four bytes."""
    return _ATTRIBUTE.pack(4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def attributes(data: bytes, at: int = 0) -> dict[int, bytes]:
    """Attributes by number, flags of the number removed; the last of a kind wins."""
    found = {}
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def out_of_the_way(fd: int) -> int:
    """The same file under a number that select(2) cannot take, 1024 or more: libnftables waits with it, and ends the
    process where no smaller number is left for its own socket. Where the limit on open files forbids: `fd`."""
    try:
        moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FD_SETSIZE)
    except OSError:
        return fd
    os.close(fd)
    return moved


def netlink_socket(protocol: int) -> socket.socket:
    """A raw socket of one netlink protocol, in the namespace of the calling thread."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    made.bind((0, 0))
    return socket.socket(fileno=out_of_the_way(made.detach()))


class Netlink:
    """One socket of one netlink protocol."""

    def __init__(self, protocol: int) -> None:
        self._sock = netlink_socket(protocol)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._sock.settimeout(10)
        self._sequence = 0

    def run(self, requests: Sequence[Request]) -> int:
        """Send `requests`, wait for every acknowledgement; how many changed something.

        :raises KernelRefused: of the first that failed; the others were carried out nevertheless.
        """
        changed, failed = 0, None
        for chunk in _chunks(requests):
            for request, number in zip(chunk, self._acknowledged(chunk), strict=True):
                if number == 0:
                    changed += 1
                elif number not in request.fine and failed is None:
                    failed = KernelRefused(number, request.what, os.strerror(number))
        if failed is not None:
            raise failed
        return changed

    def _acknowledged(self, requests: Sequence[Request]) -> list[int]:
        first, data = self._sequence + 1, bytearray()
        for request in requests:
            self._sequence += 1
            data += self._numbered(request.data, self._sequence, ACK)
        self._sock.send(data)
        answers: dict[int, int] = {}
        while len(answers) < len(requests):
            for kind, sequence, body in self._messages():
                if kind == _ERROR and sequence >= first:
                    answers[sequence] = -struct.unpack_from("=i", body)[0]
        return [answers[first + i] for i in range(len(requests))]

    def dump(self, request: Request) -> list[bytes]:
        """Bodies of all answers (without netlink header).

        :raises KernelRefused: the request was refused.
        """
        self._sequence += 1
        self._sock.send(self._numbered(request.data, self._sequence, DUMP))
        found: list[bytes] = []
        while True:
            for kind, sequence, body in self._messages():
                if sequence != self._sequence:
                    continue
                if kind in {_ERROR, _DONE}:
                    number = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
                    if number and number not in request.fine:
                        raise KernelRefused(number, request.what, os.strerror(number))
                    return found
                found.append(body)

    def first(self, request: Request, most: int) -> list[bytes]:
        """At least the first `most` answers of a dump if there are so many, and no more than the kernel has ready then.
        The kernel filters by the request's fields and attributes. Close the socket afterwards: the rest is not read.

        :raises KernelRefused: the request was refused.
        """
        self._sock.setsockopt(_SOL_NETLINK, _STRICT, 1)
        self._sequence += 1
        self._sock.send(self._numbered(request.data, self._sequence, DUMP))
        found: list[bytes] = []
        while len(found) < most:
            for kind, _, body in self._messages():
                if kind in {_ERROR, _DONE}:
                    number = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
                    if number and number not in request.fine:
                        raise KernelRefused(number, request.what, os.strerror(number))
                    return found
                found.append(body)
        return found

    def ask(self, request: Request) -> bytes:
        """Body of the one answer. :raises KernelRefused: the request was refused."""
        self._sequence += 1
        self._sock.send(self._numbered(request.data, self._sequence, 0))
        while True:
            for kind, sequence, body in self._messages():
                if sequence == self._sequence:
                    if kind == _ERROR:
                        number = -struct.unpack_from("=i", body)[0]
                        raise KernelRefused(number, request.what, os.strerror(number))
                    return body

    @staticmethod
    def _numbered(data: bytes, sequence: int, flags: int) -> bytes:
        _, kind, old, _, _ = HEADER.unpack_from(data)
        padded = data + b"\0" * (-len(data) % 4)
        return HEADER.pack(len(data), kind, old | flags, sequence, 0) + padded[HEADER.size :]

    def _messages(self) -> Iterator[tuple[int, int, bytes]]:
        data, at = self._sock.recv(1 << 18), 0
        while at + HEADER.size <= len(data):
            length, kind, _, sequence, _ = HEADER.unpack_from(data, at)
            yield kind, sequence, data[at + HEADER.size : at + length]
            at += (length + 3) & ~3

    def close(self) -> None:
        self._sock.close()


def _chunks(requests: Sequence[Request]) -> Iterator[list[Request]]:
    chunk: list[Request] = []
    size = 0
    for request in requests:
        if chunk and size + len(request.data) > _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(request)
        size += len(request.data) + 3
    if chunk:
        yield chunk
