"""Links, addresses, routes, neighbours and rules as comparable facts: of an event, of a listing, of what we want. Pure.

Formats: rtnetlink(7), linux/rtnetlink.h, linux/if_link.h, linux/fib_rules.h. A message of the kernel and a request
of ours have the same layout, so that what we ask for and what is there are read by the same code.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_network
from socket import AF_INET, AF_INET6
from typing import NamedTuple

from netfilter.netns import foreign_links, links
from netfilter.netns.wire import HEADER, Request, attributes
from netfilter.spec import Address

NEWLINK, DELLINK, GETLINK = 16, 17, 18
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30
NEWRULE, DELRULE, GETRULE = 32, 33, 34
NEWNETCONF = 80
DELETED = {NEWADDR: DELADDR, NEWROUTE: DELROUTE, NEWNEIGH: DELNEIGH}  # what takes a fact of a kind away

_IFINFO, _IFADDR = struct.Struct("=BxHiII"), struct.Struct("=BBBBI")
_RTMSG, _NDMSG = struct.Struct("=BBBBBBBBI"), struct.Struct("=BxxxiHBB")
_LINK_MAC, _LINK_NAME, _LINK_MASTER = 1, 3, 10
_ADDRESS, _LOCAL = 1, 2
_DST, _OIF, _GATEWAY, _PRIORITY, _PREFSRC, _METRICS, _TABLE = 1, 4, 5, 6, 7, 8, 15
_NEIGH_DST, _NEIGH_MAC = 1, 2
_UP, _PERMANENT, _NOARP, _CLONED = 0x1, 0x80, 0x40, 0x200
_MAIN, _BY_KERNEL = 254, 2
_USUAL_PRIORITY = {AF_INET: 0, AF_INET6: 1024}
_FRA_DST, _FRA_SRC, _FRA_IIF, _FRA_GOTO, _FRA_PRIORITY, _FRA_MARK, _FRA_TABLE, _FRA_MASK = 1, 2, 3, 4, 6, 10, 15, 16


class Fact(NamedTuple):
    """`kind` is the message that makes it (NEWLINK, NEWADDR, …), `device` the number of what has it."""

    kind: int
    device: int
    what: tuple[object, ...]

    def describe(self) -> str:
        words = [str(w) for w in self.what if w not in {"", 0, True, None}]
        return f"{_NOUNS[self.kind]} {' '.join(words)}"


_NOUNS = {NEWLINK: "device", NEWADDR: "address", NEWROUTE: "route", NEWNEIGH: "neighbour"}


def link(index: int, name: str, mac: str, *, up: bool = True, master: int = 0) -> Fact:
    return Fact(NEWLINK, index, (name, mac, "up" if up else "down", f"in bridge {master}" if master else ""))


def address(index: int, value: Address) -> Fact:
    return Fact(NEWADDR, index, (f"{value}/{value.max_prefixlen}",))


def route(index: int, value: Address) -> Fact:
    """To one address on the device itself."""
    return Fact(NEWROUTE, index, (f"{value}/{value.max_prefixlen}", "", "", ""))


def default_route(index: int, gateway: Address, source: Address) -> Fact:
    every = "0.0.0.0/0" if gateway.version == 4 else "::/0"
    return Fact(NEWROUTE, index, (every, f"via {gateway}", f"src {source}", ""))


def neighbour(index: int, value: Address, mac: str) -> Fact:
    return Fact(NEWNEIGH, index, (str(value), mac, "permanent"))


def read(kind: int, body: bytes) -> Fact | None:
    """The fact of a message, made or taken away; None: of no interest (another table, the kernel's own route …)."""
    if kind in {NEWLINK, DELLINK}:
        return _link(body)
    if kind in {NEWADDR, DELADDR}:
        return _address(body)
    if kind in {NEWROUTE, DELROUTE}:
        return _route(body)
    return _neighbour(body) if kind in {NEWNEIGH, DELNEIGH} else None


def _link(body: bytes) -> Fact | None:
    family, _, index, flags, _ = _IFINFO.unpack_from(body)
    if family:
        return None  # a bridge speaking about its port
    found = attributes(body, _IFINFO.size)
    name = found.get(_LINK_NAME, b"").rstrip(b"\0").decode(errors="replace")
    master = int.from_bytes(found.get(_LINK_MASTER, b""), "little")
    return link(index, name, found.get(_LINK_MAC, b"").hex(":"), up=bool(flags & _UP), master=master)


def _address(body: bytes) -> Fact | None:
    family, length, _, _, index = _IFADDR.unpack_from(body)
    found = attributes(body, _IFADDR.size)
    value = found.get(_LOCAL, found.get(_ADDRESS, b""))
    return Fact(NEWADDR, index, (f"{_printed(family, value)}/{length}",)) if value else None


def _route(body: bytes) -> Fact | None:
    family, length, _, _, table, protocol, _, _, flags = _RTMSG.unpack_from(body)
    found = attributes(body, _RTMSG.size)
    table = int.from_bytes(found.get(_TABLE, bytes([table])), "little")
    if table != _MAIN or protocol == _BY_KERNEL or flags & _CLONED or _OIF not in found or family not in _WIDTH:
        return None
    to = found.get(_DST, bytes(_WIDTH[family]))
    destination = str(ip_network((_printed(family, to), length), strict=False))
    gateway = f"via {_printed(family, found[_GATEWAY])}" if _GATEWAY in found else ""
    source = f"src {_printed(family, found[_PREFSRC])}" if _PREFSRC in found else ""
    priority = int.from_bytes(found.get(_PRIORITY, b""), "little")
    odd = "with a metric of its own" if priority != _USUAL_PRIORITY[family] or _METRICS in found else ""
    return Fact(NEWROUTE, int.from_bytes(found[_OIF], "little"), (destination, gateway, source, odd))


def _neighbour(body: bytes) -> Fact | None:
    family, index, state, _, _ = _NDMSG.unpack_from(body)
    found = attributes(body, _NDMSG.size)
    if state & _NOARP or family not in _WIDTH or _NEIGH_DST not in found:
        return None
    word = "permanent" if state & _PERMANENT else "learned"
    return Fact(NEWNEIGH, index, (_printed(family, found[_NEIGH_DST]), found.get(_NEIGH_MAC, b"").hex(":"), word))


_WIDTH = {AF_INET: 4, AF_INET6: 16}


def _printed(family: int, data: bytes) -> str:
    return str(IPv4Address(data[:4]) if family == AF_INET else IPv6Address(data[:16]))


def leads_out(kind: int, fact: Fact) -> bool:
    """A default route, come or gone."""
    return kind in {NEWROUTE, DELROUTE} and fact.what[0] in {"0.0.0.0/0", "::/0"}


def passing(fact: Fact) -> bool:
    """Whether a fact that nobody asked for comes and goes by itself: a neighbour that the kernel looked for."""
    return fact.kind == NEWNEIGH and fact.what[2] != "permanent"


class Against(NamedTuple):
    """What is there beside what is wanted."""

    missing: tuple[Fact, ...]
    extra: tuple[Fact, ...]

    def describe(self) -> list[str]:
        there = {f.kind for f in self.extra}
        missing = [f"{f.describe()} missing" for f in self.missing if f.kind != NEWLINK or f.kind not in there]
        return missing + [f"{f.describe()} {'found' if f.kind == NEWLINK else 'added'}" for f in self.extra]


def compare(wanted: frozenset[Fact], found: Iterable[Fact]) -> Against:
    there = {f for f in found if not passing(f)}
    return Against(tuple(sorted(wanted - there)), tuple(sorted(there - wanted)))


def breaks(kind: int, fact: Fact, wanted: frozenset[Fact]) -> str:
    """What an event about a device of ours changes for the worse; "" if nothing."""
    if kind != fact.kind:  # taken away
        return f"{fact.describe()} deleted" if fact.kind == NEWLINK or fact in wanted else ""
    if fact in wanted:
        return ""
    if passing(fact) and not any(w.kind == NEWNEIGH and w.what[0] == fact.what[0] for w in wanted):
        return ""
    return f"{fact.describe()} put there" if fact.kind != NEWLINK else f"{fact.describe()}"


# ── our way out of a namespace that others made ──

LEADING = frozenset({NEWROUTE, DELROUTE, DELRULE})


def led_elsewhere(kind: int, body: bytes, wanted: frozenset[foreign_links.Led]) -> bool:
    """Whether a message takes one of our rules or routes there away, or puts another default route in their place."""
    if kind == DELRULE:
        return rule(body).priority in {foreign_links.ANSWERS, foreign_links.OURS}
    found = attributes(body, _RTMSG.size)
    if int.from_bytes(found.get(_TABLE, b""), "little") != foreign_links.TABLE:
        return False
    return body[1] == 0 and (kind == DELROUTE or foreign_links.led(body) not in wanted)


# ── routing rules ──


PRIORITIES = frozenset({links.RULE_KERNEL, links.RULE_OWN, links.RULE_LOCAL, links.RULE_PASS, links.RULE_STOP})


class RuleFact(NamedTuple):
    """One policy rule, as far as ours are told apart."""

    family: int
    priority: int
    action: int
    table: int
    source: str
    iif: str
    mark: int
    mask: int
    goto: int


def rule(body: bytes) -> RuleFact:
    family, _, length, _, table, _, _, action, _ = _RTMSG.unpack_from(body)
    found = attributes(body, _RTMSG.size)

    def number(kind: int) -> int:
        return int.from_bytes(found.get(kind, b""), "little")

    source = f"{_printed(family, found[_FRA_SRC])}/{length}" if _FRA_SRC in found else ""
    iif = found.get(_FRA_IIF, b"").rstrip(b"\0").decode(errors="replace")
    table = number(_FRA_TABLE) or table
    mark, mask = number(_FRA_MARK), number(_FRA_MASK)
    return RuleFact(family, number(_FRA_PRIORITY), action, table, source, iif, mark, mask, number(_FRA_GOTO))


def asked(requests: Iterable[Request]) -> list[RuleFact]:
    """The rules that requests of ours make."""
    return [rule(r.data[HEADER.size :]) for r in requests if HEADER.unpack_from(r.data)[1] == NEWRULE]
