"""HostNetfilter: the protocol of spec.py on the kernel. All calls from one thread, none inside an asyncio loop.

What it remembers (contexts, last rules) is a cache: a new one finds the objects by name and adopts them.
"""

from __future__ import annotations

import contextlib
import errno
import re
import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pyroute2 import IPRoute

from netfilter import flows, links, netns, render
from netfilter.counters import Counters
from netfilter.errors import KernelRefused
from netfilter.nft import Nft
from netfilter.spec import Address, BottleNet, BottleRules, HostSpec, Learned, Mode

_GONE = {errno.ENOENT, errno.ENODEV}


class HostNetfilter:
    """Keeps netfilter.spec.Netfilter. Needs CAP_NET_ADMIN and CAP_SYS_ADMIN.

    :param prefix: of device and namespace names: `<prefix><slot>`, `<prefix>-<slot>`.
    """

    def __init__(self, prefix: str = "am") -> None:
        self._prefix = prefix
        self._host: HostSpec | None = None
        self._nets: dict[int, BottleNet] = {}
        self._rules: dict[int, BottleRules] = {}
        self._inner: dict[int, Nft] = {}
        self._edges: tuple[Nft, Any, flows.Conntrack, Counters] | None = None

    def _open(self) -> tuple[Nft, Any, flows.Conntrack, Counters]:
        if self._edges is None:
            self._edges = (Nft(), IPRoute(), flows.Conntrack(), Counters(render.TABLE.split()[1]))
        return self._edges

    # ── host ──

    def open_host(self, host: HostSpec) -> None:
        nft, ipr, _, _ = self._open()
        self._host = host
        nft.run(render.host_table(host), "host table")
        links.backstop(ipr, host)
        if not netns.exists(host.service_netns):
            netns.create(host.service_netns)
        if not ipr.link_lookup(ifname=host.service_veth):
            self._service_pipe(host).create(ipr, host.service_addresses, _gateways(host))
        self._forwarding()

    def _service_pipe(self, host: HostSpec) -> links.Pipe:
        return links.Pipe(host.service_veth, host.service_netns, "02:61:6d:ff:00:01", "02:61:6d:ff:00:02")

    def _forwarding(self) -> None:
        """Let answers come in: per device for IPv4, host-wide for IPv6; the table remembers what we switched."""
        nft, ipr, _, _ = self._open()
        assert self._host is not None
        ours = frozenset({self._host.service_veth, *(net.veth for net in self._nets.values())})
        for device in self._uplinks(ipr, ours):
            if links.sysctl(f"ipv4/conf/{device}/forwarding", "1") == "0":
                nft.run(f'add element {render.TABLE} switched4 {{ "{device}" }}', f"note forwarding of {device}")
        if self._host.pool6 is None:
            return
        for device in links.foreign_devices(ours):
            if links.sysctl(f"ipv6/conf/{device}/accept_ra", "2") not in {"1", "2", None}:
                links.sysctl(f"ipv6/conf/{device}/accept_ra", "0")
        if links.sysctl("ipv6/conf/all/forwarding", "1") == "0":
            note = f'add element {render.TABLE} switched6 {{ "all" }}'
            nft.run(f"{note}\n{render.switch6_rule()}", "note IPv6 forwarding")

    def _uplinks(self, ipr: Any, ours: frozenset[str]) -> list[str]:
        """Devices that some route leads to."""
        by_index = {number: name for number, name in _devices()}
        used = {int(r.get_attr("RTA_OIF") or 0) for r in ipr.get_routes(table=254)}
        return sorted({by_index[n] for n in used if n in by_index} - ours - {"lo"})

    def close_host(self) -> None:
        nft, ipr, conntrack, counters = self._open()
        for slot in sorted(self.slots()):
            self.delete_bottle(slot)
        for device in self._elements("switched4"):
            links.sysctl(f"ipv4/conf/{device}/forwarding", "0")
        if self._elements("switched6"):
            links.sysctl("ipv6/conf/all/forwarding", "0")
            for device in links.foreign_devices(frozenset()):
                if links.sysctl(f"ipv6/conf/{device}/accept_ra", "1") == "0":
                    links.sysctl(f"ipv6/conf/{device}/accept_ra", "0")
        if self._host is not None:
            self._service_pipe(self._host).delete(ipr)
            netns.delete(self._host.service_netns)
        nft.run(f"add table {render.TABLE}\ndelete table {render.TABLE}", "delete the host table")
        links.remove_backstop(ipr)
        for edge in (ipr, conntrack, counters):
            edge.close()
        self._edges, self._host = None, None

    def _elements(self, name: str) -> list[str]:
        nft = self._open()[0]
        try:
            listed = nft.listing(f"list set {render.TABLE} {name}")
        except KernelRefused:
            return []
        return [str(e) for o in listed for e in o.get("set", {}).get("elem", [])]

    # ── bottles ──

    def create_bottle(self, net: BottleNet) -> None:
        nft, ipr, _, _ = self._open()
        netns.create(net.netns)
        try:
            nft.run(render.bottle_closed(net), f"close bottle {net.slot}")
            pair = tuple(a for a in (net.addr4, net.addr6) if a is not None)
            gateways = tuple(a for a in (net.gateway4, net.gateway6) if a is not None)
            links.bottle_pipe(net).create(ipr, pair, gateways)
            self._inner[net.slot] = Nft(net.netns)
            self._inner[net.slot].run(render.inner_closed(), f"close bottle {net.slot} inside")
            self._nets[net.slot] = net
            self._forwarding()
        except OSError:
            self._nets.setdefault(net.slot, net)
            self.delete_bottle(net.slot)
            raise

    def adopt_bottle(self, net: BottleNet) -> None:
        self._nets[net.slot] = net
        self._inner[net.slot] = Nft(net.netns)

    def delete_bottle(self, slot: int) -> None:
        nft, ipr, conntrack, _ = self._open()
        veth, name = f"{self._prefix}{slot}", f"{self._prefix}-{slot}"
        first, *rest = render.bottle_deleted(slot, veth)
        _quietly(nft, first)
        for flow in self._live(slot):
            conntrack.delete(flow)
        for text in rest:
            _quietly(nft, text)
        self._inner.pop(slot, None)  # its socket would keep the namespace alive
        if netns.exists(name):
            netns.delete(name)  # the kernel takes the veth pair down with it, a few milliseconds later
        else:
            links.Pipe(veth, name, "", "").delete(ipr)
        self._nets.pop(slot, None)
        self._rules.pop(slot, None)

    def _addresses(self, slot: int) -> tuple[Address, ...]:
        """A slot is an offset into the pools."""
        net = self._nets.get(slot)
        if net is not None:
            return tuple(a for a in (net.addr4, net.addr6) if a is not None)
        pools = (self._host.pool4, self._host.pool6) if self._host is not None else ()
        return tuple(pool[slot] for pool in pools if pool is not None)

    def apply(self, rules: BottleRules) -> None:
        nft, _, conntrack, _ = self._open()
        net, slot = self._nets[rules.slot], rules.slot
        old = self._rules.get(slot)
        fresh = old is None or old.epoch != rules.epoch
        ending: list[flows.Flow] = []
        if fresh:
            for flow in self._live(slot):
                if flows.permitted(flow, rules):
                    conntrack.remark(flow, rules.epoch)
                else:
                    ending.append(flow)
        nft.run(render.bottle_rules(net, rules, self._own(), fresh=fresh), f"rules of bottle {slot}")
        self._inner[slot].run(render.inner_rules(rules, fresh=fresh), f"rules of bottle {slot} inside")
        self._rules[slot] = rules
        self._end(slot, ending)

    def _own(self) -> list[str]:
        assert self._host is not None
        return [str(p) for p in (self._host.pool4, self._host.pool6) if p is not None]

    def _end(self, slot: int, ending: Sequence[flows.Flow]) -> None:
        conntrack = self._open()[2]
        for flow in ending:
            conntrack.delete(flow)
        if ending:
            flows.destroy_sockets(self._nets[slot].netns, ending)

    def learn(self, slot: int, entries: Sequence[Learned]) -> None:
        nft = self._open()[0]
        self._inner[slot].run(render.learned_elements(0, entries), f"addresses of bottle {slot} inside")
        nft.run(render.learned_elements(slot, entries), f"addresses of bottle {slot}")

    def permit_service(self, entries: Sequence[Learned]) -> None:
        self._open()[0].run(render.dial_elements(entries), "addresses of the service namespace")

    def cut(self, slot: int) -> None:
        net, rules = self._nets[slot], self._rules[slot]
        self._open()[0].run(render.bottle_cut(net), f"cut bottle {slot}")
        self._rules[slot] = replace(rules, mode=Mode.CUT)

    def end_refused(self, slot: int) -> int:
        rules = self._rules[slot]
        ending = [flow for flow in self._live(slot) if not flows.permitted(flow, rules)]
        self._end(slot, ending)
        return len(ending)

    def _live(self, slot: int) -> list[flows.Flow]:
        conntrack = self._open()[2]
        return [flow for address in self._addresses(slot) for flow in conntrack.from_source(address)]

    def destroy_flows(self, slot: int) -> int:
        conntrack = self._open()[2]
        gone = sum(conntrack.delete(flow) for flow in self._live(slot))
        return gone + flows.destroy_sockets(f"{self._prefix}-{slot}", None)

    def refusals(self, slot: int) -> dict[str, int]:
        counters = self._open()[3]
        return {reason: counters.packets(f"c{slot}_{reason}") for reason in render.REASONS}

    def slots(self) -> frozenset[int]:
        names = [*netns.names(f"{self._prefix}-"), *(name for _, name in _devices())]
        with contextlib.suppress(KernelRefused):
            listed = self._open()[0].listing("list chains inet")
            table = render.TABLE.split()[1]
            names += [f"{self._prefix}{c['name'][1:]}" for o in listed if (c := o.get("chain")) and c["table"] == table
                      and re.fullmatch(r"[bk]\d+", c["name"])]  # fmt: skip
        found = (re.fullmatch(rf"{re.escape(self._prefix)}-?(\d+)", name) for name in names)
        return frozenset(int(m.group(1)) for m in found if m)


def _gateways(host: HostSpec) -> tuple[Address, ...]:
    return tuple(a for a in (host.gateway4, host.gateway6) if a is not None)


def _devices() -> list[tuple[int, str]]:
    return socket.if_nameindex()


def _quietly(nft: Nft, text: str) -> None:
    """Run what may find nothing to remove; a transaction that finds only a part is run line by line."""
    try:
        nft.run(text)
    except KernelRefused as e:
        if "\n" not in text:
            if e.errno not in _GONE:
                raise
            return
        for line in text.splitlines():
            _quietly(nft, line)
