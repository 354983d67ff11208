"""The hot calls of nf_tables by raw netlink: set elements in and out, counters. Needs CAP_NET_ADMIN.

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

from netfilter.elements import Element, Timed
from netfilter.errors import KernelRefused

_NETLINK_NETFILTER, _INET = 12, 1
_HEADER, _GENERIC = struct.Struct("=IHHII"), struct.Struct(">BBH")
_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 0x8000
_REQUEST, _ACK, _CREATE = 0x1, 0x4, 0x400
_ERROR = 2
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEWSETELEM, _DELSETELEM, _GETOBJ = 12, 14, 19
_SUBSYSTEM = 10
_TABLE, _SET, _ELEMENTS = 1, 2, 3
_KEY, _DATA, _TIMEOUT, _VALUE = 1, 2, 4, 1
_VERDICT, _CODE, _CHAIN, _GOTO = 2, 1, 2, -4
_OBJECT_NAME, _OBJECT_TYPE, _OBJECT_DATA, _COUNTER, _PACKETS = 2, 3, 4, 1, 2
_PROTOCOLS = {"tcp": 6, "udp": 17}
_IFNAMSIZ = 16
_PER_MESSAGE = 256


class Elements:
    """Set elements and counters of one table of family inet, in the namespace of the thread that made it."""

    def __init__(self, table: str) -> None:
        self._table = _string(_TABLE, table)
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self._sock.settimeout(10)
        self._sequence = 0

    def renew(self, by_set: dict[str, list[Timed]]) -> None:
        """Add elements with these times from now, also where they are there already, in one transaction.

        Added, deleted, added again: an `add` alone leaves the time as it was before v6.12 ("netfilter: nf_tables:
        set element timeout update support").

        :raises KernelRefused: ENOENT: no such set.
        """
        steps = []
        for name, timed in by_set.items():
            for some in _chunks(timed):
                bare = [_element(t.element, 0) for t in some]
                steps += [(_NEWSETELEM, name, bare), (_DELSETELEM, name, bare)]
                steps.append((_NEWSETELEM, name, [_element(t.element, t.timeout_s) for t in some]))
        if steps:
            self._transact(steps, f"add elements to {', '.join(by_set)}")

    def put_device(self, set_name: str, device: str) -> None:
        """One device name into a set of them; fine if it is there."""
        self._transact([(_NEWSETELEM, set_name, [_device(device)])], f"add {device} to {set_name}")

    def lead(self, map_name: str, device: str, chain: str) -> None:
        """Packets that come in by a device go to a chain: its element in a verdict map."""
        self._transact([(_NEWSETELEM, map_name, [_leading(device, chain)])], f"lead {device} to {chain}")

    def lead_elsewhere(self, map_name: str, device: str, chain: str) -> None:
        """The same for a device that is led somewhere already, in one step; one that is not stays so."""
        steps = [(_DELSETELEM, map_name, [_device(device)]), (_NEWSETELEM, map_name, [_leading(device, chain)])]
        self._if_there(steps, f"lead {device} to {chain}")

    def lead_nowhere(self, map_name: str, device: str) -> None:
        """A device's element out of a verdict map; fine if it is not there."""
        self._if_there([(_DELSETELEM, map_name, [_device(device)])], f"take {device} out of {map_name}")

    def take_device(self, set_name: str, device: str) -> None:
        """One device name out of a set of them; fine if it is not there, or there is no such set.

        Put in first: a transaction that is refused waits for every processor (10 ms), one that is carried out does not.
        """
        steps = [(_NEWSETELEM, set_name, [_device(device)]), (_DELSETELEM, set_name, [_device(device)])]
        self._if_there(steps, f"take {device} out of {set_name}")

    def _if_there(self, steps: Iterable[tuple[int, str, list[bytes]]], what: str) -> None:
        try:
            self._transact(steps, what)
        except KernelRefused as e:
            if e.errno != errno.ENOENT:
                raise

    def _transact(self, steps: Iterable[tuple[int, str, list[bytes]]], what: str) -> None:
        parts = [self._batch(_BATCH_BEGIN)]
        for kind, name, elements in steps:
            body = self._table + _string(_SET, name) + _nested(_ELEMENTS, b"".join(elements))
            create = _CREATE if kind == _NEWSETELEM else 0
            parts.append(self._message((_SUBSYSTEM << 8) | kind, _REQUEST | _ACK | create, body))
        first, last = self._sequence - len(parts) + 1, self._sequence
        parts.append(self._batch(_BATCH_END))
        self._sock.send(b"".join(parts))
        refused = 0
        while True:
            for number, sequence in self._answers():
                refused = refused or (number if sequence >= first else 0)
                if sequence == last:
                    if refused:
                        raise KernelRefused(refused, what, os.strerror(refused))
                    return

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

    def _message(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        body = _GENERIC.pack(_INET, 0, 0) + body
        return _HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body

    def packets(self, names: Sequence[str]) -> list[int]:
        """What the named counters have counted.

        :raises KernelRefused: ENOENT: there is no such counter.
        """
        found = []
        for name in names:
            kind = _attribute(_OBJECT_TYPE, struct.pack(">I", _COUNTER))
            body = self._table + _string(_OBJECT_NAME, name) + kind
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
                number = -struct.unpack_from("=i", answer, _HEADER.size)[0]
                raise KernelRefused(number, f"read counter {name}", os.strerror(number))
            data = _find(answer[_HEADER.size + _GENERIC.size :], _OBJECT_DATA)
            return int.from_bytes(_find(data, _PACKETS), "big")

    def close(self) -> None:
        self._sock.close()


def _chunks(timed: Sequence[Timed]) -> Iterable[Sequence[Timed]]:
    return (timed[i : i + _PER_MESSAGE] for i in range(0, len(timed), _PER_MESSAGE))


def _element(element: Element, timeout_s: int) -> bytes:
    """Key of `address . inet_proto . inet_service`: each field padded to four bytes, network order."""
    packed = element.network.network_address.packed
    key = packed + struct.pack(">BxxxHxx", _PROTOCOLS[element.proto], element.low)
    timeout = _attribute(_TIMEOUT, struct.pack(">Q", timeout_s * 1000)) if timeout_s else b""
    return _nested(1, _key(key) + timeout)


def _device(name: str, data: bytes = b"") -> bytes:
    return _nested(1, _key(name.encode().ljust(_IFNAMSIZ, b"\0")) + data)


def _leading(device: str, chain: str) -> bytes:
    verdict = _attribute(_CODE, struct.pack(">i", _GOTO)) + _string(_CHAIN, chain)
    return _device(device, _nested(_DATA, _nested(_VERDICT, verdict)))


def _key(data: bytes) -> bytes:
    return _nested(_KEY, _attribute(_VALUE, data))


def _attribute(kind: int, data: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def _nested(kind: int, data: bytes) -> bytes:
    return _attribute(kind | _NESTED, data)


def _string(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _find(data: bytes, wanted: int) -> bytes:
    at = 0
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if kind & 0x3FFF == wanted:
            return data[at + 4 : at + length]
        at += (length + 3) & ~3
    return b""
