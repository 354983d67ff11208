"""A veth pair and the backstop's rules: as they are to be, as they are, and back again.

Devices are known by number, so that a new name hides nothing. Needs CAP_NET_ADMIN and CAP_SYS_ADMIN; the calling
thread is in the host's namespace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from netfilter import facts
from netfilter.bottle import Pipe
from netfilter.changes import Difference, Kind, Place
from netfilter.errors import KernelRefused, TooMuch
from netfilter.foreign import ForeignPipe
from netfilter.netns import foreign_links, links, namespaces, state, sysctl
from netfilter.netns.wire import ROUTE, Netlink
from netfilter.spec import HostSpec
from netfilter.watch import Watch

T = TypeVar("T")
Facts = frozenset[facts.Fact]


@dataclass(frozen=True, slots=True)
class Ends:
    """A pipe, and the numbers that its two ends were made with."""

    pipe: Pipe
    outer: int
    inner: int

    def wanted(self, place: Place) -> Facts:
        pipe, index = self.pipe, self.outer if place is Place.HOST else self.inner
        if place is Place.HOST:
            found = [facts.link(index, pipe.veth, pipe.mac_host), *(facts.address(index, g) for g in pipe.gateways)]
            for address in pipe.addresses:
                found += [facts.neighbour(index, address, pipe.mac_inner), facts.route(index, address)]
            return frozenset(found)
        found = [facts.link(index, pipe.inner, pipe.mac_inner), *(facts.address(index, a) for a in pipe.addresses)]
        if isinstance(pipe, ForeignPipe):
            return frozenset(found)  # its routes stand in a table of their own
        for gateway in pipe.gateways:
            source = next(a for a in pipe.addresses if a.version == gateway.version)
            found += [facts.neighbour(index, gateway, pipe.mac_host), facts.route(index, gateway)]
            found.append(facts.default_route(index, gateway, source))
        return frozenset(found)


def watched(pipe: Pipe, own_pid: int) -> tuple[Watch, Ends]:
    """Of a pipe just made or adopted: its ends, and what tells of changes inside.

    :raises KernelRefused: a part of it is gone.
    """
    watch, inner = namespaces.inside(pipe.namespace, lambda: (Watch(Place.BOTTLE, own_pid), links.index(pipe.inner)))
    if isinstance(pipe, ForeignPipe):
        watch.beside_others(foreign_links.led_by(inner, pipe.pairs()))
    return watch, Ends(pipe, links.index(pipe.veth), inner)


def same(ends: Ends) -> bool:
    """Whether the outer end is still the device that it was."""
    try:
        return links.index(ends.pipe.veth) == ends.outer
    except KernelRefused:
        return False


def differing(slot: int | None, ends: Ends, route: Netlink) -> list[Difference]:
    """Both ends, and the switches of the outer one."""
    found = _differing(slot, Place.HOST, ends, state.device(route, ends.outer))
    found += [
        Difference(slot, Place.HOST, Kind.DEVICE, f"net.{path.replace('/', '.')} switched") for path in switched(ends)
    ]
    try:
        inside = _inside(ends, lambda r: state.device(r, ends.inner))
    except TooMuch as e:
        what = f"{ends.pipe.inner} of {ends.pipe.namespace}: {e.strerror}"
        return [*found, Difference(slot, Place.BOTTLE, Kind.DEVICE, what)]
    return found + _differing(slot, Place.BOTTLE, ends, inside)


def _differing(slot: int | None, place: Place, ends: Ends, there: list[state.Found] | None) -> list[Difference]:
    name = ends.pipe.veth if place is Place.HOST else f"{ends.pipe.inner} of {ends.pipe.namespace}"
    if there is None:
        return [Difference(slot, place, Kind.DEVICE, f"device {name} deleted", lost=True)]
    against = facts.compare(ends.wanted(place), (f.fact for f in there))
    return [Difference(slot, place, Kind.DEVICE, f"{name}: {what}") for what in against.describe()]


def switched(ends: Ends) -> list[str]:
    """Switches of the outer end that are not as we left them."""
    return [path for path, value in _switches(ends.pipe) if sysctl.read(path) not in {None, value}]


def switch_again(ends: Ends) -> None:
    for path, value in _switches(ends.pipe):
        sysctl.write(path, value)


def _switches(pipe: Pipe) -> list[tuple[str, str]]:
    """As Pipe.set_up leaves them."""
    kept = {"forwarding": "1", "src_valid_mark": "1", "send_redirects": "0", "rp_filter": "1"}
    return [(f"ipv4/conf/{pipe.veth}/{name}", value) for name, value in kept.items()]


def mend(ends: Ends, route: Netlink) -> None:
    """Everything of both ends as it is to be.

    :raises KernelRefused: an end is gone, or its name is taken.
    :raises TooMuch: root in there put more on it than is taken off; what is ours is there.
    """
    pipe = ends.pipe
    _put_back(route, ends.outer, pipe.veth, pipe.mac_host, ends.wanted(Place.HOST))
    try:
        _inside(ends, lambda r: _put_back(r, ends.inner, pipe.inner, pipe.mac_inner, ends.wanted(Place.BOTTLE)))
    finally:
        pipe.set_up(route)


def _put_back(route: Netlink, index: int, name: str, mac: str, wanted: Facts) -> None:
    there = state.device(route, index) or []
    extra = [f for f in there if f.fact not in wanted and not facts.passing(f.fact)]
    route.run([state.taken_off(f) for f in extra if f.fact.kind in facts.DELETED])
    if any(f.fact.kind == facts.NEWLINK for f in extra):
        route.run(state.link_put_back(index, name, mac))


def _inside(ends: Ends, work: Callable[[Netlink], T]) -> T:
    def there() -> T:
        route = Netlink(ROUTE)
        try:
            return work(route)
        finally:
            route.close()

    return namespaces.inside(ends.pipe.namespace, there)


# ── routing rules ──


def rules_differing(host: HostSpec, route: Netlink) -> list[Difference]:
    """Rules of the backstop that are missing, or stand behind the kernel's where they are to stand before it."""
    there = [facts.rule(body) for body in route.dump(links.all_rules())]
    found = [f"routing rule {r.priority} from {r.source} missing" for r in _wanted(host) if r not in there]
    if not found and not _guarded(host, there):
        found.append("routing rules of priority 0 in another order")
    return [Difference(None, Place.HOST, Kind.ROUTING, what) for what in found]


