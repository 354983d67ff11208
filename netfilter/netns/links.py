"""Requests for veth pairs, addresses, routes, neighbours and policy rules (rtnetlink(7)); wire.Netlink sends them."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Any

from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from netfilter.errors import KernelRefused
from netfilter.netns.wire import CREATE, EXCL, REPLACE, Request, attributes, message
from netfilter.spec import PASS_MARK, Address, HostSpec, Network

INNER = "eth0"
RULE_LOCAL, RULE_PASS, RULE_STOP = 1000, 1001, 1002  # priorities of the backstop's rules, in both families
RULE_KERNEL, RULE_OWN = 0, 1  # the kernel's rule for local delivery, ours beside it, and where they lead

_NEWLINK, _DELLINK, _NEWADDR, _NEWROUTE, _NEWNEIGH, _NEWRULE = 16, 17, 20, 24, 28, 32
_DELRULE, _GETRULE, _FRA_PRIORITY = 33, 34, 6
_IFF_UP = 1
_MAIN, _BOOT, _UNICAST = 254, 3, 1
_UNIVERSE, _LINK = 0, 253
_ONLINK = 4
_PERMANENT, _NODAD, _GEN_MODE_NONE = 0x80, 0x02, 1
_TO_TABLE, _GOTO, _UNREACHABLE = 1, 2, 7
_LOCAL_TABLE, _BY_KERNEL = 255, 2


def index(name: str) -> int:
    """Number of a device in the calling thread's namespace. :raises KernelRefused: ENODEV."""
    try:
        return socket.if_nametoindex(name)
    except OSError as e:
        raise KernelRefused(errno.ENODEV, f"device {name}", "there is no such device") from e


def width(address: Address | Network) -> int:
    return int(address.max_prefixlen)


def family(address: Address | Network) -> int:
    return int(socket.AF_INET if address.version == 4 else socket.AF_INET6)


def veth(name: str, mac: str, inner_mac: str, namespace_fd: int, inner: str = INNER, size: int = 1500) -> Request:
    """A pair: `name` here and `inner` in the namespace, both down. `size`: MTU of both, bytes."""
    there = [("IFLA_IFNAME", inner), ("IFLA_ADDRESS", inner_mac), ("IFLA_NET_NS_FD", namespace_fd), ("IFLA_MTU", size)]
    peer = {"attrs": there}
    info = {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", peer)]})]}
    attrs = [("IFLA_IFNAME", name), ("IFLA_ADDRESS", mac), ("IFLA_MTU", size), ("IFLA_LINKINFO", info)]
    return message(ifinfmsg, _NEWLINK, CREATE | EXCL, f"make device {name}", attrs=attrs)


def no_link_local(number: int) -> Request:
    """Before the device is up: the kernel gives it no address of its own choice."""
    mode = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _GEN_MODE_NONE)]})]}
    gone = (errno.EAFNOSUPPORT, errno.EINVAL)  # a kernel without IPv6
    return message(
        ifinfmsg, _NEWLINK, 0, "refuse link-local addresses", gone, index=number, attrs=[("IFLA_AF_SPEC", mode)]
    )


def up(number: int) -> Request:
    return message(ifinfmsg, _NEWLINK, 0, f"bring device {number} up", index=number, flags=_IFF_UP, change=_IFF_UP)


def mtu(number: int, size: int) -> Request:
    return message(ifinfmsg, _NEWLINK, 0, f"set the MTU of device {number}", index=number, attrs=[("IFLA_MTU", size)])


def delete(name: str) -> Request:
    """The other end goes with it; fine if there is none."""
    attrs = [("IFLA_IFNAME", name)]
    return message(ifinfmsg, _DELLINK, 0, f"delete device {name}", (errno.ENODEV,), attrs=attrs)


def address(number: int, value: Address) -> Request:
    """`value`/32 or /128 on device `number`, at once usable (no duplicate address detection)."""
    what = f"add address {value}"
    attrs = [("IFA_LOCAL", str(value)), ("IFA_ADDRESS", str(value))]
    fields: dict[str, Any] = {"family": family(value), "prefixlen": width(value), "index": number}
    flags = _NODAD if value.version == 6 else 0
    return message(ifaddrmsg, _NEWADDR, CREATE | REPLACE, what, (errno.EEXIST,), flags=flags, attrs=attrs, **fields)


def neighbour(number: int, value: Address, mac: str) -> Request:
    attrs = [("NDA_DST", str(value)), ("NDA_LLADDR", mac)]
    fields: dict[str, Any] = {"family": family(value), "ifindex": number, "state": _PERMANENT}
    return message(ndmsg, _NEWNEIGH, CREATE | REPLACE, f"add neighbour {value}", attrs=attrs, **fields)


def route(number: int, value: Address) -> Request:
    """`value` is reached directly through device `number`."""
    return _route(f"add route to {value}", value, width(value), _LINK, [("RTA_DST", str(value)), ("RTA_OIF", number)])


def default_route(number: int, gateway: Address, source: Address, table: int = _MAIN) -> Request:
    attrs = [("RTA_GATEWAY", str(gateway)), ("RTA_OIF", number), ("RTA_PREFSRC", str(source)), ("RTA_TABLE", table)]
    return _route(f"add default route by {gateway}", gateway, 0, _UNIVERSE, attrs, _ONLINK)


