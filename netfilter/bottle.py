"""What the host keeps open for one bottle: sockets in its namespace, the rules in force, what it has learned."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from netfilter.bytecode import Message
from netfilter.elements import Segments
from netfilter.language import TABLE
from netfilter.netns import links, namespaces, sysctl
from netfilter.netns.conntrack import InnerConntrack
from netfilter.netns.sockets import Sockets
from netfilter.netns.wire import ROUTE, Netlink, Request, out_of_the_way
from netfilter.nfnetlink import Elements
from netfilter.render_bottle import Static, inner_closed, static
from netfilter.revoke import Region
from netfilter.spec import Address, BottleNet, BottleRules, Endpoint, Learned, Mode
from netfilter.verdict import Judge

if TYPE_CHECKING:
    from netfilter.plan import Planned

T = TypeVar("T")
_NS = 1_000_000_000
_PRUNE_FROM = 4096


class Inner:
    """Sockets bound to a bottle's namespace. Made in a thread that is in there; they keep the namespace alive."""

    def __init__(self) -> None:
        self._space = out_of_the_way(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        self.elements = Elements(TABLE)
        self.conntrack = InnerConntrack()
        self.sockets = Sockets()

    def inside(self, work: Callable[[], T]) -> T:
        """Run `work` in the namespace, which may have no name any more."""
        return namespaces.inside_fd(self._space, work)

    def close(self) -> None:
        os.close(self._space)
        for edge in (self.elements, self.conntrack, self.sockets):
            edge.close()


@dataclass(slots=True)
class Bottle:
    net: BottleNet
    inner: Inner
    rules: BottleRules | None = None
    judge: Judge | None = None
    untouched: bool = False  # made by us and never open: nothing can have passed
    led: bool = True  # its device leads to its chain; until that has rules it leads nowhere
    asked: int = -1  # epoch of the last change: the chain names `rules.epoch`, what went since then is in `region`
    epochs: int = 0  # how many it has had here
    chain: tuple[Mode, tuple[Endpoint, ...]] | None = None  # what its chain was written for
    code: list[Message] | None = None  # the rules of its chain as they were sent
    static: Static | None = None  # elements of the rules in force
    region: Region = field(default_factory=Region)  # what was taken back since the epoch began
    unsure: bool = False  # something may have gone that `region` does not cover
    segments: Segments = field(default_factory=Segments)
    learned: dict[Learned, int] = field(default_factory=dict)  # timeout_s 0 → end, for undoing a failed change

    @classmethod
    def made(cls, net: BottleNet, inner: Inner) -> Bottle:
        """One that has just been made, closed."""
        rules = BottleRules(net.slot, 0, Mode.CLOSED)
        return cls(net, inner, rules, untouched=True, led=False, static=static(rules))

    def mode(self) -> Mode:
        """What is asked of the host's side now."""
        return Mode.CLOSED if self.rules is None else self.rules.mode

    def took(self, plan: Planned) -> None:
        """A change is in force."""
        learned = plan.rules.learned
        if not plan.fresh:
            known = {Learned(e.address, e.proto, e.ports, 0) for e in learned}
            learned = (*learned, *(e for e in self.remembered() if e not in known))
        epoch = plan.rules.epoch if plan.renumbers or self.rules is None else self.rules.epoch
        self.rules, self.asked = replace(plan.rules, learned=learned, epoch=epoch), plan.rules.epoch
        self.static, self.segments = plan.static, plan.segments
        self.region, self.unsure = plan.region, plan.unsure
        if plan.rewrites:
            self.chain, self.led = (plan.rules.mode, plan.rules.services), True
        if plan.renumbers:
            self.epochs += 1
        if plan.fresh and plan.renumbers:
            self.learned.clear()
        for entry in plan.closed:
            self.learned.pop(entry, None)

    def addresses(self) -> tuple[Address, ...]:
        return pair(self.net.addr4, self.net.addr6)

    def note(self, entries: Iterable[Learned], now_ns: int) -> None:
        """Remember until when each entry holds."""
        for e in entries:
            if e.timeout_s > 0:
                key = Learned(e.address, e.proto, e.ports, 0)
                self.learned[key] = max(now_ns + e.timeout_s * _NS, self.learned.get(key, 0))
        if len(self.learned) > _PRUNE_FROM:
            self.unsure = True  # a flow may outlive the memory of its address
            self.learned = {key: end for key, end in self.learned.items() if end > now_ns}

    def written(self) -> BottleRules | None:
        """The rules in force, with mode and services of the chains: a cut alone is an element on the host."""
        if self.rules is None or self.chain is None:
            return self.rules
        mode, services = self.chain
        return replace(self.rules, mode=mode, services=services)

    def remembered(self) -> list[Learned]:
        """Every address that a flow may have been let through to by name, without its time."""
        carried = () if self.rules is None else self.rules.learned
        return list({**self.learned, **{Learned(e.address, e.proto, e.ports, 0): 0 for e in carried}})

    def still_learned(self, now_ns: int) -> tuple[Learned, ...]:
        return tuple(
            Learned(key.address, key.proto, key.ports, max(1, (end - now_ns) // _NS))
            for key, end in self.learned.items()
            if end > now_ns
        )


def pair(four: Address | None, six: Address | None) -> tuple[Address, ...]:
    return tuple(a for a in (four, six) if a is not None)


def now_ns() -> int:
    return time.monotonic_ns()


# ── pipes: what a bottle and the service namespace have in common ────────────


@dataclass(frozen=True, slots=True)
class Pipe:
    """A veth pair between the host (`veth`) and a namespace (eth0), both ends addressed and routed to each other,
    with permanent neighbours: no ARP or neighbour discovery is ever needed."""

    veth: str
    namespace: str
    mac_host: str
    mac_inner: str
    addresses: tuple[Address, ...]
    gateways: tuple[Address, ...]
    inner: str = links.INNER

    def make(self, route: Netlink, size: int) -> None:
        """:param size: MTU, bytes. :raises KernelRefused: EEXIST, the device's name is taken."""
        with namespaces.handle(self.namespace) as fd:
            route.run([links.veth(self.veth, self.mac_host, self.mac_inner, fd, self.inner, size)])

    def fit(self, route: Netlink, size: int) -> None:
        """Both ends to an MTU of `size` bytes; live TCP connections take it up by themselves.

        :raises OSError: an end is gone."""

        def inside() -> None:
            there = Netlink(ROUTE)
            try:
                there.run([links.mtu(links.index(self.inner), size)])
            finally:
                there.close()

        route.run([links.mtu(links.index(self.veth), size)])
        namespaces.inside(self.namespace, inside)

    def set_up(self, route: Netlink) -> None:
        """Address both ends; idempotent."""
        number = links.index(self.veth)
        requests = [links.no_link_local(number), *(links.address(number, g) for g in self.gateways), links.up(number)]
        for address in self.addresses:
            requests += [links.neighbour(number, address, self.mac_inner), links.route(number, address)]
        route.run(requests)
        sysctl.write(f"ipv4/conf/{self.veth}/forwarding", "1")
        sysctl.write(f"ipv4/conf/{self.veth}/src_valid_mark", "1")
        sysctl.write(f"ipv4/conf/{self.veth}/send_redirects", "0")
        sysctl.write(f"ipv4/conf/{self.veth}/rp_filter", "1")  # a forged source stays out also without our table
        namespaces.inside(self.namespace, self._inside)

    def _inside(self) -> None:
        route = Netlink(ROUTE)
        try:
            route.run(self._inner_requests(links.index(self.inner)))
        finally:
            route.close()

    def _inner_requests(self, number: int) -> Sequence[Request]:
        requests = [links.up(1), links.no_link_local(number)]
        requests += [links.address(number, a) for a in self.addresses]
        requests.append(links.up(number))
        for gateway in self.gateways:
            source = next(a for a in self.addresses if a.version == gateway.version)
            requests += [
                links.neighbour(number, gateway, self.mac_host),
                links.route(number, gateway),
                links.default_route(number, gateway, source),
            ]
        return requests


def bottle_pipe(net: BottleNet) -> Pipe:
    addresses, gateways = pair(net.addr4, net.addr6), pair(net.gateway4, net.gateway6)
    return Pipe(net.veth, net.netns, net.mac_host, net.mac_bottle, addresses, gateways)


def first_inside() -> Inner:
    """Run in a namespace just made: nothing gets in or out of it from here on."""
    inner = Inner()
    inner.elements.run(inner_closed(), "close the bottle's own table")
    return inner
