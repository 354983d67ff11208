"""HostNetfilter: the protocol of spec.py on the kernel. Calls come from one thread at a time, in the host's namespace.

What it remembers (sockets, last rules) is a cache: a new one finds the objects by name and adopts them.
"""

from __future__ import annotations

import contextlib
import errno
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace

from netfilter import foreign, render, render_bottle
from netfilter.bottle import Bottle, Inner, Pipe, bottle_pipe, first_inside, now_ns, pair
from netfilter.elements import Segments
from netfilter.errors import KernelRefused
from netfilter.forwarding import Forwarding
from netfilter.language import FAMILY, TABLE, Command, flush_set, table
from netfilter.live import carried, destroy, end, listed, marks_undone, refused, remarking
from netfilter.netns import links, namespaces, uplink
from netfilter.netns.conntrack import Conntrack, Entry
from netfilter.netns.sockets import Sockets
from netfilter.netns.wire import ROUTE, Netlink
from netfilter.nfnetlink import Elements
from netfilter.nft import Nft
from netfilter.plan import Planned, from_nothing, host_side_again, planned, whole
from netfilter.render_egress import inner_egress
from netfilter.spec import EPOCH_MASK, Address, BottleNet, BottleRules, Holding, HostSpec, Learned, Mode, Network
from netfilter.transaction import Transaction
from netfilter.verdict import Judge, own_networks

_GONE = {errno.ENOENT, errno.ENODEV}
_NO_EGRESS = {*_GONE, errno.EOPNOTSUPP, errno.EINVAL}  # the hook, or eth0, is not there
_EPOCHS_AT_ONCE = 8  # of flows that are carried over together; more than one only where a bottle is adopted
_SERVICE_MACS = ("02:61:6d:ff:00:01", "02:61:6d:ff:00:02")


class _Edges:
    """Sockets in the host's namespace."""

    def __init__(self, prefix: str, service_veth: str) -> None:
        self.nft = Nft()
        self.elements = Elements(TABLE)
        self.route = Netlink(ROUTE)
        self.conntrack = Conntrack()
        self.walker = Conntrack()  # for walks beside everything else
        self.forwarding = Forwarding(self.nft, rf"{re.escape(prefix)}\d+|{re.escape(service_veth)}")

    def close(self) -> None:
        for edge in (self.elements, self.route, self.conntrack, self.walker):
            edge.close()


