"""Bottles made, taken over, adopted and removed: namespace, device, addresses, and the chain that closes them.

Step by step, undone in reverse when one fails; removal works from the slot's number alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from netfilter import foreign, render, render_bottle
from netfilter.bottle import Bottle, Inner, Pipe, bottle_pipe, first_inside, now_ns
from netfilter.changing import GONE, Changing, hold_frames, whole_inside
from netfilter.errors import KernelRefused
from netfilter.language import Command
from netfilter.live import listed
from netfilter.netns import links, namespaces
from netfilter.netns.conntrack import Entry
from netfilter.netns.wire import Netlink
from netfilter.nfnetlink import Elements
from netfilter.plan import whole
from netfilter.spec import BottleNet, Holding
from netfilter.transaction import Transaction


class Making(Changing):
    """From nothing to a closed bottle, and back."""

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
        change.add("hold frames of eth0 inside", lambda: hold_frames(net, made[0]))
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
        gone = []
        if foreign.flushed(bottle.inner):
            gone.append("rules")
            everything = whole(bottle, bottle.still_learned(now_ns()), now_ns())
            whole_inside(bottle, everything, f"restore the table of bottle {slot}")
        if foreign.reconnect(edges.route, net, self._mtu):
            gone.append("routes")
        return (*gone, *(f"new way out {name}" for name in foreign.shut_new(edges.nft, edges.route, net)))

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
        made = [*render_bottle.bottle_empty(net), *render_bottle.led_nowhere(net)]
        elements.run(made, f"close {net.veth} on the host")

    def adopt_bottle(self, net: BottleNet) -> None:
        self._check_net(net)
        if net.foreign is not None:  # nobody watched what its root does while there was no daemon
            foreign.reconnect(self._edges().route, net, self._mtu)
        links.index(net.veth)
        fit(pipe_of(net), self._edges().route, self._mtu)
        self._bottles[net.slot] = Bottle(net, namespaces.inside(net.netns, Inner))

    def delete_bottle(self, slot: int) -> None:
        edges, name, veth = self._edges(), f"{self._prefix}-{slot}", f"{self._prefix}{slot}"
        edges.elements.lead_to_drop(render.BOTTLES, veth)
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

    def _check_net(self, net: BottleNet) -> None:
        wanted = (f"{self._prefix}{net.slot}", f"{self._prefix}-{net.slot}")
        if (net.veth, net.netns) != wanted:
            raise ValueError(f"bottle {net.slot}: device and namespace must be called {' and '.join(wanted)}")

    def _forward(self) -> None:
        forwarding = self._edges().forwarding
        forwarding.ensure4()
        if self._host is not None and self._host.pool6 is not None:
            forwarding.ensure6()


def pipe_of(net: BottleNet) -> Pipe:
    return bottle_pipe(net) if net.foreign is None else foreign.foreign_pipe(net)


def fit(pipe: Pipe, route: Netlink, size: int) -> None:
    """Where the device is gone there is nothing to fit; somebody else tells of that."""
    try:
        pipe.fit(route, size)
    except OSError as e:
        if e.errno not in GONE:
            raise


def _quietly(elements: Elements, commands: Sequence[Command]) -> None:
    """Run what may find nothing to remove; a transaction that finds only a part is run command by command."""
    try:
        elements.run(commands, "remove")
    except KernelRefused as e:
        if e.errno not in GONE:
            raise
        if len(commands) > 1:
            for command in commands:
                _quietly(elements, [command])
