"""HostNetfilter: the protocol of spec.py on the kernel. Calls come from one thread at a time, in the host's namespace.

kept.py what is remembered ◀─ changing.py rules of bottles ◀─ making.py bottles made and removed ◀─ here: the host
"""

from __future__ import annotations

import contextlib
import re
import socket

from netfilter import render
from netfilter.bottle import Pipe, pair
from netfilter.errors import KernelRefused
from netfilter.language import FAMILY, TABLE, flush_set, table
from netfilter.making import Making, fit, pipe_of
from netfilter.netns import links, namespaces, uplink
from netfilter.spec import HostSpec

_SERVICE_MACS = ("02:61:6d:ff:00:01", "02:61:6d:ff:00:02")


class HostNetfilter(Making):
    """Keeps netfilter.spec.Netfilter. Needs CAP_NET_ADMIN and CAP_SYS_ADMIN.

    :param prefix: of device and namespace names: `<prefix><slot>`, `<prefix>-<slot>`.
    """

    def open_host(self, host: HostSpec) -> None:
        _check_host(host)
        if self._host != host and self._kept is not None:
            self._kept.close()
            self._kept = None
        self._host = host
        edges = self._edges()
        edges.nft.run(render.host_table(host), "make the host table")
        edges.forwarding.recall()
        edges.route.run(links.backstop(host))
        edges.route.run(links.local_guard(host, edges.route.dump(links.all_rules())))
        self._dialled.clear()
        edges.nft.run([flush_set(f"span{v}") for v in render.FAMILIES], "forget dialled ranges")
        pipe = service_pipe(host)
        self._mtu = uplink.mtu(edges.route)
        if not namespaces.exists(host.service_netns):
            namespaces.create(host.service_netns, lambda: None)
        if host.service_veth not in _devices():
            pipe.make(edges.route, self._mtu)
        pipe.set_up(edges.route)
        pipe.fit(edges.route, self._mtu)
        self._forward()

    def follow_uplink(self) -> None:
        """Every device of ours to the MTU of the way out, where that has changed."""
        route, pipes = self._edges().route, [pipe_of(bottle.net) for bottle in self._bottles.values()]
        size = uplink.mtu(route)
        if size == self._mtu:
            return
        for pipe in (*pipes, *(() if self._host is None else (service_pipe(self._host),))):
            fit(pipe, route, size)
        self._mtu = size

    def close_host(self) -> None:
        edges = self._edges()
        for slot in sorted(self.slots()):
            self.delete_bottle(slot)
        edges.forwarding.restore()
        if self._host is not None:
            namespaces.delete(self._host.service_netns)
            edges.route.run([links.delete(self._host.service_veth)])
        edges.nft.run([table("add"), table("delete")], "delete the host table")
        for family in (socket.AF_INET, socket.AF_INET6):
            while edges.route.run(links.no_backstop(family)):
                pass
        edges.close()
        self._kept, self._host = None, None

    def slots(self) -> frozenset[int]:
        names = [*namespaces.names(f"{self._prefix}-"), *_devices()]
        with contextlib.suppress(KernelRefused):
            listed = self._edges().nft.listing(f"list chains {FAMILY}")
            chains = (o["chain"] for o in listed if "chain" in o)
            names += [f"{self._prefix}{c['name'][1:]}" for c in chains if c["table"] == TABLE and c["name"][0] == "b"]
        found = (re.fullmatch(rf"{re.escape(self._prefix)}-?(\d+)", name) for name in names)
        return frozenset(int(m.group(1)) for m in found if m)


def _check_host(host: HostSpec) -> None:
    """:raises ValueError: an address of ours outside the pool would neither be protected nor masqueraded."""
    pools = {4: host.pool4, 6: host.pool6}
    for address in (*pair(host.gateway4, host.gateway6), *host.service_addresses):
        pool = pools[address.version]
        if pool is None or address not in pool:
            raise ValueError(f"address {address} lies outside the pool {pool}")


def service_pipe(host: HostSpec) -> Pipe:
    return Pipe(
        host.service_veth, host.service_netns, *_SERVICE_MACS,
        host.service_addresses, pair(host.gateway4, host.gateway6),
    )  # fmt: skip


def _devices() -> list[str]:
    return [name for _, name in socket.if_nameindex()]
