"""What is on one device now, and requests that take off it what does not belong there. Needs CAP_NET_ADMIN."""

from __future__ import annotations

import errno
from socket import AF_INET, AF_INET6
from typing import NamedTuple

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from netfilter import facts
from netfilter.errors import KernelRefused
from netfilter.netns.wire import ACK, HEADER, REQUEST, Netlink, Request, message

_UP = 1
_GONE = (errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENODEV)
_LISTED = (
    (ifaddrmsg, facts.GETADDR, "addresses"),
    (rtmsg, facts.GETROUTE, "routes"),
    (ndmsg, facts.GETNEIGH, "neighbours"),
)


class Found(NamedTuple):
    """A fact and the body of the message that told it."""

    fact: facts.Fact
    body: bytes


def device(route: Netlink, index: int) -> list[Found] | None:
    """Link, addresses, routes of table main and neighbours of one device; None: it is not in this namespace."""
    ask = message(ifinfmsg, facts.GETLINK, 0, f"look at device {index}", index=index)
    try:
        found = [_found(facts.NEWLINK, route.ask(ask))]
    except KernelRefused as e:
        if e.errno != errno.ENODEV:
            raise
        return None
    for kind, number, what in _LISTED:
        for family in (AF_INET, AF_INET6):
            listed = route.dump(message(kind, number, 0, f"list {what}", family=family))
            found += [_found(number - 2, body) for body in listed]
    return [f for f in found if f is not None and f.fact.device == index]


def _found(kind: int, body: bytes) -> Found | None:
    fact = facts.read(kind, body)
    return None if fact is None else Found(fact, body)


def taken_off(found: Found) -> Request:
    """Delete an address, route or neighbour as it was listed."""
    kind = facts.DELETED[found.fact.kind]
    head = HEADER.pack(HEADER.size + len(found.body), kind, REQUEST | ACK, 0, 0)
    return Request(f"delete {found.fact.describe()}", head + found.body, _GONE)


def link_put_back(index: int, name: str, mac: str) -> list[Request]:
    """Out of any bridge, down (before Linux 6.2 only so a name can be changed), named, up."""
    attrs = [("IFLA_IFNAME", name), ("IFLA_ADDRESS", mac), ("IFLA_MASTER", 0)]
    down = message(ifinfmsg, facts.NEWLINK, 0, f"take device {index} down", index=index, flags=0, change=_UP)
    named = message(ifinfmsg, facts.NEWLINK, 0, f"make device {index} {name} again", index=index, attrs=attrs)
    up = message(ifinfmsg, facts.NEWLINK, 0, f"bring {name} up", index=index, flags=_UP, change=_UP)
    return [down, named, up]


def rule_deleted(body: bytes) -> Request:
    """Delete a routing rule as it was listed."""
    head = HEADER.pack(HEADER.size + len(body), facts.DELRULE, REQUEST | ACK, 0, 0)
    return Request("delete a routing rule", head + body, _GONE)
