"""The way of a change of rules: planned, inside first, then on the host, live flows re-marked or ended.

put ─▶ plan.planned ─▶ inner table ─▶ host chain ─▶ (a new epoch: conntrack marks ─▶ both again, one epoch)
learn, permit_service, cut ─▶ elements alone          walk, end_refused, destroy_flows ─▶ what no longer may live
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Sequence
from dataclasses import replace

from netfilter import bytecode, look, render, render_bottle
from netfilter.bottle import Bottle, Inner, now_ns
from netfilter.bytecode import Message
from netfilter.errors import KernelRefused, TooMuch
from netfilter.kept import Kept
from netfilter.language import TABLE, Command
from netfilter.live import carried, destroy, end, listed, marks_undone, refused, remarking
from netfilter.netns import links, namespaces
from netfilter.netns.conntrack import Entry
from netfilter.netns.sockets import Sockets
from netfilter.plan import Planned, from_nothing, host_side_again, planned, whole
from netfilter.render_egress import inner_egress
from netfilter.spec import EPOCH_MASK, BottleNet, BottleRules, Learned, Mode
from netfilter.transaction import Transaction
from netfilter.verdict import Judge

GONE = {errno.ENOENT, errno.ENODEV}
_NO_EGRESS = {*GONE, errno.EOPNOTSUPP, errno.EINVAL}  # the hook, or eth0, is not there
_EPOCHS_AT_ONCE = 8  # of flows that are carried over together; more than one only where a bottle is adopted


class Changing(Kept):
    """What happens to bottles that are there."""

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
        change, what, sent = Transaction(), f"rules of bottle {rules.slot}", list[list[Message]]()
        living = listed(bottle, edges.conntrack) if plan.renumbers else []
        kept = carried(living, judge) if plan.renumbers else []
        also = sorted({c.entry.flow.mark & EPOCH_MASK for c in kept} - {0, rules.epoch})[:_EPOCHS_AT_ONCE]
        change.add(
            f"{what} inside",
            lambda: self._change_inside(bottle, plan, also),
            lambda: whole_inside(
                bottle, whole(bottle, bottle.still_learned(now), now), "take the bottle's own rules back"
            ),
        )
        change.add(
            what,
            lambda: sent.append(self._change_outside(plan, plan.outer_sets(also), also)),
            lambda: edges.elements.run(host_side_again(bottle, now), f"take the {what} back"),
        )
        for conntrack in (bottle.inner.conntrack, edges.conntrack) if kept else ():
            change.add("carry live flows over", remarking(conntrack, kept), marks_undone(conntrack, kept))
        if also:
            change.add(f"{what} inside, one epoch", lambda: self._judge_inside(bottle, plan))
            change.add(f"{what}, one epoch", lambda: sent.append(self._change_outside(plan, plan.regions[1])))
        change.run()
        bottle.took(plan)
        bottle.code = sent[-1] or bottle.code
        bottle.judge = judge
        bottle.note(rules.learned, now)
        if plan.renumbers and not bottle.untouched:
            end(bottle, edges.conntrack, refused(living, judge))
        owes = plan.owes and not bottle.untouched
        bottle.untouched = bottle.untouched and rules.mode is Mode.CLOSED
        return owes

    def _change_outside(self, plan: Planned, first: Sequence[Command], also: Sequence[int] = ()) -> list[Message]:
        """One transaction; the rules of the chain, where they are new."""
        code = bytecode.compiled(plan.written(also))
        messages = [*bytecode.compiled(first), *code, *bytecode.compiled(plan.switched())]
        self._edges().elements.send(messages, f"rules of bottle {plan.rules.slot}")
        return code

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
            with contextlib.suppress(TooMuch):
                whole_inside(bottle, commands, what)

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
                with contextlib.suppress(TooMuch):
                    whole_inside(bottle, everything, f"restore the table of bottle {slot}")
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


def whole_inside(bottle: Bottle, commands: Sequence[Command], what: str) -> None:
    """The whole table inside, made anew in one transaction, unless taking away what is in there would take long.

    :raises TooMuch: it was left as it is.
    """
    size = bottle.inner.inside(lambda: look.size(TABLE))
    if size is not None and size.too_much:
        more = f"it holds more than {look.MOST} rules or parts of somebody's: it stays, the host's side holds"
        raise TooMuch(what, more)
    bottle.inner.elements.run(commands, what)
    if bottle.net.foreign is None:
        hold_frames(bottle.net, bottle.inner)


def hold_frames(net: BottleNet, inner: Inner) -> None:
    """Where the kernel has the hook; the host drops such frames in any case."""
    try:
        inner.elements.run(inner_egress(net, links.INNER), f"hold frames of bottle {net.slot} inside")
    except KernelRefused as e:
        if e.errno not in _NO_EGRESS:
            raise


def _unless_gone(e: KernelRefused) -> None:
    if e.errno not in GONE:
        raise e


def _using(sockets: Sockets, work: Callable[[Sockets], int]) -> int:
    try:
        return work(sockets)
    finally:
        sockets.close()
