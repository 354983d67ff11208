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

from netfilter import foreign, render, render_bottle, render_foreign
from netfilter.bottle import Bottle, Inner, Pipe, bottle_pipe, first_inside, now_ns, pair
from netfilter.elements import Segments
from netfilter.errors import KernelRefused
from netfilter.forwarding import Forwarding
from netfilter.language import FAMILY, TABLE, Part, flush_set, table
from netfilter.live import carried, destroy, end, listed, marks_undone, refused, remarking
from netfilter.netns import links, namespaces
from netfilter.netns.conntrack import Conntrack, Entry
from netfilter.netns.sockets import Sockets
from netfilter.netns.wire import ROUTE, Netlink
from netfilter.nfnetlink import Elements
from netfilter.nft import Nft
from netfilter.spec import EPOCH_MASK, Address, BottleNet, BottleRules, Holding, HostSpec, Learned, Mode, Network
from netfilter.transaction import Transaction
from netfilter.verdict import Judge, own_networks

_GONE = {errno.ENOENT, errno.ENODEV}
_SERVICE_MACS = ("02:61:6d:ff:00:01", "02:61:6d:ff:00:02")


class _Edges:
    """Sockets in the host's namespace."""

    def __init__(self, prefix: str, service_veth: str) -> None:
        self.nft = Nft()
        self.elements = Elements(TABLE)
        self.route = Netlink(ROUTE)
        self.conntrack = Conntrack()
        self.forwarding = Forwarding(self.nft, rf"{re.escape(prefix)}\d+|{re.escape(service_veth)}")

    def close(self) -> None:
        for edge in (self.elements, self.route, self.conntrack):
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
        edges.route.run(links.backstop(host))
        edges.route.run(links.local_guard(host, edges.route.dump(links.all_rules())))
        self._dialled.clear()
        edges.nft.run([flush_set(f"span{v}") for v in render.FAMILIES], "forget dialled ranges")
        pipe = Pipe(
            host.service_veth, host.service_netns, *_SERVICE_MACS,
            host.service_addresses, pair(host.gateway4, host.gateway6),
        )  # fmt: skip
        if not namespaces.exists(host.service_netns):
            namespaces.create(host.service_netns, lambda: None)
        if host.service_veth not in _devices():
            pipe.make(edges.route)
        pipe.set_up(edges.route)
        self._forward()

    def _forward(self) -> None:
        forwarding = self._edges().forwarding
        forwarding.ensure4()
        if self._host is not None and self._host.pool6 is not None:
            forwarding.ensure6()

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
        change.run()
        self._bottles[net.slot] = Bottle(net, made[0], BottleRules(net.slot, 0, Mode.CLOSED), untouched=True)

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
        self._bottles[net.slot] = Bottle(net, made[0], BottleRules(net.slot, 0, Mode.CLOSED), untouched=True)
        return held[0]

    def hold_again(self, slot: int) -> tuple[str, ...]:
        bottle, edges = self._bottle(slot), self._edges()
        net = bottle.net
        if net.foreign is None:
            return ()
        gone = foreign.missing(net, bottle.inner)
        if "rules" in gone:
            everything = self._whole(net, bottle.rules, bottle.still_learned(now_ns()))
            bottle.inner.nft.run(everything, f"restore the table of bottle {slot}")
        if "routes" in gone:
            foreign.reconnect(edges.route, net)
        fresh = foreign.shut(edges.nft, edges.route, net).shut
        return (*gone, *(f"new way out {name}" for name in fresh))

    def _connect(self, change: Transaction, net: BottleNet, pipe: Pipe) -> None:
        """A namespace that is closed gets its device, led to a closed chain."""
        edges = self._edges()

        def unlink() -> None:
            edges.route.run([links.delete(net.veth)])

        change.add(
            f"close {net.veth} on the host",
            lambda: edges.nft.run(render_bottle.bottle_closed(net), f"close bottle {net.slot}"),
            lambda: self._remove_rules(net.slot),
        )
        change.add(f"lead {net.veth} there", lambda: self._lead(net))
        change.add(f"make device {net.veth}", lambda: pipe.make(edges.route), unlink)
        change.add(f"address {net.veth} and eth0", lambda: pipe.set_up(edges.route))
        change.add("forwarding of new devices", self._forward)

    def _lead(self, net: BottleNet) -> None:
        elements = self._edges().elements
        elements.take_device(render.CUT, net.veth)  # a cut that came after the last tenant's end
        elements.lead(render.BOTTLES, net.veth, f"b{net.slot}")

    def adopt_bottle(self, net: BottleNet) -> None:
        self._check_net(net)
        links.index(net.veth)
        self._bottles[net.slot] = Bottle(net, namespaces.inside(net.netns, Inner))

    def delete_bottle(self, slot: int) -> None:
        edges, name, veth = self._edges(), f"{self._prefix}-{slot}", f"{self._prefix}{slot}"
        edges.elements.lead_elsewhere(render.BOTTLES, veth, render.REFUSE)
        edges.conntrack.delete(self._remaining(slot))
        _quietly(edges.nft, render_bottle.bottle_deleted(slot))
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
        _quietly(self._edges().nft, render_bottle.bottle_deleted(slot))

    def _addresses(self, slot: int) -> tuple[Address, ...]:
        """Of a bottle that nobody told us about: a slot is an offset into the pools."""
        known = self._bottles.get(slot)
        if known is not None:
            return known.addresses()
        return tuple(pool[slot] for pool in self._own() if slot < pool.num_addresses)

    def apply(self, rules: BottleRules) -> None:
        if not 1 <= rules.epoch <= EPOCH_MASK:
            raise ValueError(f"epoch {rules.epoch}: 1 to {EPOCH_MASK} exist")
        bottle, edges = self._bottle(rules.slot), self._edges()
        old, now = bottle.rules, now_ns()
        fresh = old is None or old.epoch != rules.epoch
        judge = Judge(rules, self._own())
        segments = Segments() if fresh else bottle.segments.copy()
        learned = segments.change(rules.learned, now)
        before = bottle.still_learned(now)

        def commands(slot: int | None, wanted: BottleRules) -> list[Part]:
            return [
                *render_bottle.static_sets(slot, wanted, old),
                *(render_bottle.learned_flushed(slot) if fresh else []),
                *render_bottle.learned_in(learned, slot, fresh=fresh),
            ]

        change = Transaction()
        ending = rules.mode in {Mode.CUT, Mode.CLOSED}
        living = listed(bottle, edges.conntrack) if fresh or ending else []
        if fresh:
            kept = carried(living, judge)
            for conntrack in (bottle.inner.conntrack, edges.conntrack):
                change.add("carry live flows over", remarking(conntrack, kept), marks_undone(conntrack, kept))
        inner = [*commands(None, rules), *render_foreign.table_judging(bottle.net, rules)]
        change.add(
            f"rules of bottle {rules.slot} inside",
            lambda: _inside(
                bottle,
                inner,
                lambda: self._whole(bottle.net, rules, [*before, *rules.learned] if not fresh else rules.learned),
            ),
            lambda: bottle.inner.nft.run(self._whole(bottle.net, old, before), "take the bottle's own rules back"),
        )
        outer = [*commands(rules.slot, rules), *render_bottle.bottle_chain(bottle.net, rules, self._own(), old)]
        what = f"rules of bottle {rules.slot}"
        change.add(what, lambda: edges.nft.run(outer, what))
        change.run()
        bottle.rules, bottle.judge, bottle.segments = rules, judge, segments
        if fresh:
            bottle.learned.clear()
            bottle.epochs += 1
        bottle.note(rules.learned, now)
        if (fresh or ending) and not bottle.untouched:
            end(bottle, edges.conntrack, refused(living, judge))
        bottle.untouched = bottle.untouched and rules.mode is Mode.CLOSED

    @staticmethod
    def _whole(net: BottleNet, rules: BottleRules | None, learned: Sequence[Learned]) -> list[Part]:
        """The bottle's own table from nothing."""
        commands = render_foreign.table_closed(net)
        if rules is not None:
            commands += render_bottle.static_sets(None, rules, None)
            commands += render_bottle.learned_in(Segments().change(learned, now_ns()), None, fresh=True)
            commands += render_foreign.table_judging(net, rules)
        return commands

    def _bottle(self, slot: int) -> Bottle:
        try:
            return self._bottles[slot]
        except KeyError:
            raise KernelRefused(errno.ENOENT, f"bottle {slot}", "it was neither created nor adopted") from None

    def learn(self, slot: int, entries: Sequence[Learned]) -> None:
        bottle, edges = self._bottle(slot), self._edges()
        now, segments = now_ns(), bottle.segments.copy()
        change = segments.change(entries, now)
        what = f"addresses of bottle {slot}"
        try:
            bottle.inner.elements.renew(render_bottle.exact_sets(change, None))
            bottle.inner.nft.run(render_bottle.ranges(change, None), f"{what} inside")
        except KernelRefused as e:
            _unless_gone(e)  # root in the bottle flushed its table: back with it
            everything = [*bottle.still_learned(now), *entries]
            bottle.inner.nft.run(
                self._whole(bottle.net, bottle.rules, everything), f"restore the table of bottle {slot}"
            )
        edges.elements.renew(render_bottle.exact_sets(change, slot))
        edges.nft.run(render_bottle.ranges(change, slot), what)
        bottle.segments = segments
        bottle.note(entries, now)

    def permit_service(self, entries: Sequence[Learned]) -> None:
        edges, segments = self._edges(), self._dialled.copy()
        change = segments.change(entries, now_ns())
        edges.elements.renew(render.dial_sets(change))
        edges.nft.run(render_bottle.range_pieces(change, "span%d"), "addresses of the service namespace")
        self._dialled = segments

    def cut(self, slot: int) -> None:
        self._edges().elements.put_device(render.CUT, f"{self._prefix}{slot}")
        bottle = self._bottles.get(slot)
        if bottle is not None and bottle.rules is not None:
            bottle.rules = replace(bottle.rules, mode=Mode.CUT)
            bottle.judge = Judge(bottle.rules, self._own())

    def end_refused(self, slot: int) -> int:
        bottle, conntrack = self._bottle(slot), self._edges().conntrack
        if bottle.rules is not None:  # what was learned since the rules were applied, flows may have been opened to
            known = replace(bottle.rules, learned=(*bottle.rules.learned, *bottle.learned))
            bottle.judge = Judge(known, self._own())
        return end(bottle, conntrack, refused(listed(bottle, conntrack), bottle.judge))

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


def _devices() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def _quietly(nft: Nft, commands: Sequence[Part]) -> None:
    """Run what may find nothing to remove; a transaction that finds only a part is run command by command."""
    try:
        nft.run(commands, "remove")
    except KernelRefused as e:
        if e.errno not in _GONE:
            raise
        if len(commands) > 1:
            for command in commands:
                _quietly(nft, [command])


def _inside(bottle: Bottle, commands: Sequence[Part], whole: Callable[[], Sequence[Part]]) -> None:
    """Change a bottle's own table, or where somebody in there flushed it, make it anew."""
    what = f"rules of bottle {bottle.net.slot} inside"
    try:
        bottle.inner.nft.run(commands, what)
    except KernelRefused as e:
        _unless_gone(e)
        bottle.inner.nft.run(whole(), what)


def _unless_gone(e: KernelRefused) -> None:
    if e.errno not in _GONE:
        raise e


def _using(sockets: Sockets, work: Callable[[Sockets], int]) -> int:
    try:
        return work(sockets)
    finally:
        sockets.close()
