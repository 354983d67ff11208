"""Links, addresses, routes, rules, neighbours through pyroute2, and sysctls. Needs CAP_NET_ADMIN.

Not for use inside a running asyncio loop: pyroute2 runs a loop of its own.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from netfilter import netns
from netfilter.errors import KernelRefused
from netfilter.spec import PASS_MARK, Address, BottleNet, HostSpec, Network

INNER = "eth0"
RULE_LOCAL, RULE_PASS, RULE_STOP = 1000, 1001, 1002  # priorities of the backstop's rules
_MAIN = 254
_UNREACHABLE = 7  # FR_ACT_UNREACHABLE
_NODAD = 0x02
_ONLINK = 4
_LINK_SCOPE = 253
_PERMANENT = 0x80
_CONF = Path("/proc/sys/net")


@contextmanager
def refused(operation: str) -> Iterator[None]:
    """Turn pyroute2's errors into ours."""
    try:
        yield
    except NetlinkError as e:
        raise KernelRefused(int(e.code or errno.EIO), operation) from e


def ignoring(*numbers: int, work: Callable[[], Any]) -> Any:
    """Run `work`; these errnos mean that it was done already."""
    try:
        return work()
    except NetlinkError as e:
        if int(e.code or 0) not in numbers:
            raise
        return None


def sysctl(path: str, value: str) -> str | None:
    """Write net.`path`; returns what it was, or None where this kernel has no such switch."""
    file = _CONF / path
    try:
        before = file.read_text().strip()
        if before != value:
            file.write_text(value)
    except FileNotFoundError:
        return None
    return before


def index(ipr: Any, name: str) -> int:
    """:raises KernelRefused: ENODEV."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        found = ipr.link_lookup(ifname=name)
        if not found:
            raise KernelRefused(errno.ENODEV, f"device {name}", "there is no such device") from None
        return int(found[0])


def _width(address: Address | Network) -> int:
    return 32 if address.version == 4 else 128


def _family(version: int) -> int:
    return int(socket.AF_INET if version == 4 else socket.AF_INET6)


class Pipe:
    """A veth pair between the host and a namespace: what a bottle and the service namespace have in common."""

    def __init__(self, host: str, namespace: str, mac_host: str, mac_inner: str) -> None:
        self.host, self.namespace = host, namespace
        self.mac_host, self.mac_inner = mac_host, mac_inner

    def create(self, ipr: Any, addresses: tuple[Address, ...], gateways: tuple[Address, ...]) -> None:
        """Both ends up, addressed, routed to each other, with permanent neighbours: no ARP or ND is ever needed.

        :raises KernelRefused: EEXIST: the device name is taken.
        """
        with refused(f"make {self.host} into namespace {self.namespace}"):
            fd = os.open(netns.RUN / self.namespace, os.O_RDONLY | os.O_CLOEXEC)
            try:
                peer = {"ifname": INNER, "address": self.mac_inner, "net_ns_fd": fd}
                ipr.link("add", ifname=self.host, kind="veth", address=self.mac_host, peer=peer)
            finally:
                os.close(fd)
            self._host_side(ipr, addresses, gateways)
        netns.inside(self.namespace, lambda: self._inside(addresses, gateways))

    def _host_side(self, ipr: Any, addresses: tuple[Address, ...], gateways: tuple[Address, ...]) -> None:
        sysctl(f"ipv6/conf/{self.host}/addr_gen_mode", "1")
        sysctl(f"ipv6/conf/{self.host}/accept_ra", "0")
        sysctl(f"ipv4/conf/{self.host}/forwarding", "1")
        sysctl(f"ipv4/conf/{self.host}/send_redirects", "0")
        number = index(ipr, self.host)
        for gateway in gateways:
            extra = {"flags": _NODAD} if gateway.version == 6 else {}
            ipr.addr("add", index=number, address=str(gateway), prefixlen=_width(gateway), **extra)
        ipr.link("set", index=number, state="up")
        for address in addresses:
            ipr.neigh("replace", ifindex=number, dst=str(address), lladdr=self.mac_inner, state=_PERMANENT)
            ipr.route("replace", dst=f"{address}/{_width(address)}", oif=number, family=_family(address.version))

    def _inside(self, addresses: tuple[Address, ...], gateways: tuple[Address, ...]) -> None:
        with IPRoute() as ipr, refused(f"set up {INNER} in namespace {self.namespace}"):
            sysctl(f"ipv6/conf/{INNER}/addr_gen_mode", "1")
            sysctl(f"ipv6/conf/{INNER}/accept_ra", "0")
            ipr.link("set", index=1, state="up")
            number = index(ipr, INNER)
            for address in addresses:
                extra = {"flags": _NODAD} if address.version == 6 else {}
                ipr.addr("add", index=number, address=str(address), prefixlen=_width(address), **extra)
            ipr.link("set", index=number, state="up")
            for gateway in gateways:
                family = _family(gateway.version)
                source = next(str(a) for a in addresses if a.version == gateway.version)
                ipr.neigh("replace", ifindex=number, dst=str(gateway), lladdr=self.mac_host, state=_PERMANENT)
                ipr.route("add", dst=f"{gateway}/{_width(gateway)}", oif=number, scope=_LINK_SCOPE, family=family)
                ipr.route(
                    "add", dst="default", gateway=str(gateway), oif=number, flags=_ONLINK, prefsrc=source, family=family
                )

    def delete(self, ipr: Any) -> None:
        """Idempotent; the other end goes with this one."""
        with refused(f"delete {self.host}"):
            found = ipr.link_lookup(ifname=self.host)
            if found:
                ignoring(errno.ENODEV, work=lambda: ipr.link("del", index=found[0]))


def bottle_pipe(net: BottleNet) -> Pipe:
    return Pipe(net.veth, net.netns, net.mac_host, net.mac_bottle)


def backstop(ipr: Any, host: HostSpec) -> None:
    """Packets from the pool are forwarded with PASS_MARK or not at all, whoever flushes whichever table. Idempotent.

    `iif lo` covers reverse-path checks and what the host itself sends from the gateway's address.
    """
    with refused("routing backstop"):
        for pool in (host.pool4, host.pool6):
            if pool is None:
                continue
            base = {"src": str(pool.network_address), "src_len": pool.prefixlen, "family": _family(pool.version)}
            mark = {"fwmark": PASS_MARK, "fwmask": PASS_MARK}
            for rule in (
                {**base, "priority": RULE_LOCAL, "table": _MAIN, "iifname": "lo"},
                {**base, "priority": RULE_PASS, "table": _MAIN, **mark},
                {**base, "priority": RULE_STOP, "action": _UNREACHABLE},
            ):
                ignoring(errno.EEXIST, work=partial(ipr.rule, "add", **rule))


def remove_backstop(ipr: Any) -> None:
    """Remove the rules of our priorities in both families; idempotent."""
    with refused("remove routing backstop"):
        for family in (socket.AF_INET, socket.AF_INET6):
            for priority in (RULE_LOCAL, RULE_PASS, RULE_STOP):
                gone = False
                while not gone:
                    try:
                        ipr.rule("del", family=family, priority=priority)
                    except NetlinkError as e:
                        if int(e.code or 0) not in {errno.ENOENT, errno.EAFNOSUPPORT}:
                            raise
                        gone = True


def foreign_devices(ours: frozenset[str]) -> list[str]:
    """Devices that are not ours: where traffic of bottles leaves and answers come back."""
    names = (p.name for p in (_CONF / "ipv4/conf").iterdir())
    return sorted(n for n in names if n not in {"all", "default", "lo"} and n not in ours)