def _route(what: str, value: Address, length: int, scope: int, attrs: list[Any], flags: int = 0) -> Request:
    fields: dict[str, Any] = {"family": family(value), "dst_len": length, "table": _MAIN, "proto": _BOOT}
    return message(
        rtmsg, _NEWROUTE, CREATE | REPLACE, what, scope=0 if value.version == 6 else scope, flags=flags, type=_UNICAST,
        attrs=attrs, **fields,
    )  # fmt: skip


def backstop(host: HostSpec) -> list[Request]:
    """Packets from the pool are forwarded with PASS_MARK or not at all, whoever flushes whichever table. Idempotent.

    `iif lo` covers reverse-path checks and what the host itself sends from the gateway's or a refused address.
    """
    requests = []
    for pool in (host.pool4, host.pool6):
        if pool is None:
            continue
        mark = [("FRA_FWMARK", PASS_MARK), ("FRA_FWMASK", PASS_MARK)]
        requests += [
            _rule(pool, RULE_LOCAL, _TO_TABLE, [("FRA_IIFNAME", "lo")]),
            _rule(pool, RULE_PASS, _TO_TABLE, mark),
            _rule(pool, RULE_STOP, _UNREACHABLE, []),
        ]
    return requests


def _rule(pool: Network, priority: int, action: int, attrs: list[Any], table: int = _MAIN) -> Request:
    table = table if action == _TO_TABLE else 0
    attrs = [("FRA_PRIORITY", priority), ("FRA_SRC", str(pool.network_address)), *attrs]
    if table:
        attrs.append(("FRA_TABLE", table))
    fields: dict[str, Any] = {"family": family(pool), "src_len": pool.prefixlen, "action": action, "table": table}
    return message(
        fibmsg, _NEWRULE, CREATE | EXCL, f"add rule {priority} for {pool}", (errno.EEXIST,), attrs=attrs, **fields
    )


def local_guard(host: HostSpec, rules: Sequence[bytes]) -> list[Request]:
    """Before local delivery too: or a bottle would reach the host's own services once our table is gone.

    The kernel delivers locally by a rule of priority 0, and asks rules of one priority in the order of their making.
    So the kernel's is made again behind ours, and only then taken away in front: at no moment there is none.

    :param rules: bodies of a dump of the rules of both families; nothing to do for a family whose guard is in place.
    """
    requests = []
    for pool in (host.pool4, host.pool6):
        if pool is None:
            continue
        first = [kind for version, kind in map(_first_rule, rules) if version == family(pool) and kind is not None]
        requests.append(_rule(pool, RULE_OWN, _TO_TABLE, [("FRA_IIFNAME", "lo")], _LOCAL_TABLE))
        if first and not first[0]:
            continue
        goto = [("FRA_IIFNAME", "lo"), ("FRA_GOTO", RULE_OWN)]
        unmarked = [("FRA_FWMARK", 0), ("FRA_FWMASK", PASS_MARK)]
        requests += [_rule(pool, RULE_KERNEL, _GOTO, goto), _rule(pool, RULE_KERNEL, _UNREACHABLE, unmarked)]
        if first.count(True) < 2:
            requests.append(_local_delivery(pool, _NEWRULE))
        requests.append(_local_delivery(pool, _DELRULE))
    return requests


def _first_rule(body: bytes) -> tuple[int, bool | None]:
    """Family of a rule; if it has the first priority, whether it is the kernel's for local delivery, else None."""
    header, found = body[:12], attributes(body, 12)
    if found.get(_FRA_PRIORITY, b"\0\0\0\0") != b"\0\0\0\0":
        return header[0], None
    return header[0], header[4] == _LOCAL_TABLE and header[2] == 0 and header[7] == _TO_TABLE


def _local_delivery(pool: Network, verb: int) -> Request:
    attrs = [("FRA_PRIORITY", RULE_KERNEL), ("FRA_TABLE", _LOCAL_TABLE), ("FRA_PROTOCOL", _BY_KERNEL)]
    fields: dict[str, Any] = {"family": family(pool), "action": _TO_TABLE, "table": _LOCAL_TABLE}
    if verb == _DELRULE:
        attrs.pop()  # whoever made it
    flags = CREATE if verb == _NEWRULE else 0  # without EXCL: there is one like it
    return message(fibmsg, verb, flags, "put local delivery behind the guard", attrs=attrs, **fields)


def all_rules() -> Request:
    """To be dumped: the rules of every family."""
    return message(fibmsg, _GETRULE, 0, "list routing rules")


def no_backstop(version_family: int) -> list[Request]:
    """Delete one rule of each of our priorities; fine if there is none. Repeat until nothing changes."""
    gone = (errno.ENOENT, errno.EAFNOSUPPORT)
    at_home, marked = [("FRA_IIFNAME", "lo")], [("FRA_FWMASK", PASS_MARK)]
    rules: tuple[tuple[int, int, list[tuple[str, Any]]], ...] = (
        (RULE_KERNEL, _UNREACHABLE, marked),
        (RULE_STOP, _UNREACHABLE, []),
        (RULE_KERNEL, _GOTO, [*at_home, ("FRA_GOTO", RULE_OWN)]),
        (RULE_OWN, _TO_TABLE, at_home),
        (RULE_LOCAL, _TO_TABLE, at_home),
        (RULE_PASS, _TO_TABLE, marked),
    )
    return [
        message(
            fibmsg, _DELRULE, 0, f"delete rule {priority}", gone,
            family=version_family, action=action, table=0,
            attrs=[("FRA_PRIORITY", priority), *more],
        )
        for priority, action, more in rules
    ]  # fmt: skip