class HostNetfilter:
    """Keeps netfilter.spec.Netfilter. Needs CAP_NET_ADMIN and CAP_SYS_ADMIN.

    :param prefix: of device and namespace names: `<prefix><slot>`, `<prefix>-<slot>`.
    """

    def __init__(self, prefix: str = "am") -> None:
        self._prefix = prefix
        self._host: HostSpec | None = None
        self._bottles: dict[int, Bottle] = {}
        self._dialled = Segments()
        self._kept: _Edges | None = None
        self._mtu = uplink.USUAL

    def _edges(self) -> _Edges:
        if self._kept is None:
            self._kept = _Edges(self._prefix, "" if self._host is None else self._host.service_veth)
        return self._kept

    def _own(self) -> tuple[Network, ...]:
        return () if self._host is None else own_networks(self._host)

    # ── host ──

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

    def _forward(self) -> None:
        forwarding = self._edges().forwarding
        forwarding.ensure4()
        if self._host is not None and self._host.pool6 is not None:
            forwarding.ensure6()

    def follow_uplink(self) -> None:
        """Every device of ours to the MTU of the way out, where that has changed."""
        route, pipes = self._edges().route, [_pipe(bottle.net) for bottle in self._bottles.values()]
        size = uplink.mtu(route)
        if size == self._mtu:
            return
        for pipe in (*pipes, *(() if self._host is None else (service_pipe(self._host),))):
            _fit(pipe, route, size)
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

    # ── bottles ──

    def create_bottle(self, net: BottleNet) -> None:
        self._check_net(net)
        made: list[Inner] = []

        def leave() -> None:
            made.pop().close()
            namespaces.delete(net.netns)

        change = Transaction()
        change.add(
            f"make namespace {net.netns}, closed inside",
            lambda: made.append(namespaces.create(net.netns, first_inside)),
            leave,
        )
        self._connect(change, net, bottle_pipe(net))
        change.add("hold frames of eth0 inside", lambda: _hold_frames(net, made[0]))
        change.run()
        self._bottles[net.slot] = Bottle.made(net, made[0])

    def attach_bottle(self, net: BottleNet, namespace: str, inode: int) -> Holding:
        self._check_net(net)
        edges = self._edges()
        made: list[Inner] = []
        held: list[Holding] = []

        def leave() -> None:
            made.pop().close()
            foreign.leave(net.netns)

        change = Transaction()
        change.add(f"close {namespace} inside", lambda: made.append(foreign.close_inside(net, namespace, inode)), leave)
        change.add(
            "shut its own ways out",
            lambda: held.append(foreign.shut(edges.nft, edges.route, net)),
            lambda: foreign.reopen(edges.nft, edges.route, net.slot, net.netns, net.veth),
        )
        self._connect(change, net, foreign.foreign_pipe(net))
        change.run()
        self._bottles[net.slot] = Bottle.made(net, made[0])
        return held[0]

    def hold_again(self, slot: int) -> tuple[str, ...]:
        bottle, edges = self._bottle(slot), self._edges()
        net = bottle.net
        if net.foreign is None:
            return ()
        gone = foreign.missing(net, bottle.inner)
        if "rules" in gone:
            everything = whole(bottle, bottle.still_learned(now_ns()), now_ns())
            _whole_inside(bottle, everything, f"restore the table of bottle {slot}")
        if "routes" in gone:
            foreign.reconnect(edges.route, net, self._mtu)
        fresh = foreign.shut(edges.nft, edges.route, net).shut
        return (*gone, *(f"new way out {name}" for name in fresh))

    def _connect(self, change: Transaction, net: BottleNet, pipe: Pipe) -> None:
        """A namespace that is closed gets its device, led to a closed chain."""
        edges = self._edges()

        def unlink() -> None:
            edges.route.run([links.delete(net.veth)])

        change.add(
            f"close {net.veth} on the host",
            lambda: self._lead(net),
            lambda: self._remove_rules(net.slot),
        )
        change.add(f"make device {net.veth}", lambda: pipe.make(edges.route, self._mtu), unlink)
        change.add(f"address {net.veth} and eth0", lambda: pipe.set_up(edges.route))
        change.add("forwarding of new devices", self._forward)

    def _lead(self, net: BottleNet) -> None:
        elements = self._edges().elements
        elements.take_device(render.CUT, net.veth)  # a cut that came after the last tenant's end
        elements.lead(render.BOTTLES, net.veth, f"b{net.slot}", render_bottle.bottle_closed(net))

    def adopt_bottle(self, net: BottleNet) -> None:
        self._check_net(net)
        if net.foreign is not None:  # nobody watched what its root does while there was no daemon
            foreign.reconnect(self._edges().route, net, self._mtu)
        links.index(net.veth)
        _fit(_pipe(net), self._edges().route, self._mtu)
        self._bottles[net.slot] = Bottle(net, namespaces.inside(net.netns, Inner))

    def delete_bottle(self, slot: int) -> None:
        edges, name, veth = self._edges(), f"{self._prefix}-{slot}", f"{self._prefix}{slot}"
        edges.elements.lead_elsewhere(render.BOTTLES, veth, render.REFUSE)
        edges.conntrack.delete(self._remaining(slot))
        _quietly(edges.elements, render_bottle.bottle_deleted(slot))
        edges.route.run([links.delete(veth)])
        edges.elements.lead_nowhere(render.BOTTLES, veth)  # only now: a device that is led nowhere is nobody's
        edges.elements.take_device(render.CUT, veth)
        bottle = self._bottles.pop(slot, None)
        if bottle is not None:
            bottle.inner.close()
        if foreign.is_foreign(name) if bottle is None else bottle.net.foreign is not None:
            foreign.reopen(edges.nft, edges.route, slot, name, veth)
            foreign.leave(name)
        namespaces.delete(name)

    def _remaining(self, slot: int) -> list[Entry]:
        """Everything conntrack has of a slot, entries of earlier epochs included."""
        conntrack, known = self._edges().conntrack, self._bottles.get(slot)
        if known is not None and known.epochs < 2 and (known.untouched or known.rules is not None):
            return listed(known, conntrack)
        return conntrack.entries(self._addresses(slot)) if conntrack.count() else []

    def _remove_rules(self, slot: int) -> None:
        """Of a bottle whose device is not there, or no longer."""
        self._edges().elements.lead_nowhere(render.BOTTLES, f"{self._prefix}{slot}")
        _quietly(self._edges().elements, render_bottle.bottle_deleted(slot))

    def _addresses(self, slot: int) -> tuple[Address, ...]:
        """Of a bottle that nobody told us about: a slot is an offset into the pools."""
        known = self._bottles.get(slot)
        if known is not None:
            return known.addresses()
        return tuple(pool[slot] for pool in self._own() if slot < pool.num_addresses)

    def apply(self, rules: BottleRules) -> None:
        if self.put(rules):
            self.end_refused(rules.slot)

    def put(self, rules: BottleRules) -> bool:
        if not 1 <= rules.epoch <= EPOCH_MASK:
            raise ValueError(f"epoch {rules.epoch}: 1 to {EPOCH_MASK} exist")
        bottle = self._bottle(rules.slot)
        return self._put(bottle, planned(bottle, rules, now_ns()))

    def plan(self, rules: BottleRules) -> list[str]:
        return planned(self._bottle(rules.slot), rules, now_ns()).describe()

    def _put(self, bottle: Bottle, plan: Planned) -> bool:
        """Carry it out; whether flows are left to be ended."""
        edges, rules, now = self._edges(), plan.rules, now_ns()
        learned = rules.learned if plan.fresh else (*rules.learned, *bottle.remembered())
        judge = Judge(replace(rules, learned=learned), self._own())
        change, what = Transaction(), f"rules of bottle {rules.slot}"
        living = listed(bottle, edges.conntrack) if plan.renumbers else []
        kept = carried(living, judge) if plan.renumbers else []
        also = sorted({c.entry.flow.mark & EPOCH_MASK for c in kept} - {0, rules.epoch})[:_EPOCHS_AT_ONCE]
        change.add(
            f"{what} inside",
            lambda: self._change_inside(bottle, plan, also),
            lambda: _whole_inside(
                bottle, whole(bottle, bottle.still_learned(now), now), "take the bottle's own rules back"
            ),
        )
        change.add(
            what,
            lambda: edges.elements.run(plan.outer(also), what),
            lambda: edges.elements.run(host_side_again(bottle, now), f"take the {what} back"),
        )
        for conntrack in (bottle.inner.conntrack, edges.conntrack) if kept else ():
            change.add("carry live flows over", remarking(conntrack, kept), marks_undone(conntrack, kept))
        if also:
            change.add(f"{what} inside, one epoch", lambda: self._judge_inside(bottle, plan))
            change.add(f"{what}, one epoch", lambda: edges.elements.run(plan.outer_alone(), what))
        change.run()
        bottle.took(plan)
        bottle.judge = judge
        bottle.note(rules.learned, now)
        if plan.renumbers and not bottle.untouched:
            end(bottle, edges.conntrack, refused(living, judge))
        owes = plan.owes and not bottle.untouched
        bottle.untouched = bottle.untouched and rules.mode is Mode.CLOSED
        return owes

    def _judge_inside(self, bottle: Bottle, plan: Planned) -> None:
        try:
            bottle.inner.elements.run(plan.inner_alone(), "one epoch")
        except KernelRefused:
            self._change_inside(bottle, plan, ())  # flushed in between: made anew

    def _change_inside(self, bottle: Bottle, plan: Planned, also: Sequence[int]) -> None:
        """Change a bottle's own table, or where somebody in there flushed it, make it anew."""
        what = f"rules of bottle {bottle.net.slot} inside"
        try:
            bottle.inner.elements.run(plan.inner(also), what)
        except KernelRefused as e:
            if e.errno == errno.EPERM:  # root in there made a table of our name its own: the host's side is enough
                return
            _unless_gone(e)
            now = now_ns()
            learned = plan.rules.learned if plan.fresh else (*bottle.still_learned(now), *plan.rules.learned)
            epoch = plan.rules.epoch if plan.renumbers or bottle.rules is None else bottle.rules.epoch
            commands = from_nothing(bottle.net, replace(plan.rules, epoch=epoch), plan.region, learned, now)
            _whole_inside(bottle, commands, what)

    def _bottle(self, slot: int) -> Bottle:
        try:
            return self._bottles[slot]
        except KeyError:
            raise KernelRefused(errno.ENOENT, f"bottle {slot}", "it was neither created nor adopted") from None

    def learn(self, slot: int, entries: Sequence[Learned]) -> None:
        bottle, edges = self._bottle(slot), self._edges()
        now = now_ns()
        if bottle.rules is not None and any(map(bottle.region.meets, entries)):
            # x would refuse the flows of an address that was learned after it was taken back, once it expires
            same = replace(bottle.rules, epoch=bottle.asked, learned=tuple(bottle.remembered()))
            self._put(bottle, planned(bottle, same, now, anew=True))
        segments = bottle.segments.copy()
        change = segments.change(entries, now)
        what = f"addresses of bottle {slot}"
        try:
            bottle.inner.elements.run(render_bottle.learned_in(change, None), f"{what} inside")
        except KernelRefused as e:
            if e.errno != errno.EPERM:  # root in there made a table of our name its own
                _unless_gone(e)  # root in the bottle flushed its table: back with it
                everything = whole(bottle, [*bottle.still_learned(now), *entries], now)
                _whole_inside(bottle, everything, f"restore the table of bottle {slot}")
        edges.elements.run(render_bottle.learned_in(change, slot), what)
        bottle.segments = segments
        bottle.note(entries, now)

    def permit_service(self, entries: Sequence[Learned]) -> None:
        edges, segments = self._edges(), self._dialled.copy()
        change = segments.change(entries, now_ns())
        commands = [*render.renewals(change, "dial%d"), *render.pieces(change, "span%d")]
        edges.elements.run(commands, "addresses of the service namespace")
        self._dialled = segments

    def cut(self, slot: int) -> None:
        self._edges().elements.put_device(render.CUT, f"{self._prefix}{slot}")
        bottle = self._bottles.get(slot)
        if bottle is not None and bottle.rules is not None:
            bottle.rules = replace(bottle.rules, mode=Mode.CUT)
            bottle.judge = Judge(bottle.rules, self._own())

    def walk(self, slot: int) -> Callable[[], Sequence[Entry]]:
        bottle, edges = self._bottle(slot), self._edges()
        if bottle.untouched or bottle.rules is None:
            found = listed(bottle, edges.conntrack)
            return lambda: found
        epoch, own = bottle.rules.epoch, bottle.addresses()
        return lambda: edges.walker.entries_of_epoch(epoch, own)

    def end_refused(self, slot: int, walked: Sequence[Entry] | None = None) -> int:
        bottle, conntrack = self._bottle(slot), self._edges().conntrack
        if bottle.rules is not None:  # what was learned since the rules were applied, flows may have been opened to
            bottle.judge = Judge(replace(bottle.rules, learned=tuple(bottle.remembered())), self._own())
        found = listed(bottle, conntrack) if walked is None else walked
        return end(bottle, conntrack, refused(found, bottle.judge))

    def destroy_flows(self, slot: int) -> int:
        conntrack, known = self._edges().conntrack, self._bottles.get(slot)
        if known is not None:
            return destroy(known, conntrack)
        gone = conntrack.delete(conntrack.entries(self._addresses(slot)))
        name = f"{self._prefix}-{slot}"
        if not namespaces.exists(name):
            return gone
        return gone + namespaces.inside(name, lambda: _using(Sockets(), lambda s: s.destroy(lambda *_: True)))

    def refusals(self, slot: int) -> dict[str, int]:
        names = [render_bottle.counter_name(slot, reason) for reason in render_bottle.REASONS]
        return dict(zip(render_bottle.REASONS, self._edges().elements.packets(names), strict=True))

    def slots(self) -> frozenset[int]:
        names = [*namespaces.names(f"{self._prefix}-"), *_devices()]
        with contextlib.suppress(KernelRefused):
            listed = self._edges().nft.listing(f"list chains {FAMILY}")
            chains = (o["chain"] for o in listed if "chain" in o)
            names += [f"{self._prefix}{c['name'][1:]}" for c in chains if c["table"] == TABLE and c["name"][0] == "b"]
        found = (re.fullmatch(rf"{re.escape(self._prefix)}-?(\d+)", name) for name in names)
        return frozenset(int(m.group(1)) for m in found if m)

    def _check_net(self, net: BottleNet) -> None:
        wanted = (f"{self._prefix}{net.slot}", f"{self._prefix}-{net.slot}")
        if (net.veth, net.netns) != wanted:
            raise ValueError(f"bottle {net.slot}: device and namespace must be called {' and '.join(wanted)}")


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


