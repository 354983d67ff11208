"""A namespace that others made, held as a bottle: bound to a name, shut, and given a way out that is ours.

    before   app ── eth0 ══ vethX ── bridge ── world
    held     app ── eth0 ══ vethX ✗                      agentmon0 ══ am16 ── the bottle's chain on the host

Nothing of its own is changed: its addresses, routes and rules stay, ours are asked first, and go with `let_go`.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from netfilter import render_foreign
from netfilter.bottle import Inner, Pipe, pair
from netfilter.errors import KernelRefused
from netfilter.language import TABLE, table
from netfilter.netns import foreign_links, links, namespaces, shut_rules, sysctl
from netfilter.netns.foreign_links import Device
from netfilter.netns.wire import ROUTE, Netlink, Request
from netfilter.nfnetlink import Elements
from netfilter.nft import Nft
from netfilter.spec import Address, BottleNet, Foreign, Holding

T = TypeVar("T")
# Kinds of devices that reach nothing by themselves, or by IP packets that our rules judge in turn.
_HARMLESS = {"bridge", "dummy", "ifb", "vrf", "bond", "ipip", "sit", "gre", "gretap", "erspan", "ip6tnl", "ip6gre"}
_HARMLESS |= {"ip6gretap", "vti", "vti6", "xfrm", "vxlan", "geneve", "wireguard", "nlmon", "vcan"}


@dataclass(frozen=True, slots=True)
class ForeignPipe(Pipe):
    """A pipe whose inner end stands beside devices of others."""

    def pairs(self) -> list[tuple[Address, Address]]:
        """(gateway, our address in there) of each family."""
        return [(g, next(a for a in self.addresses if a.version == g.version)) for g in self.gateways]

    def _inner_requests(self, number: int) -> Sequence[Request]:
        sysctl.write(f"ipv6/conf/{self.inner}/disable_ipv6", "0")  # engines switch it off where a network has no IPv6
        requests = [*_with_route(foreign_links.lo_borrowed), links.no_link_local(number)]
        requests += [links.address(number, a) for a in self.addresses]
        requests.append(links.up(number))
        requests += [links.neighbour(number, gateway, self.mac_host) for gateway in self.gateways]
        return [*requests, *foreign_links.way_out(self.inner, number, self.pairs())]


def foreign_pipe(net: BottleNet) -> ForeignPipe:
    assert net.foreign is not None
    addresses, gateways = pair(net.addr4, net.addr6), pair(net.gateway4, net.gateway6)
    return ForeignPipe(net.veth, net.netns, net.mac_host, net.mac_bottle, addresses, gateways, inner=net.foreign.device)


def close_inside(net: BottleNet, namespace: str, inode: int) -> Inner:
    """Bind the namespace to the bottle's name and refuse everything in it.

    :raises KernelRefused: ESTALE, it is not that namespace any more. What was begun is undone.
    """

    def first() -> Inner:
        inner = Inner()
        inner.elements.run(render_foreign.inner_closed(net), "close the foreign namespace")
        return inner

    namespaces.bind(net.netns, namespace, inode)
    try:
        return namespaces.inside(net.netns, first)
    except BaseException:
        namespaces.delete(net.netns)
        raise


def is_foreign(name: str) -> bool:
    """Whether namespace `name` has our device beside its own, or its rules: for a slot that nobody remembers."""

    def look() -> bool:
        with contextlib.suppress(KernelRefused):
            links.index(Foreign().device)
            return True
        with contextlib.suppress(KernelRefused):
            return _with_table(lambda elements: bool(elements.packets([render_foreign.KEPT])))
        return False

    return namespaces.exists(name) and namespaces.inside(name, look)


def leave(name: str) -> None:
    """Remove what is ours in namespace `name`, and its name; idempotent. Its processes go on."""

    def work() -> None:
        _with_route(_remove_rules)
        _with_route(lambda route: route.run(foreign_links.lo_returned(route)))
        try:
            _with_table(lambda elements: elements.run([table("add"), table("delete")], "remove our table"))
        except KernelRefused as e:
            if e.errno != errno.EPERM:  # its root made a table of our name its own
                raise

    if namespaces.exists(name):
        try:
            namespaces.inside(name, work)
        finally:
            namespaces.delete(name)


def _remove_rules(route: Netlink) -> None:
    while route.run(foreign_links.no_way_out(Foreign().device)):
        pass


def _with_route(work: Callable[[Netlink], T]) -> T:
    route = Netlink(ROUTE)
    try:
        return work(route)
    finally:
        route.close()


def _with_table(work: Callable[[Elements], T]) -> T:
    """libnftables would read whatever else is in there."""
    elements = Elements(TABLE)
    try:
        return work(elements)
    finally:
        elements.close()


def reconnect(route: Netlink, net: BottleNet, size: int) -> bool:
    """Our device, addresses, rules and routes where somebody in there removed or replaced them; whether any was.

    What it costs does not depend on what else is in there.
    """
    pipe, missing = foreign_pipe(net), False
    try:
        links.index(net.veth)
    except KernelRefused:
        pipe.make(route, size)
        missing = True

    def look(there: Netlink) -> bool:
        found = foreign_links.device(there, pipe.inner)
        if found is None or not found.up:
            return True
        return foreign_links.differing(there, pipe.inner, found.number, pipe.pairs())

    if missing or namespaces.inside(net.netns, lambda: _with_route(look)):
        pipe.set_up(route)
        return True
    return False


# ── its own ways out ──


def shut(nft: Nft, route: Netlink, net: BottleNet) -> Holding:
    """Shut the host's ends of all its devices but ours."""
    outer, found = _shut(nft, route, net)
    return Holding(found, _not_shut(net, outer))


