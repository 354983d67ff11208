"""Devices and routing of a namespace that others made: who its peers are, and our way out ahead of all of its own.

Formats: rtnetlink(7), linux/if_link.h, linux/net_namespace.h. A veth names its peer by IFLA_LINK and, where
that stands in another namespace, by IFLA_LINK_NETNSID: the number that the namespace of whoever asks has for it.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from netfilter.errors import KernelRefused
from netfilter.netns import links
from netfilter.netns.wire import (
    CREATE,
    EXCL,
    HEADER,
    REQUEST,
    ROUTE,
    Netlink,
    Request,
    attribute,
    attributes,
    message,
)  # fmt: skip
from netfilter.spec import Address

TABLE = 24941  # "am": a routing table of our own in there, asked before all but the local one
ANSWERS, OURS = 1, 2  # priorities of our rules
_NEWLINK, _GETLINK, _GETNSID = 16, 18, 90
_NEWRULE, _DELRULE, _GETROUTE = 32, 33, 26
_IFLA_IFNAME, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_NETNSID, _INFO_KIND = 3, 5, 10, 18, 37, 1
_NSA_NSID, _NSA_FD = 1, 3
_IFLA_IFALIAS, _BORROWED = 20, "agentmon: was down"
_RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC = 4, 5, 7
_FIRST = 16  # routes that are read
_MAIN = 254
_IFF_UP = 1
_TO_TABLE, _UNREACHABLE = 1, 7
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class Device(NamedTuple):
    """One device. `peer_space`: number of the namespace that its other end stands in, None: in the same."""

    number: int
    name: str
    kind: str
    peer: int
    peer_space: int | None
    bridge: int
    up: bool


def devices(route: Netlink) -> list[Device]:
    """All devices of the namespace that the socket belongs to."""
    return [_device(body) for body in route.dump(message(ifinfmsg, _GETLINK, 0, "list devices"))]


def device(route: Netlink, name: str) -> Device | None:
    """One device, by its name."""
    try:
        return _device(route.ask(message(ifinfmsg, _GETLINK, 0, f"device {name}", attrs=[("IFLA_IFNAME", name)])))
    except KernelRefused as e:
        if e.errno != errno.ENODEV:
            raise
        return None


def _device(body: bytes) -> Device:
    number, flags = struct.unpack_from("=iI", body, 4)
    found = attributes(body, 16)
    kind = attributes(found.get(_IFLA_LINKINFO, b"")).get(_INFO_KIND, b"").rstrip(b"\0").decode()
    space = found.get(_IFLA_NETNSID)
    return Device(
        number,
        found[_IFLA_IFNAME].rstrip(b"\0").decode(),
        kind,
        _number(found.get(_IFLA_LINK)),
        None if space is None else _number(space),
        _number(found.get(_IFLA_MASTER)),
        bool(flags & _IFF_UP),
    )


def _number(raw: bytes | None) -> int:
    return 0 if raw is None else int(struct.unpack("=i", raw[:4])[0])


def space(route: Netlink, namespace_fd: int) -> int | None:
    """The number that the socket's namespace has for another one; None: none yet, so no device of it leads there."""
    body = struct.pack("=B3x", 0) + attribute(_NSA_FD, struct.pack("=i", namespace_fd))
    data = HEADER.pack(HEADER.size + len(body), _GETNSID, REQUEST, 0, 0) + body
    found = _number(attributes(route.ask(Request("number of a namespace", data)), 4).get(_NSA_NSID))
    return None if found < 0 else found


def up(number: int) -> Request:
    return _flags(number, _IFF_UP, "up")


def down(number: int) -> Request:
    return _flags(number, 0, "down")


def _flags(number: int, flags: int, word: str) -> Request:
    what = f"take device {number} {word}"
    return message(ifinfmsg, _NEWLINK, 0, what, (errno.ENODEV,), index=number, flags=flags, change=_IFF_UP)


def lo_borrowed(route: Netlink) -> list[Request]:
    """What takes lo up where it is down, noted on it for `lo_returned`: a refusal's reset reaches its socket by lo."""
    lo = device(route, "lo")
    return [] if lo is None or lo.up else [_lo(_IFF_UP, _BORROWED)]