def _pipe(net: BottleNet) -> Pipe:
    return bottle_pipe(net) if net.foreign is None else foreign.foreign_pipe(net)


def _fit(pipe: Pipe, route: Netlink, size: int) -> None:
    """Where the device is gone there is nothing to fit; somebody else tells of that."""
    try:
        pipe.fit(route, size)
    except OSError as e:
        if e.errno not in _GONE:
            raise


def _devices() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def _quietly(elements: Elements, commands: Sequence[Command]) -> None:
    """Run what may find nothing to remove; a transaction that finds only a part is run command by command."""
    try:
        elements.run(commands, "remove")
    except KernelRefused as e:
        if e.errno not in _GONE:
            raise
        if len(commands) > 1:
            for command in commands:
                _quietly(elements, [command])


def _whole_inside(bottle: Bottle, commands: Sequence[Command], what: str) -> None:
    """The whole table inside, made anew in one transaction."""
    if bottle.net.foreign is None:
        bottle.inner.elements.run(commands, what)
        _hold_frames(bottle.net, bottle.inner)
    else:  # leads DNS elsewhere, which bytecode.py does not say
        bottle.inner.nft.run(commands, what)


def _hold_frames(net: BottleNet, inner: Inner) -> None:
    """Where the kernel has the hook; the host drops such frames in any case."""
    try:
        inner.elements.run(inner_egress(net, links.INNER), f"hold frames of bottle {net.slot} inside")
    except KernelRefused as e:
        if e.errno not in _NO_EGRESS:
            raise


def _unless_gone(e: KernelRefused) -> None:
    if e.errno not in _GONE:
        raise e


def _using(sockets: Sockets, work: Callable[[Sockets], int]) -> int:
    try:
        return work(sockets)
    finally:
        sockets.close()
