"""HealingNetfilter: HostNetfilter that notices what others do to its tables, rules and devices, and puts it back.

    watch.py ─ Change ─▶ restore: the affected table in one transaction, the affected device as a whole
    check: every table listed, beside what we would write now; every device and rule beside what it is to be

Closed meanwhile by the backstop; live flows keep their marks and go on. What survives a foreign `flush ruleset`
is one table that belongs to our socket (`flags owner`): without it the last NAT chain would go, and with it the
translation of live flows (docs/adr/0018).
"""

from __future__ import annotations

import contextlib
import errno
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from netfilter import again, foreign, heal_links, heal_rules, render
from netfilter.blockers import Blocker, blockers
from netfilter.bottle import Bottle, Pipe, bottle_pipe, now_ns
from netfilter.bytecode import Message
from netfilter.changes import Difference, Kind, Place
from netfilter.changing import whole_inside
from netfilter.elements import Segments
from netfilter.errors import KernelRefused, TooMuch
from netfilter.host import HostNetfilter, service_pipe
from netfilter.language import FAMILY, TABLE, Command
from netfilter.making import pipe_of
from netfilter.netns import namespaces
from netfilter.spec import BottleNet, BottleRules, Holding, Learned, Mode
from netfilter.watch import Watch, Watcher, own_pid

T = TypeVar("T")
_ORDER = (Kind.NAMESPACE, Kind.RULES, Kind.ROUTING, Kind.DEVICE, Kind.FORWARDING)  # rules close what comes then