def shut_new(nft: Nft, route: Netlink, net: BottleNet) -> tuple[str, ...]:
    """The same again: names of those that have come since, or were opened."""
    return _shut(nft, route, net)[1]


def _shut(nft: Nft, route: Netlink, net: BottleNet) -> tuple[list[Device], tuple[str, ...]]:
    outer = _outer(route, net.netns, net.veth)
    known = _chains(nft, net.slot)
    wanted = [(d.number, d.name) for d in outer if f"ingress{net.slot}_{d.number}" not in known]
    if wanted:
        nft.run(render_foreign.shut(net.slot, wanted), f"shut the own devices of bottle {net.slot}")
    # What follows holds when somebody flushes our tables, too.
    ports = [d for d in outer if d.bridge and d.up]
    route.run([foreign_links.down(d.number) for d in ports])
    shut_rules.keep(route, net.slot, [d.name for d in outer if not d.bridge])
    return outer, tuple(sorted({n for _, n in wanted} | {d.name for d in ports}))


def reopen(nft: Nft, route: Netlink, slot: int, netns: str, veth: str) -> None:
    """Undo `shut`; idempotent."""
    known = _chains(nft, slot)
    if known:
        nft.run(render_foreign.opened(known), f"open the own devices of bottle {slot}")
    with contextlib.suppress(KernelRefused):  # without a chain left the table goes too
        if not _chains(nft, None):
            nft.run(render_foreign.no_shut_table(), "remove the table of shut devices")
    shut_rules.keep(route, slot, ())
    if namespaces.exists(netns):
        route.run([foreign_links.up(d.number) for d in _outer(route, netns, veth) if d.bridge and not d.up])


def _outer(route: Netlink, netns: str, ours: str) -> list[Device]:
    """Devices of the host whose other end stands in namespace `netns`."""
    found = foreign_links.devices(route)  # numbers namespaces that have none yet
    with namespaces.handle(netns) as fd:
        number = foreign_links.space(route, fd)
    bridges = {d.number for d in found if d.kind == "bridge"}
    ends = [d for d in found if d.kind == "veth" and number is not None and d.peer_space == number and d.name != ours]
    return [d if d.bridge in bridges else d._replace(bridge=0) for d in ends]


def _not_shut(net: BottleNet, outer: Sequence[Device]) -> tuple[str, ...]:
    """Devices in there that lead elsewhere than to one of `outer`."""
    assert net.foreign is not None
    own, held = {"lo", net.foreign.device}, {d.peer for d in outer}
    inner = namespaces.inside(net.netns, lambda: _with_route(foreign_links.devices))
    return tuple(sorted(d.name for d in inner if d.name not in own and d.number not in held and _leads_away(d)))


def _leads_away(device: Device) -> bool:
    if device.kind == "veth":
        return device.peer_space is not None
    return device.kind not in _HARMLESS


def _chains(nft: Nft, slot: int | None) -> list[str]:
    """Names of the chains that shut devices of a slot; None: of every slot."""
    which = r"(ingress|egress)\d+_\d+" if slot is None else rf"(ingress|egress){slot}_\d+"
    chains = (o["chain"] for o in nft.listing("list chains netdev") if "chain" in o)
    return [c["name"] for c in chains if c["table"] == "agentmon" and re.fullmatch(which, c["name"])]


# ── afterwards ──


def flushed(inner: Inner) -> bool:
    """Whether somebody took our table away in there."""
    try:
        inner.elements.packets([render_foreign.KEPT])
    except KernelRefused:
        return True
    return False
