"""One bottle's rules brought from what is in force to what is wanted: worked out before anything is done. Pure.

    same chain, nothing taken back            elements only
    same chain, something taken back          elements only; what went is in x (revoke.py), its flows are ended later
    another mode, services; too much for x    the chain written with a new epoch, live flows re-marked first

Either way one transaction inside and one on the host. Between the re-marking of flows and the chain that names the new
epoch alone there is one that names both: a packet in between finds its flow's mark in force, whichever it is. What
was taken back under the old epoch stays in x until then: nobody may have ended those flows yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from netfilter import render_bottle, render_foreign, revoke
from netfilter.batch import Members
from netfilter.bottle import Bottle
from netfilter.elements import Change, Element, Segments
from netfilter.language import Command, Part, written
from netfilter.render_bottle import Static
from netfilter.revoke import Region
from netfilter.spec import BottleNet, BottleRules, Learned, Mode

_NS = 1_000_000_000
_SLACK_NS = 2 * _NS  # an address's time, given in whole seconds, is the one that is remembered
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Planned:
    """A change and what is remembered once it is in force."""

    rules: BottleRules
    static: Static
    segments: Segments
    region: Region
    renumbers: bool  # the chain gets the rules' epoch: live flows are re-marked before
    rewrites: bool  # the chain is written anew
    fresh: bool  # the rules have another epoch than those before
    unsure: bool  # something went without being taken back: the next epoch is a new number
    closed: tuple[Learned, ...]  # addresses that open nothing any more, without their times
    net: BottleNet
    before: BottleRules | None
    leads: bool  # the device's packets go to the chain from now on: it has rules for the first time
    sets: tuple[list[Command], list[Command]]  # inside, on the host
    regions: tuple[list[Command], list[Command]]  # set x of both; as long as an old epoch is named, x holds what it did

    def inner(self, also: Sequence[int] = ()) -> list[Command]:
        """One transaction inside. `also`: epochs of flows that are about to be re-marked."""
        return [*self.sets[0], *([] if also else self.regions[0]), *self.judging(also)]

    def judging(self, also: Sequence[int] = ()) -> list[Part]:
        """The chain inside."""
        return render_foreign.table_judging(self.net, self.rules, also) if self.rewrites else []

    def outer(self, also: Sequence[int] = ()) -> list[Command]:
        """One transaction on the host."""
        return [*self.outer_sets(also), *self.written(also), *self.switched()]

    def inner_alone(self) -> list[Command]:
        """The second transaction inside: the new epoch alone, and what was taken back before it forgotten."""
        return [*self.regions[0], *self.judging()]

    def outer_alone(self) -> list[Command]:
        """The second transaction on the host."""
        return [*self.regions[1], *self.written()]

    def outer_sets(self, also: Sequence[int] = ()) -> list[Command]:
        """Its first part: elements."""
        return [*self.sets[1], *([] if also else self.regions[1])]

    def written(self, also: Sequence[int] = ()) -> list[Part]:
        """The chain on the host."""
        return render_bottle.bottle_chain(self.net, self.rules, self.rules, also) if self.rewrites else []

    def switched(self) -> list[Part]:
        """The cut's element where it changes, and the device led to the chain for the first time."""
        before = self.before
        same = not self.rewrites if before is None else (before.mode is Mode.CUT) is (self.rules.mode is Mode.CUT)
        cut = [] if same else render_bottle.cut_element(self.net, self.rules.mode)
        return [*cut, *(render_bottle.led_anew(self.net, render_bottle.led(self.net)) if self.leads else [])]

    @property
    def owes(self) -> bool:
        """Flows may live that these rules refuse, and nobody has looked for them."""
        return not self.renumbers and (self.fresh or self.rules.mode in {Mode.CUT, Mode.CLOSED})

    def describe(self) -> list[str]:
        """What it does to the kernel, a line for each command; of many elements the first few."""
        first = [f"re-mark what lives and is still allowed: epoch {self.rules.epoch}"] if self.renumbers else []
        last = ["end the flows that are refused now"] if self.fresh else []
        both = (("inside", self.inner()), ("host", self.outer()))
        sides = [f"{side}: {_line(c)}" for side, commands in both for c in commands]
        return [*first, *sides, *last]


def _line(command: Command) -> str:
    if isinstance(command, Members) and len(command.batch.elements) > _SHOWN:
        few = command.batch.first(_SHOWN)
        more = len(command.batch.elements) - _SHOWN
        return written(command._replace(batch=few)).text.replace(" }", f", … and {more} more }}")
    return written(command).text