class HealingNetfilter(HostNetfilter):
    """Keeps netfilter.changes.SelfHealing. Every change of ours comes from the thread that calls
    `watch`: by it they are told from others'."""

    def __init__(self, prefix: str = "am") -> None:
        super().__init__(prefix)
        self._watcher: Watcher | None = None
        self._own_pid = 0
        self._ends: dict[int | None, heal_links.Ends] = {}
        self._dials = heal_rules.Dialled()
        self._counted: dict[int, Counter[str]] = {}  # what counters had counted when their table was made anew

    # ── what there is to be watched ──

    def watch(self) -> Watcher:
        """Watch from now on, this host and every bottle, also those to come. Call it after `open_host`."""
        if self._watcher is None:
            self._own_pid = own_pid()
            self._watcher = Watcher(Watch(Place.HOST, self._own_pid))
            edges = self._edges()
            edges.forwarding.recall()
            self._dials.note(heal_rules.still_dialled(edges.nft), now_ns())
            with contextlib.suppress(KernelRefused):  # another instance of this process holds it
                edges.nft.run(heal_rules.nat_held(), "hold the translation of live flows")
            edges.elements.take_device(render.CUT, "agentmon")  # one transaction of each socket: ours are known by it
            self._watcher.changes()
            if self._host is not None:
                self._expect(None, service_pipe(self._host))
            for slot, bottle in self._bottles.items():
                self._expect(slot, pipe_of(bottle.net))
        return self._watcher

    def _expect(self, slot: int | None, pipe: Pipe) -> None:
        if self._watcher is None:
            return
        watch, ends = heal_links.watched(pipe, self._own_pid)
        if slot in self._bottles:
            watch.know(self._bottles[slot].inner.elements.port)
        self._ends[slot] = ends
        self._watcher.expect(slot, ends.wanted(Place.HOST))
        self._watcher.expect_inside(slot, pipe.namespace, watch, ends.wanted(Place.BOTTLE))

    def _with_table(self, call: Callable[[], T]) -> T:
        """Do it; where somebody has just taken the host's table away, put that back and do it again."""
        try:
            return call()
        except KernelRefused as e:
            if e.errno != errno.ENOENT or self._host is None or self._has_table():
                raise
        self._rewrite_host()
        return call()

    def _has_table(self) -> bool:
        try:
            self._edges().nft.listing(f"list chain {FAMILY} {TABLE} pre")
        except KernelRefused:
            return False
        return True

    def _forward(self) -> None:
        """Not for each bottle: a device of others that comes is told. Looking at all of 1,000 takes 5 ms."""
        if self._watcher is None:
            super()._forward()

    def put(self, rules: BottleRules) -> bool:
        put = super().put
        return self._with_table(lambda: put(rules))

    def learn(self, slot: int, entries: Sequence[Learned]) -> None:
        learn = super().learn
        self._with_table(lambda: learn(slot, entries))

    def create_bottle(self, net: BottleNet) -> None:
        create = super().create_bottle
        self._with_table(lambda: create(net))
        self._expect(net.slot, bottle_pipe(net))

    def attach_bottle(self, net: BottleNet, namespace: str, inode: int) -> Holding:
        attach = super().attach_bottle
        held = self._with_table(lambda: attach(net, namespace, inode))
        self._expect(net.slot, pipe_of(net))
        return held

    def hold_again(self, slot: int) -> tuple[str, ...]:
        found = super().hold_again(slot)
        ends = self._ends.get(slot)
        if ends is not None and "routes" in found and not heal_links.same(ends):  # made anew: other numbers
            self._expect_anew(slot)
        return found

    def _expect_anew(self, slot: int) -> None:
        if self._watcher is not None:
            self._watcher.forget(slot)
            self._expect(slot, pipe_of(self._bottles[slot].net))

    def adopt_bottle(self, net: BottleNet) -> None:
        super().adopt_bottle(net)
        self._expect(net.slot, pipe_of(net))

    def delete_bottle(self, slot: int) -> None:
        self._ends.pop(slot, None)
        self._counted.pop(slot, None)
        if self._watcher is not None:
            self._watcher.forget(slot)
        super().delete_bottle(slot)

    def close_host(self) -> None:
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
            with contextlib.suppress(KernelRefused):
                self._edges().nft.run(heal_rules.nat_let_go(), "let the translation of live flows go")
        self._ends.clear()
        super().close_host()

    def permit_service(self, entries: Sequence[Learned]) -> None:
        permit = super().permit_service
        self._with_table(lambda: permit(entries))
        self._dials.note(entries, now_ns())

    def cut(self, slot: int) -> None:
        """Cut in memory first: a table that is being made anew has the cut, also where there is none to put it into."""
        bottle = self._bottles.get(slot)
        if bottle is not None and bottle.rules is not None:
            bottle.rules = replace(bottle.rules, mode=Mode.CUT)
        cut = super().cut
        self._with_table(lambda: cut(slot))

    def refusals(self, slot: int) -> dict[str, int]:
        before = self._counted.get(slot, Counter())
        return {reason: n + before[reason] for reason, n in super().refusals(slot).items()}

    def blockers(self) -> list[Blocker]:
        """Chains of others that drop what bottles are permitted. Lists every table: only where something failed."""
        return blockers(self._edges().nft.listing("list ruleset"))

    # ── what differs, and back again ──

    def check(self, slot: int | None) -> list[Difference]:
        """Everything that is not as we would write it now; of the host (None) or of one bottle."""
        kinds = self._host_kinds() if slot is None else self._bottle_kinds(slot)
        return [d for looks, _ in kinds.values() for d in looks()]

    def restore(self, differences: Iterable[Difference]) -> list[Difference]:
        """Put back what was changed; what really differed, `lost` where it cannot be put back.

        :raises KernelRefused: the kernel takes it no longer; what it concerns stays closed.
        :raises TooMuch: somebody filled a bottle's table or device; the rest was put back, the host's side holds it.
        """
        told = list(differences)
        too_much: list[TooMuch] = []
        for slot in dict.fromkeys(d.slot for d in told if d.kind is Kind.UNKNOWN):
            told += self.check(slot)
        found: list[Difference] = []
        for slot in sorted({d.slot for d in told}, key=lambda s: (s is not None, s or 0)):
            kinds = self._host_kinds() if slot is None else self._bottle_kinds(slot)
            for kind in _ORDER:
                mine = [d for d in told if (d.slot, d.kind) == (slot, kind)]
                if mine and kind in kinds and not any(d.slot == slot and d.lost for d in found):
                    looks, mends = kinds[kind]
                    try:
                        found += self._mended(mine if kind is Kind.RULES else looks(), mends)
                    except TooMuch as e:
                        too_much.append(e)
        if too_much:
            raise too_much[0]
        return found

    @staticmethod
    def _mended(differences: list[Difference], mends: Callable[[], None]) -> list[Difference]:
        if differences and not any(d.lost for d in differences):
            mends()
        return differences

    def _host_kinds(self) -> _Kinds:
        """What `slot` None stands for: how to look at it, how to put it back."""
        if self._host is None:
            return {}
        host, edges = self._host, self._edges()
        kinds: _Kinds = {
            Kind.RULES: (lambda: self._rules_differ(None, Place.HOST), self._rewrite_host),
            Kind.ROUTING: (
                lambda: heal_links.rules_differing(host, edges.route),
                lambda: heal_links.mend_rules(host, edges.route),
            ),
            Kind.FORWARDING: (self._switches_differ, self._switch_again),
        }
        if None in self._ends:
            kinds[Kind.DEVICE] = self._device_kind(None)
        return kinds

    def _bottle_kinds(self, slot: int) -> _Kinds:
        if slot not in self._ends or slot not in self._bottles:
            return {}
        bottle = self._bottles[slot]
        name: _Kinds = {Kind.NAMESPACE: (lambda: self._name_differs(slot), lambda: None)}
        if not namespaces.exists(bottle.net.netns):
            return name  # there is no way in

        return name | {
            Kind.RULES: (
                lambda: self._rules_differ(slot, Place.BOTTLE),
                lambda: whole_inside(
                    bottle, heal_rules.inner_table(bottle, now_ns()), f"restore the table of bottle {slot}"
                ),
            ),
            Kind.DEVICE: self._device_kind(slot) if bottle.net.foreign is None else self._foreign_kind(slot),
        }

    def _foreign_kind(self, slot: int) -> _Kind:
        """What is ours beside devices of others: looked at and put back in one."""

        def look() -> list[Difference]:
            return [Difference(slot, Place.BOTTLE, Kind.DEVICE, what) for what in self.hold_again(slot)]

        return look, lambda: None

    def _device_kind(self, slot: int | None) -> _Kind:
        ends, route = self._ends[slot], self._edges().route
        return lambda: heal_links.differing(slot, ends, route), lambda: heal_links.mend(ends, route)

    def _name_differs(self, slot: int) -> list[Difference]:
        name = self._bottles[slot].net.netns
        if namespaces.exists(name):
            return []
        return [Difference(slot, Place.HOST, Kind.NAMESPACE, f"name {name} deleted", lost=True)]

    def _rules_differ(self, slot: int | None, place: Place) -> list[Difference]:
        if slot is None:
            found = heal_rules.differing(self._edges().nft, self._host_commands())
        else:
            found = heal_rules.inner_differing(self._bottles[slot], now_ns())
        return [Difference(slot, place, Kind.RULES, what) for what in found]

    def _host_commands(self) -> list[Command]:
        assert self._host is not None
        now = now_ns()
        more = [*heal_rules.dialled(self._dials.left(now), now), *self._edges().forwarding.notes()]
        return heal_rules.host_table(self._host, self._bottles.values(), now, more)

    def _rewrite_host(self) -> None:
        """A table that is there in one transaction: what nobody changed goes on without a gap. One that has gone comes
        back closed, then bottle by bottle."""
        edges, now, bottles = self._edges(), now_ns(), list(self._bottles.values())
        with contextlib.suppress(KernelRefused):  # gone: and so is what it had counted
            for slot in self._bottles:
                self._counted.setdefault(slot, Counter()).update(super().refusals(slot))
        if self._has_table():
            edges.nft.run(self._host_commands(), "restore the host table")
            for bottle in bottles:
                bottle.segments = Segments()
                bottle.segments.change(bottle.still_learned(now), now)
        else:
            self._from_nothing(bottles, now)
        self._dialled = Segments()
        self._dialled.change(self._dials.left(now), now)
        for bottle in bottles:
            if bottle.net.foreign is not None:  # its own ways out are shut by chains of ours
                foreign.shut_new(edges.nft, edges.route, bottle.net)

    def _from_nothing(self, bottles: Sequence[Bottle], now: int) -> None:
        assert self._host is not None
        edges = self._edges()
        more = [*heal_rules.dialled(self._dials.left(now), now), *edges.forwarding.notes()]
        edges.nft.run(again.skeleton(self._host, bottles, more), "restore the host table")
        try:
            for at in range(0, len(bottles), again.AT_ONCE):
                self._rewrite_bottles(bottles[at : at + again.AT_ONCE], now)
        except KernelRefused as e:
            if e.errno != errno.ENOENT:  # taken away again meanwhile, which is told again
                raise

    def _rewrite_bottles(self, bottles: Sequence[Bottle], now: int) -> None:
        messages: list[Message] = []
        for bottle in bottles:
            bottle.segments = Segments()
            messages += again.messages(bottle, bottle.segments.change(bottle.still_learned(now), now))
        self._edges().elements.send(messages, "restore the chains of bottles")

    def _switches_differ(self) -> list[Difference]:
        paths = self._edges().forwarding.switched_off()
        for ends in self._ends.values():
            paths += heal_links.switched(ends)
        what = [f"net.{path.replace('/', '.')} switched" for path in paths]
        if not what:
            super()._forward()  # a device that has come
        self.follow_uplink()
        return [Difference(None, Place.HOST, Kind.FORWARDING, w) for w in what]

    def _switch_again(self) -> None:
        super()._forward()
        for ends in self._ends.values():
            heal_links.switch_again(ends)


_Kind = tuple[Callable[[], list[Difference]], Callable[[], None]]
_Kinds = dict[Kind, _Kind]