def _wanted(host: HostSpec) -> list[facts.RuleFact]:
    return [r for r in facts.asked([*links.backstop(host), *links.local_guard(host, [])]) if r.source]


def _guarded(host: HostSpec, there: list[facts.RuleFact]) -> bool:
    """Whether in each family ours of the first priority come in their order, and before local delivery."""
    for pool in (host.pool4, host.pool6):
        if pool is None:
            continue
        first = [r for r in there if r.family == links.family(pool) and r.priority == links.RULE_KERNEL]
        ours = [r for r in _wanted(host) if r.family == links.family(pool) and r.priority == links.RULE_KERNEL]
        at = [first.index(r) for r in ours if r in first]
        local = [i for i, r in enumerate(first) if not r.source]
        if len(at) != len(ours) or at != sorted(at) or (local and local[0] < at[-1]):
            return False
    return True


def mend_rules(host: HostSpec, route: Netlink) -> None:
    """Rules of one priority are asked in the order of their making: those of the first are all made again."""
    listed = route.dump(links.all_rules())
    there = [facts.rule(body) for body in listed]
    if not _guarded(host, there):
        ours = {r for r in _wanted(host) if r.priority == links.RULE_KERNEL}
        route.run([state.rule_deleted(body) for body, r in zip(listed, there, strict=True) if r in ours])
    route.run(links.backstop(host))
    route.run(links.local_guard(host, route.dump(links.all_rules())))
