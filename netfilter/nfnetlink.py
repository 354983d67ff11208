"""nf_tables by raw netlink: whole transactions of what netfilter says about bottles, counters. Needs CAP_NET_ADMIN.

libnftables lists every set and chain of the host after each change by somebody else (13 ms beside 1,000 bottles)
and the whole table for one counter; one element here costs 0.03 ms whatever else is there.
Formats: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Sequence

from netfilter import bytecode
from netfilter.batch import attribute, nested
from netfilter.bytecode import CREATE, DELSETELEM, INET, NEWSETELEM, Message, number, string
from netfilter.errors import KernelRefused
from netfilter.language import Command
from netfilter.netns.wire import NETFILTER, netlink_socket

_HEADER, _GENERIC = struct.Struct("=IHHII"), struct.Struct(">BBH")
_ATTRIBUTE = struct.Struct("=HH")
_REQUEST, _ACK = 0x1, 0x4
_ERROR = 2
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_GETOBJ = 19
_SUBSYSTEM = 10
_TABLE, _SET, _ELEMENTS = 1, 2, 3
_KEY, _DATA, _VALUE = 1, 2, 1
_VERDICT, _CODE, _DROP = 2, 1, 0
_OBJECT_NAME, _OBJECT_TYPE, _OBJECT_DATA, _COUNTER, _PACKETS = 2, 3, 4, 1, 2
_IFNAMSIZ = 16
_SNDBUFFORCE, _SOL_NETLINK, _CAP_ACK = 32, 270, 10
_SEND_BUFFER = 256 << 20  # a transaction is one datagram


class Elements:
    """Transactions on one table of family inet, in the namespace of the thread that made it."""

    def __init__(self, table: str) -> None:
        self._table = string(_TABLE, table)
        self._sock = netlink_socket(NETFILTER)
        self._sock.setsockopt(socket.SOL_SOCKET, _SNDBUFFORCE, _SEND_BUFFER)
        self._sock.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)  # refusals do not repeat what was sent
        self._sock.settimeout(10)
        self._sequence = 0
        self.port: int = self._sock.getsockname()[0]  # by which events name who did it

    def run(self, commands: Iterable[Command], what: str) -> None:
        """Apply `commands` as one transaction: all of it, or nothing.

        :raises KernelRefused: with the kernel's errno for the first command that it refused.
        """
        self.send(bytecode.compiled(commands), what)

    def send(self, messages: Sequence[Message], what: str) -> None:
        """The same of commands that have been compiled."""
        if messages:
            self._transact(messages, what)

    def put_device(self, set_name: str, device: str) -> None:
        """One device name into a set of them; fine if it is there."""
        self._transact([self._element(NEWSETELEM, set_name, _device(device))], f"add {device} to {set_name}")

    def lead_to_drop(self, map_name: str, device: str) -> None:
        """What comes in by a device that is led somewhere is dropped, in one step; one that is not led stays so.

        Not to a chain: the kernel looks at every chain that is led to for each transaction that leads to one."""
        steps = ((DELSETELEM, _device(device)), (NEWSETELEM, _dropped(device)))
        self._if_there([self._element(kind, map_name, what) for kind, what in steps], f"drop what {device} brings")

    def lead_nowhere(self, map_name: str, device: str) -> None:
        """A device's element out of a verdict map; fine if it is not there."""
        self._if_there([self._element(DELSETELEM, map_name, _device(device))], f"take {device} out of {map_name}")

    def take_device(self, set_name: str, device: str) -> None:
        """One device name out of a set of them; fine if it is not there, or there is no such set.

        Put in first: a transaction that is refused waits for every processor (10 ms), one that is carried out does not.
        """
        steps = [self._element(kind, set_name, _device(device)) for kind in (NEWSETELEM, DELSETELEM)]
        self._if_there(steps, f"take {device} out of {set_name}")

    def _element(self, kind: int, set_name: str, element: bytes) -> Message:
        body = self._table + string(_SET, set_name) + nested(_ELEMENTS, element)
        return Message(kind, CREATE if kind == NEWSETELEM else 0, body)

    def _if_there(self, messages: Sequence[Message], what: str) -> None:
        try:
            self._transact(messages, what)
        except KernelRefused as e:
            if e.errno != errno.ENOENT:
                raise

    def _transact(self, messages: Sequence[Message], what: str) -> None:
        """Only the last message asks to be acknowledged. Refused messages are told anyway; a transaction that is
        refused as a whole (no memory) is told with the number of its beginning."""
        parts = [self._batch(_BATCH_BEGIN)]
        first, final = self._sequence, len(messages) - 1
        for at, (kind, flags, body, family) in enumerate(messages):
            flags |= _REQUEST | (_ACK if at == final else 0)
            parts.append(self._message((_SUBSYSTEM << 8) | kind, flags, body, family))
        last = self._sequence
        parts.append(self._batch(_BATCH_END))
        try:
            self._sock.send(b"".join(parts))
        except OSError as e:
            raise KernelRefused(e.errno or errno.EIO, what) from e
        refused, done = 0, False
        while not done:
            for code, sequence in self._answers():
                refused = refused or (code if sequence >= first else 0)
                done = done or sequence == last or (sequence == first and code != 0)
        if refused:
            raise KernelRefused(refused, what, os.strerror(refused))

    def _answers(self) -> list[tuple[int, int]]:
        data, at, found = self._sock.recv(1 << 18), 0, []
        while at + _HEADER.size <= len(data):
            length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
            if kind == _ERROR:
                found.append((-struct.unpack_from("=i", data, at + _HEADER.size)[0], sequence))
            at += (length + 3) & ~3
        return found

    def _batch(self, kind: int) -> bytes:
        self._sequence += 1
        body = _GENERIC.pack(0, 0, _SUBSYSTEM)
        return _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST, self._sequence, 0) + body

    def _message(self, kind: int, flags: int, body: bytes, family: int = INET) -> bytes:
        self._sequence += 1
        body = _GENERIC.pack(family, 0, 0) + body
        return _HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body

    def packets(self, names: Sequence[str]) -> list[int]:
        """What the named counters have counted.

        :raises KernelRefused: ENOENT: there is no such counter.
        """
        found = []
        for name in names:
            body = self._table + string(_OBJECT_NAME, name) + number(_OBJECT_TYPE, _COUNTER)
            self._sock.send(self._message((_SUBSYSTEM << 8) | _GETOBJ, _REQUEST, body))
            found.append(self._counter(name))
        return found

    def _counter(self, name: str) -> int:
        while True:
            answer = self._sock.recv(1 << 16)
            _, kind, _, sequence, _ = _HEADER.unpack_from(answer)
            if sequence != self._sequence:
                continue
            if kind == _ERROR:
                code = -struct.unpack_from("=i", answer, _HEADER.size)[0]
                raise KernelRefused(code, f"read counter {name}", os.strerror(code))
            data = _find(answer[_HEADER.size + _GENERIC.size :], _OBJECT_DATA)
            return int.from_bytes(_find(data, _PACKETS), "big")

    def close(self) -> None:
        self._sock.close()


def _device(name: str, data: bytes = b"") -> bytes:
    return nested(1, _key(name.encode().ljust(_IFNAMSIZ, b"\0")) + data)


def _dropped(device: str) -> bytes:
    return _device(device, nested(_DATA, nested(_VERDICT, attribute(_CODE, struct.pack(">i", _DROP)))))


def _key(data: bytes) -> bytes:
    return nested(_KEY, attribute(_VALUE, data))


def _find(data: bytes, wanted: int) -> bytes:
    at = 0
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if kind & 0x3FFF == wanted:
            return data[at + 4 : at + length]
        at += (length + 3) & ~3
    return b""
