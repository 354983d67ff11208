"""What this kernel has, found by trying it in a namespace that ends with the probe. Needs CAP_NET_ADMIN, CAP_SYS_ADMIN.

Versions are never compared: distributions build what they like.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from netfilter import language, render
from netfilter.errors import KernelRefused, Missing
from netfilter.language import Part
from netfilter.netns import links, namespaces, sysctl
from netfilter.netns.conntrack import Conntrack
from netfilter.netns.sockets import Sockets
from netfilter.netns.wire import ROUTE, Netlink
from netfilter.nft import Nft
from netfilter.spec import HostSpec

_HERE = IPv4Address("127.0.0.1")


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that a host needs or could use. `why_not` is empty where it is there."""

    name: str
    needed: bool
    why_not: str
    remedy: str

    @property
    def present(self) -> bool:
        return not self.why_not


def probe() -> tuple[Feature, ...]:
    """Every feature, needed ones first. Changes nothing that outlives the call.

    :raises Missing: no libnftables, or namespaces cannot be made: nothing else could be tried.
    """
    try:
        return namespaces.in_thread(_fresh)
    except KernelRefused as e:
        raise Missing("network namespaces", f"run as root on a kernel with CONFIG_NET_NS ({e.strerror})") from e


class BaseChain(NamedTuple):
    """A chain that hangs on a hook; `table` with its family: "inet filter"."""

    table: str
    chain: str
    kind: str  # filter | nat | route
    hook: str
    priority: int
    policy: str  # accept | drop; "" where it has none


def foreign_chains() -> list[BaseChain]:
    """Base chains of every table that is not agentmon's, of this thread's namespace. Lists no set and no rule.

    :raises Missing: no libnftables. :raises KernelRefused: without CAP_NET_ADMIN.
    """
    found = []
    for entry in Nft().listing("list chains"):
        chain = entry.get("chain", {})
        if "hook" in chain and not chain["table"].startswith(language.TABLE):
            table = f"{chain['family']} {chain['table']}"
            priority, policy = int(chain.get("prio", 0)), chain.get("policy", "")
            found.append(BaseChain(table, chain["name"], chain["type"], chain["hook"], priority, policy))
    return found


def require() -> None:
    """:raises Missing: the first needed feature that is not there."""
    for feature in probe():
        if feature.needed and not feature.present:
            raise Missing(f"{feature.name} ({feature.why_not})", feature.remedy)


def _fresh() -> tuple[Feature, ...]:
    namespaces.unshare()
    nft = Nft()
    found = [_tried(name, True, remedy, lambda c=check: c(nft)) for name, remedy, check in _NEEDED]  # type: ignore[misc]
    return tuple([*found, *(_tried(n, False, remedy, lambda c=c: c(nft)) for n, remedy, c in _OPTIONAL)])  # type: ignore[misc]


def _tried(name: str, needed: bool, remedy: str, check: Callable[[], object]) -> Feature:
    try:
        check()
    except OSError as e:
        return Feature(name, needed, e.strerror or str(e), remedy)
    return Feature(name, needed, "", remedy)


def _tables(nft: Nft) -> None:
    nft.run([language.table("add")], "make a table of family inet")


def _host_rules(nft: Nft) -> None:
    host = HostSpec(IPv4Network("10.213.0.0/16"), None, IPv4Address("10.213.0.1"), None, "", "probe", ())
    nft.run(render.host_table(host), "make the rules of a host")
    nft.run([language.table("delete")], "delete them")


def _conntrack(_: Nft) -> None:
    conntrack = Conntrack()
    try:
        conntrack.entries([_HERE])
        conntrack.count()
    finally:
        conntrack.close()


def _policy_rules(_: Nft) -> None:
    route = Netlink(ROUTE)
    host = HostSpec(IPv4Network("10.213.0.0/16"), None, IPv4Address("10.213.0.1"), None, "", "", ())
    try:
        route.run(links.backstop(host))
    finally:
        route.close()


def _destroy(_: Nft) -> None:
    """A real connection over loopback, destroyed."""
    route, sockets = Netlink(ROUTE), Sockets()
    try:
        route.run([links.up(1)])
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
            if sockets.destroy_at(*server.getsockname()) == 0:
                raise OSError(0, "no socket was destroyed")
    finally:
        route.close()
        sockets.close()


def _ipv6(_: Nft) -> None:
    if sysctl.read("ipv6/conf/all/forwarding") is None:
        raise OSError(0, "there is no /proc/sys/net/ipv6")
    socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()


def _egress(nft: Nft) -> None:
    """A hook of family netdev on what a device sends: before it, AF_PACKET frames pass a namespace's own rules."""
    words = 'add table netdev probe\nadd chain netdev probe out { type filter hook egress device "lo" priority 0; }'
    nft.run([Part(words, None)], "hook a device's egress")


_NF_TABLES = "a kernel with CONFIG_NF_TABLES_INET, NFT_CT, NFT_FIB_INET, NFT_REJECT_INET, NFT_MASQ (modprobe nf_tables)"
_NEEDED: tuple[tuple[str, str, Callable[[Nft], None]], ...] = (
    ("nftables of family inet", _NF_TABLES, _tables),
    ("the statements of the host's table", _NF_TABLES, _host_rules),
    ("conntrack over netlink", "a kernel with CONFIG_NF_CT_NETLINK (modprobe nf_conntrack_netlink)", _conntrack),
    ("policy routing", "a kernel with CONFIG_IP_MULTIPLE_TABLES", _policy_rules),
    ("SOCK_DESTROY", "a kernel with CONFIG_INET_DIAG_DESTROY (modprobe tcp_diag)", _destroy),
)
_OPTIONAL: tuple[tuple[str, str, Callable[[Nft], None]], ...] = (
    ("IPv6", "boot without ipv6.disable=1", _ipv6),
    ("netdev egress hook", "a kernel from 5.16 with CONFIG_NETFILTER_EGRESS", _egress),
)
