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
from netfilter.errors import KernelRefused, TooMuch
from netfilter.netns.wire import ACK, HEADER, REQUEST, ROUTE, Netlink, Request, message

_UP = 1
_GONE = (errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENODEV)
_MAIN = 254
MOST = 512  # addresses, routes or neighbours of a family on one device


class Found(NamedTuple):
    """A fact and the body of the message that told it."""

    fact: facts.Fact
    body: bytes


def device(route: Netlink, index: int) -> list[Found] | None:
    """Link, addresses, routes of table main and neighbours of one device; None: it is not in this namespace.

    The kernel leaves out what is not of this device. `route`: of the calling thread's namespace.

    :raises TooMuch: there are more than MOST of a kind.
    """
    ask = message(ifinfmsg, facts.GETLINK, 0, f"look at device {index}", index=index)
    try:
        found = [_found(facts.NEWLINK, route.ask(ask))]
    except KernelRefused as e:
        if e.errno != errno.ENODEV:
            raise
        return None
    for number, what in ((facts.GETADDR, "addresses"), (facts.GETROUTE, "routes"), (facts.GETNEIGH, "neighbours")):
        for family in (AF_INET, AF_INET6):
            found += [_found(number - 2, body) for body in _listed(_of_device(number, family, index), what)]
    return [f for f in found if f is not None and f.fact.device == index]


def _of_device(number: int, family: int, index: int) -> Request:
    what = f"look at device {index}"
    if number == facts.GETADDR:
        return message(ifaddrmsg, number, 0, what, family=family, index=index)
    if number == facts.GETNEIGH:
        return message(ndmsg, number, 0, what, family=family, attrs=[("NDA_IFINDEX", index)])
    attrs = [("RTA_TABLE", _MAIN), ("RTA_OIF", index)]
    return message(rtmsg, number, 0, what, (errno.ENOENT,), family=family, attrs=attrs)


def _listed(request: Request, what: str) -> list[bytes]:
    lister = Netlink(ROUTE)
    try:
        found = lister.first(request, MOST + 1)
    finally:
        lister.close()
    if len(found) > MOST:
        raise TooMuch(request.what, f"it has more than {MOST} {what}")
    return found


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