def lo_returned(route: Netlink) -> list[Request]:
    """What takes lo down again where `lo_borrowed` took it up, whoever did so."""
    body = route.ask(message(ifinfmsg, _GETLINK, 0, "device lo", attrs=[("IFLA_IFNAME", "lo")]))
    note = attributes(body, 16).get(_IFLA_IFALIAS, b"").rstrip(b"\0")
    return [_lo(0, "")] if note == _BORROWED.encode() else []


def _lo(flags: int, note: str) -> Request:
    attrs = [("IFLA_IFALIAS", note)]
    return message(ifinfmsg, _NEWLINK, 0, "switch lo", index=1, flags=flags, change=_IFF_UP, attrs=attrs)


def way_out(device: str, number: int, gateways: Sequence[tuple[Address, Address]]) -> list[Request]:
    """Routes by our device in a table of our own, and rules that ask it first; a family without a gateway reaches
    nothing. Answers to containers inside find their way by the namespace's own routes. Idempotent.

    :param gateways: (gateway, source) pairs.
    """
    requests = [links.default_route(number, gateway, source, TABLE) for gateway, source in gateways]
    have = {links.family(gateway) for gateway, _ in gateways}
    return requests + [r for family in _FAMILIES for r in _rules(family, _NEWRULE, device, family in have)]


def no_way_out(device: str) -> list[Request]:
    """Removes one rule of each kind; repeat until nothing changes. The routes go with the device."""
    return [r for family in _FAMILIES for leads in (True, False) for r in _rules(family, _DELRULE, device, leads)]


def _rules(family: int, verb: int, device: str, leads: bool) -> list[Request]:
    ours = [("FRA_TABLE", TABLE)] if leads else []
    answers = [("FRA_IIFNAME", device), ("FRA_TABLE", _MAIN)]
    return [
        _rule(family, verb, ANSWERS, _TO_TABLE, answers),
        _rule(family, verb, OURS, _TO_TABLE if leads else _UNREACHABLE, ours),
    ]


def _rule(family: int, verb: int, priority: int, action: int, more: list[tuple[str, Any]]) -> Request:
    done = errno.EEXIST if verb == _NEWRULE else errno.ENOENT
    flags = CREATE | EXCL if verb == _NEWRULE else 0
    return message(
        fibmsg, verb, flags, f"routing rule {priority}", (done, errno.EAFNOSUPPORT), family=int(family),
        action=action, table=0, attrs=[("FRA_PRIORITY", priority), *more],
    )  # fmt: skip


class Led(NamedTuple):
    """A default route of our table: by which device and gateway, and from which address."""

    device: int
    gateway: str
    source: str


def led_by(number: int, gateways: Sequence[tuple[Address, Address]]) -> frozenset[Led]:
    """The default routes of our table as `way_out` makes them."""
    return frozenset(Led(number, str(gateway), str(source)) for gateway, source in gateways)


def differing(route: Netlink, device: str, number: int, gateways: Sequence[tuple[Address, Address]]) -> bool:
    """Whether rules of ours were missing, which are made again at once, or routes are.

    Lists no rules, and of our table's routes no more than the first: what else is there may be any number.
    """
    have = {links.family(gateway) for gateway, _ in gateways}
    rules = [r for family in _FAMILIES for r in _rules(family, _NEWRULE, device, family in have)]
    made = route.run(rules)
    there = {led for family in have for led in default_routes(family)}
    return made > 0 or not led_by(number, gateways) <= there


def default_routes(family: int) -> set[Led]:
    """Of our table, in the calling thread's namespace; the kernel lists them before all others."""
    return {led(body) for body in beginning(family) if body[1] == 0}


def beginning(family: int) -> list[bytes]:
    """The first routes of our table."""
    route = Netlink(ROUTE)
    attrs = [("RTA_TABLE", TABLE)]
    try:
        request = message(
            rtmsg, _GETROUTE, 0, "list our routes", (errno.ENOENT, errno.EAFNOSUPPORT), family=family, attrs=attrs
        )
        return route.first(request, _FIRST)
    finally:
        route.close()


def led(body: bytes) -> Led:
    """Of a message about a route, from struct rtmsg on."""
    family, found = body[0], attributes(body, 12)
    gateway, source = (found.get(kind, b"") for kind in (_RTA_GATEWAY, _RTA_PREFSRC))
    return Led(_number(found.get(_RTA_OIF)), *(_printed(family, raw) for raw in (gateway, source)))


def _printed(family: int, raw: bytes) -> str:
    return socket.inet_ntop(family, raw) if raw else ""
