"""The host's table from nothing, closed first: its own part with devices led nowhere, then bottle by bottle. Pure.

A chain is sent as the messages that made it: to write and to compile them anew took twice what the kernel takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from netfilter import bytecode, render, render_bottle
from netfilter.bottle import Bottle
from netfilter.bytecode import Message
from netfilter.elements import Change
from netfilter.language import DROP, Command, device, elements, leads_to, table
from netfilter.spec import BottleRules, HostSpec, Mode

AT_ONCE = 32  # bottles in one transaction: the first are open again while later ones are written


def skeleton(host: HostSpec, bottles: Iterable[Bottle], more: Iterable[Command]) -> list[Command]:
    """One transaction: nothing passes but what the host and the service namespace may.

    :param more: what stands in sets of the host beside (what was dialled, what forwarding switched).
    """
    closed = elements("add", render.BOTTLES, [leads_to(device(b.net.veth), DROP) for b in bottles])
    return [table("add"), table("delete"), *render.host_table(host), *closed, *more]


def chain(bottle: Bottle) -> list[Message]:
    """The rules of its chain, as they were sent or, where nobody knows, made again."""
    rules = bottle.written()
    if bottle.code is None and rules is not None:
        bottle.code = bytecode.compiled(render_bottle.bottle_chain(bottle.net, rules, rules))
    return [] if bottle.code is None else bottle.code


def messages(bottle: Bottle, learned: Change) -> list[Message]:
    """What brings a bottle from `skeleton` to what is in force. `learned`: every address with the time that is left."""
    net, rules = bottle.net, bottle.written()
    if rules is None:  # adopted, and not told yet what it may reach
        return bytecode.compiled([*render_bottle.bottle_closed(net), *_led(bottle)])
    sets: list[Command] = [*render_bottle.bottle_empty(net), *_cut(bottle)]
    if not bottle.led:
        return bytecode.compiled(sets)
    nothing = render_bottle.static(BottleRules(net.slot, 0, Mode.CLOSED))
    static = bottle.static if bottle.static is not None else render_bottle.static(rules)
    sets += render_bottle.changed_sets(net.slot, render_bottle.differences(static, nothing))
    sets += render_bottle.taken_back(net.slot, bottle.region.elements, ())
    sets += render_bottle.learned_anew(learned, net.slot)
    return [*bytecode.compiled(sets), *chain(bottle), *bytecode.compiled(_led(bottle))]


def _cut(bottle: Bottle) -> Sequence[Command]:
    return render_bottle.cut_element(bottle.net, Mode.CUT) if bottle.mode() is Mode.CUT else ()


def _led(bottle: Bottle) -> Sequence[Command]:
    return render_bottle.led_anew(bottle.net, render_bottle.led(bottle.net))
