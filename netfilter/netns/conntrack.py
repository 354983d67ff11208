"""Conntrack entries of a bottle: list, re-mark, delete. Needs CAP_NET_ADMIN.

Formats: linux/netfilter/nfnetlink_conntrack.h. A listing walks the hash table that all namespaces share (10 ms for
262,144 buckets, however few entries), so there is one per change, filtered by the kernel, and none without need.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from pyroute2.netlink.nfnetlink.nfctsocket import nfct_msg

from netfilter.netns.wire import ACK, HEADER, NETFILTER, REQUEST, Netlink, Request, attribute, attributes, message
from netfilter.spec import EPOCH_MASK, Address
from netfilter.verdict import PROTOCOLS, Flow

_SUBSYSTEM = 1 << 8
_NEW, _GET, _DELETE, _STATS = (_SUBSYSTEM | number for number in (0, 1, 2, 5))
_ENTRIES = 1  # CTA_STATS_GLOBAL_ENTRIES
_TUPLE_ORIG, _MARK, _ID, _MARK_MASK = 1, 8, 12, 21
_IP, _PROTO, _NESTED = 1, 2, 0x8000
_SOURCE = {4: 1, 6: 3}
_DESTINATION = {4: 2, 6: 4}
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_NFGEN = struct.Struct("=BBH")
_FILTER_SOURCE = 1  # CTA_FILTER_F_CTA_IP_SRC
_FAMILY = {4: 2, 6: 10}


class Entry(NamedTuple):
    """One entry: the flow, and what the kernel wants to hear to find it again."""

    flow: Flow
    key: bytes  # CTA_TUPLE_ORIG with its header
    ident: bytes  # CTA_ID: another flow of the same tuple has another one


class Conntrack:
    """The conntrack table of the namespace of the thread that made it."""

    def __init__(self) -> None:
        self._wire = Netlink(NETFILTER)

    def entries(self, sources: Iterable[Address]) -> list[Entry]:
        """Every entry whose original source is one of `sources`."""
        return [entry for source in sources for entry in self._listed(_listing(source), {source})]

    def entries_of_epoch(self, epoch: int, sources: Iterable[Address]) -> list[Entry]:
        """The same, both families at once, of those that carry `epoch` in their marks."""
        if self.count() == 0:
            return []
        mask = [("CTA_MARK", epoch), ("CTA_MARK_MASK", EPOCH_MASK)]
        request = message(nfct_msg, _GET, 0, f"list conntrack entries of epoch {epoch}", nfgen_family=0, attrs=mask)
        return self._listed(request, set(sources))

    def _listed(self, request: Request, sources: set[Address]) -> list[Entry]:
        entries = (_entry(body) for body in self._wire.dump(request))
        return [e for e in entries if e is not None and e.flow.source in sources]

    def count(self) -> int:
        """Entries of this namespace."""
        request = message(nfct_msg, _STATS, 0, "count conntrack entries", nfgen_family=0)
        return int.from_bytes(attributes(self._wire.ask(request), _NFGEN.size).get(_ENTRIES, b""), "big")

    def _key(self, entry: Entry) -> bytes:
        """The tuple by which this table finds the flow."""
        return entry.key

    def remark(self, marked: Iterable[tuple[Entry, int]]) -> int:
        """Give each entry its new mark; how many lived long enough."""
        return self._wire.run([_marking(entry, self._key(entry), mark) for entry, mark in marked])

    def delete(self, entries: Iterable[Entry]) -> int:
        """How many were still there."""
        return self._wire.run([_request(_DELETE, e, self._key(e), attribute(_ID, e.ident), "delete") for e in entries])

    def delete_same(self, entries: Iterable[Entry]) -> int:
        """Delete by tuple what another namespace's table has."""
        return self._wire.run([_request(_DELETE, e, self._key(e), b"", "delete") for e in entries])

    def close(self) -> None:
        self._wire.close()


class InnerConntrack(Conntrack):
    """A bottle's own table, asked for flows of the host's. An engine in there may translate where a flow comes from or
    goes to; its answers come in as they leave the host, so they name it on both sides."""

    def _key(self, entry: Entry) -> bytes:
        return _answers(entry)


def _listing(source: Address) -> Request:
    ip = {"attrs": [(f"CTA_IP_V{source.version}_SRC", str(source))]}
    attrs = [
        ("CTA_TUPLE_ORIG", {"attrs": [("CTA_TUPLE_IP", ip)]}),
        ("CTA_FILTER", {"attrs": [("CTA_FILTER_ORIG_FLAGS", _FILTER_SOURCE)]}),
    ]
    return message(
        nfct_msg, _GET, 0, f"list conntrack entries of {source}", nfgen_family=_FAMILY[source.version], attrs=attrs
    )


def _answers(entry: Entry) -> bytes:
    """The tuple of the other direction, which the kernel finds a flow by just as well."""
    flow = entry.flow
    if flow.proto not in PROTOCOLS:  # without ports: the same in both tables as far as anybody translates it
        return entry.key
    version, number = flow.source.version, attribute(_NUMBER, bytes((flow.proto,)))
    ip = attribute(_SOURCE[version], flow.destination.packed) + attribute(_DESTINATION[version], flow.source.packed)
    ports = attribute(_SOURCE_PORT, flow.destination_port.to_bytes(2, "big"))
    ports += attribute(_DESTINATION_PORT, flow.source_port.to_bytes(2, "big"))
    return attribute(_TUPLE_ORIG | _NESTED, attribute(_IP | _NESTED, ip) + attribute(_PROTO | _NESTED, number + ports))


def _marking(entry: Entry, key: bytes, mark: int) -> Request:
    rest = attribute(_MARK, struct.pack(">I", mark)) + attribute(_MARK_MASK, struct.pack(">I", 0xFFFF_FFFF))
    return _request(_NEW, entry, key, rest, "re-mark")


def _request(kind: int, entry: Entry, key: bytes, rest: bytes, verb: str) -> Request:
    body = _NFGEN.pack(_FAMILY[entry.flow.source.version], 0, 0) + key + rest
    data = HEADER.pack(HEADER.size + len(body), kind, REQUEST | ACK, 0, 0) + body
    return Request(f"{verb} conntrack entry {entry.flow}", data, (errno.ENOENT,))


def _entry(body: bytes) -> Entry | None:
    version = 4 if body[0] == _FAMILY[4] else 6
    top = attributes(body, _NFGEN.size)
    original = attributes(top.get(_TUPLE_ORIG, b""))
    ip, proto = attributes(original.get(_IP, b"")), attributes(original.get(_PROTO, b""))
    if _SOURCE[version] not in ip or _NUMBER not in proto:
        return None
    make = IPv4Address if version == 4 else IPv6Address
    flow = Flow(
        make(ip[_SOURCE[version]]),
        make(ip[_DESTINATION[version]]),
        proto[_NUMBER][0],
        int.from_bytes(proto.get(_SOURCE_PORT, b""), "big"),
        int.from_bytes(proto.get(_DESTINATION_PORT, b""), "big"),
        int.from_bytes(top.get(_MARK, b""), "big"),
    )
    return Entry(flow, attribute(_TUPLE_ORIG | _NESTED, top[_TUPLE_ORIG]), top.get(_ID, b""))
