"""How large a packet may be on its way out: the smallest MTU of the devices that default routes lead by. No privilege.

A VPN's route in halves (0.0.0.0/1, 2000::/3) is one, and one in a table of its own. Formats: rtnetlink(7).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from errno import ENODEV
from socket import AF_INET, AF_INET6

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from netfilter.errors import KernelRefused
from netfilter.netns.wire import Netlink, attributes, message

USUAL = 1500  # where nothing leads out
LEAST = 1280  # of IPv6, which a device with less has not
_GETLINK, _GETROUTE = 18, 26
_WIDEST = {AF_INET: 1, AF_INET6: 3}  # longest prefixes that are still nearly everything
_RTMSG, _IFINFO = struct.Struct("=BBBBBBBBI"), struct.Struct("=BxHiII")
_NEXTHOP = struct.Struct("=HBBi")
_OIF, _MULTIPATH, _LINK_MTU = 4, 9, 4
_UNICAST, _UP = 1, 1


def mtu(route: Netlink) -> int:
    """Bytes. :raises KernelRefused: routes cannot be listed."""
    found = [size for number in sorted(_devices(route)) if (size := _mtu_of(route, number))]
    return max(min(found, default=USUAL), LEAST)


def _devices(route: Netlink) -> set[int]:
    found: set[int] = set()
    for family, widest in _WIDEST.items():
        for body in route.dump(message(rtmsg, _GETROUTE, 0, "list routes", family=family)):
            _, length, _, _, _, _, _, kind, _ = _RTMSG.unpack_from(body)
            if length <= widest and kind == _UNICAST:
                found |= set(_led_by(body))
    return found


def _led_by(body: bytes) -> Iterator[int]:
    found = attributes(body, _RTMSG.size)
    if _OIF in found:
        yield int.from_bytes(found[_OIF], "little")
    hops, at = found.get(_MULTIPATH, b""), 0
    while at + _NEXTHOP.size <= len(hops):
        length, _, _, number = _NEXTHOP.unpack_from(hops, at)
        yield number
        at += max(length + 3 & ~3, _NEXTHOP.size)


def _mtu_of(route: Netlink, number: int) -> int:
    """0: it is down, or gone."""
    try:
        body = route.ask(message(ifinfmsg, _GETLINK, 0, f"look at device {number}", index=number))
    except KernelRefused as e:
        if e.errno != ENODEV:
            raise
        return 0
    _, _, _, flags, _ = _IFINFO.unpack_from(body)
    return int.from_bytes(attributes(body, _IFINFO.size).get(_LINK_MTU, b""), "little") if flags & _UP else 0
