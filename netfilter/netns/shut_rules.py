"""Routing rules of the host that forward nothing from a device by which an attached namespace used to reach the world.

They hold while somebody has flushed the chains that shut it (foreign.py). A rule says whose it is by its table, which
an action that looks nothing up does not need: so it is found again by the slot alone. ip-rule(8), linux/fib_rules.h.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable

from pyroute2.netlink.rtnl.fibmsg import fibmsg

from netfilter import facts
from netfilter.netns import links
from netfilter.netns.wire import CREATE, EXCL, Netlink, Request, message

PRIORITY = 2  # behind local delivery
_NEWRULE, _DELRULE, _BLACKHOLE = 32, 33, 6
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def keep(route: Netlink, slot: int, devices: Iterable[str]) -> bool:
    """Rules for these devices and no others of the slot; whether one was missing. Needs CAP_NET_ADMIN."""
    wanted = {(int(family), name) for family in _FAMILIES for name in devices}
    there = {
        (r.family, r.iif)
        for r in map(facts.rule, route.dump(links.all_rules()))
        if (r.priority, r.action, r.table) == (PRIORITY, _BLACKHOLE, slot)
    }
    route.run([_rule(_DELRULE, family, slot, name) for family, name in sorted(there - wanted)])
    return route.run([_rule(_NEWRULE, family, slot, name) for family, name in sorted(wanted - there)]) > 0


def _rule(verb: int, family: int, slot: int, device: str) -> Request:
    fine = (errno.EEXIST if verb == _NEWRULE else errno.ENOENT, errno.EAFNOSUPPORT)
    flags = CREATE | EXCL if verb == _NEWRULE else 0
    attrs = [("FRA_PRIORITY", PRIORITY), ("FRA_TABLE", slot), ("FRA_IIFNAME", device)]
    return message(
        fibmsg,
        verb,
        flags,
        f"forward nothing from {device}",
        fine,
        family=family,
        action=_BLACKHOLE,
        table=0,
        attrs=attrs,
    )