def planned(bottle: Bottle, rules: BottleRules, now_ns: int, *, anew: bool = False) -> Planned:
    """:param anew: with a new epoch in any case."""
    old = bottle.rules
    fresh = old is None or bottle.asked != rules.epoch
    chain = bottle.chain == (rules.mode, rules.services)
    static = render_bottle.static(rules)
    changed = render_bottle.differences(static, bottle.static)
    known = {timeless(e) for e in rules.learned}
    forgotten = tuple(e for e in bottle.remembered() if e not in known) if fresh else ()
    lapsed = tuple(
        key for e in rules.learned if e.timeout_s <= 0 and bottle.learned.get(key := timeless(e), 0) > now_ns
    )
    gone = revoke.taken_back(changed, forgotten)
    region: Region | None = bottle.region
    if fresh:
        region = None if bottle.unsure else revoke.beyond(bottle.region, gone, rules.learned)
    renumbers = (old is None or old.epoch != rules.epoch) and (anew or not chain or region is None)
    rewrites = renumbers or not chain
    if region is None or renumbers:
        region = Region()
    segments, learned = _learned(bottle, rules, now_ns, fresh=fresh, renumbers=renumbers, closing=(*forgotten, *lapsed))

    def commands(slot: int | None) -> list[Command]:
        return [*render_bottle.changed_sets(slot, changed), *learned.commands(slot)]

    def x(slot: int | None) -> list[Command]:
        emptied = [] if bottle.static is not None else render_bottle.flushed("x", slot)
        return [*emptied, *render_bottle.taken_back(slot, region.elements, bottle.region.elements)]

    unsure = not renumbers and (bottle.unsure or (not fresh and bool(gone)))
    return Planned(
        rules, static, segments, region, renumbers, rewrites, fresh, unsure, (*forgotten, *lapsed), bottle.net, old,
        not bottle.led,         (commands(None), commands(rules.slot)), (x(None), x(rules.slot)),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Sets:
    """What the learned sets need."""

    change: Change
    flushed: str  # kinds that are emptied first
    unlearned: tuple[Element, ...] = ()

    def commands(self, slot: int | None) -> list[Command]:
        out = render_bottle.unlearned(self.unlearned, slot)
        if "l" in self.flushed:
            return [*out, *render_bottle.flushed("lr", slot), *render_bottle.learned_anew(self.change, slot)]
        if self.flushed:
            out += render_bottle.flushed(self.flushed, slot)
        return [*out, *render_bottle.learned_in(self.change, slot)]


def _learned(
    bottle: Bottle, rules: BottleRules, now_ns: int, *, fresh: bool, renumbers: bool, closing: Sequence[Learned]
) -> tuple[Segments, _Sets]:
    if fresh and renumbers:
        segments = Segments()
        change = segments.change(rules.learned, now_ns)
        empty = bottle.static is not None and not bottle.learned  # what is looked up costs, beside many bottles
        return segments, _Sets(change, "" if empty and not change.remove else "lr")
    if not fresh:
        segments = bottle.segments.copy()
        return segments, _Sets(segments.change(rules.learned, now_ns), "")
    exact = tuple(Element.at(e.address, e.proto, low, high) for e in closing for low, high in e.ports if low == high)
    came = [e for e in rules.learned if _differs(e, bottle.learned, now_ns)]
    if any(low != high for e in closing for low, high in e.ports):
        segments = Segments()
        ranges = segments.change(rules.learned, now_ns).add
        return segments, _Sets(Change(Segments().change(came, now_ns).exact, [], ranges), "r", exact)
    segments = bottle.segments.copy()
    return segments, _Sets(segments.change(came, now_ns), "", exact)


def _differs(entry: Learned, remembered: dict[Learned, int], now_ns: int) -> bool:
    end = now_ns + entry.timeout_s * _NS
    return entry.timeout_s > 0 and abs(end - remembered.get(timeless(entry), 0)) > _SLACK_NS


def timeless(entry: Learned) -> Learned:
    """The same address and ports without a time: what is remembered by."""
    return Learned(entry.address, entry.proto, entry.ports, 0)


def whole(bottle: Bottle, learned: Iterable[Learned], now_ns: int) -> list[Command]:
    """The bottle's own table from nothing to what is in force."""
    rules = bottle.written() if bottle.led else None  # as it was made
    return from_nothing(bottle.net, rules, bottle.region, learned, now_ns)


def host_side(bottle: Bottle, now_ns: int) -> list[Command]:
    """A bottle's chain and sets in the host's table, from nothing to what is in force."""
    net, rules, slot = bottle.net, bottle.written(), bottle.net.slot
    if not bottle.led:
        return [*render_bottle.bottle_empty(net), *render_bottle.cut_element(net, bottle.mode())]
    commands: list[Command] = [*render_bottle.bottle_closed(net)]
    if rules is None or bottle.rules is None:
        return commands
    commands += render_bottle.static_sets(slot, rules)
    commands += render_bottle.taken_back(slot, bottle.region.elements, ())
    commands += render_bottle.learned_anew(Segments().change(bottle.still_learned(now_ns), now_ns), slot)
    commands += render_bottle.bottle_chain(net, rules, rules)
    return [*commands, *render_bottle.cut_element(net, bottle.rules.mode)]


def host_side_again(bottle: Bottle, now_ns: int) -> list[Command]:
    """The same over whatever is there."""
    net = bottle.net
    shut = [] if bottle.led else render_bottle.led_anew(net, render_bottle.led_nowhere(net))
    kinds = "lrx" if bottle.led else "snlrdx"
    return [*shut, *render_bottle.flushed(kinds, net.slot), *host_side(bottle, now_ns)]


def leading(bottle: Bottle) -> list[Part]:
    """Where its device leads, into a map that has nothing of it."""
    return render_bottle.led(bottle.net) if bottle.led else render_bottle.led_nowhere(bottle.net)


def from_nothing(
    net: BottleNet, rules: BottleRules | None, region: Region, learned: Iterable[Learned], now_ns: int
) -> list[Command]:
    """The table inside a bottle with these rules."""
    commands: list[Command] = [*render_foreign.table_closed(net)]
    if rules is None:
        return commands
    commands += render_bottle.static_sets(None, rules)
    commands += render_bottle.taken_back(None, region.elements, ())
    commands += render_bottle.learned_anew(Segments().change(learned, now_ns), None)
    return [*commands, *render_foreign.table_judging(net, rules)]
