"""One bottle's rules as nftables commands, for the host's table and for its own. Pure.

Host chain b<slot>, of constant length, in this order:

    noise, spoof → (unless cut, unless taken back) current epoch → services that survive a cut → bare resets
    → cut → services → protected → deny → allow: s exact, n networks → learned: l exact, r port ranges → refuse

A flow carries its epoch in the conntrack mark; the chain names one epoch, so that writing it anew ends all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from netfilter.batch import Batch, Members
from netfilter.elements import Change, Element, disjoint
from netfilter.language import (
    ACCEPT,
    DROP,
    TUPLE,
    Command,
    Part,
    add_set,
    base_chain,
    chain,
    counted,
    counter,
    ct,
    delete_set,
    device,
    differs,
    elements,
    equal,
    field,
    flush_set,
    goto,
    leads_to,
    masked,
    meta,
    named,
    number,
    put,
    rule,
    state,
    table,
    union,
    word,
)
from netfilter.render import (
    BOTTLES,
    CUT,
    FAMILIES,
    FILTER,
    PASS,
    PROTECTED,
    REFUSE,
    ip,
    noise,
    not_away,
    pieces,
    refusal,
    renewals,
    shared_noise,
    target,
)
from netfilter.spec import EPOCH_MASK, BottleNet, BottleRules, Endpoint, Mode

REASONS = ("spoof", "protected", "deny", "policy", "cut", "closed")
_COUNTERS = (*REASONS, "observed")
_KEEP = 0xFFFF_FFFF & ~EPOCH_MASK
_RST = 0x04
_FLUSH_FROM = 64  # elements to take out before emptying the whole set is thought of
_BARE = {4: (40, 52), 6: (60, 72)}  # bytes of IP and TCP headers, without and with the time stamp option
_KINDS = {
    "s": (), "n": ("interval",), "l": ("timeout",), "r": ("interval", "timeout"), "d": ("interval",),
    "x": ("interval",),
}  # fmt: skip


def set_name(kind: str, version: int, slot: int | None) -> str:
    """s4_16 in the host's table, s4 in the bottle's own."""
    return f"{kind}{version}" if slot is None else f"{kind}{version}_{slot}"


def counter_name(slot: int, reason: str) -> str:
    return f"c{slot}_{reason}"


# ── host side ────────────────────────────────────────────────────────────────


def bottle_empty(net: BottleNet) -> list[Part]:
    """Chain, counters and sets of a bottle, no rule: nothing may lead there yet. The kernel looks at all rules of
    a table for each transaction that adds one, so a new bottle has none before its first policy."""
    s = net.slot
    counters = [counter("add", counter_name(s, reason)) for reason in _COUNTERS]
    return [*counters, *_sets(s), chain("add", f"b{s}"), chain("flush", f"b{s}")]


def bottle_closed(net: BottleNet) -> list[Part]:
    """The same with rules that refuse everything. An element of BOTTLES then sends its packets there."""
    return [*bottle_empty(net), *(rule(f"b{net.slot}", *parts) for parts in [*_spoof(net), *_closed(net)])]


def led(net: BottleNet) -> list[Part]:
    """What the bottle's device brings goes to its chain."""
    return elements("add", BOTTLES, [leads_to(device(net.veth), goto(f"b{net.slot}"))])


def led_nowhere(net: BottleNet) -> list[Part]:
    """What it brings is dropped, whatever its chain says."""
    return elements("add", BOTTLES, [leads_to(device(net.veth), DROP)])


def led_anew(net: BottleNet, element: Sequence[Part]) -> list[Part]:
    """`element`, one of the two above, in place of the other."""
    return [*elements("delete", BOTTLES, [device(net.veth)]), *element]


def bottle_chain(
    net: BottleNet, rules: BottleRules, before: BottleRules | None = None, also: Iterable[int] = ()
) -> list[Part]:
    """The chain written anew, and the element that cuts put in or taken out where that may have changed.

    :param also: epochs of flows that are about to be re-marked.
    """
    name = f"b{net.slot}"
    judged = _closed(net) if rules.mode is Mode.CLOSED else _judged(net.slot, rules, also)
    chain_now = [chain("flush", name), *(rule(name, *parts) for parts in [*_spoof(net), *judged])]
    if before is not None and (before.mode is Mode.CUT) is (rules.mode is Mode.CUT):
        return chain_now
    return [*chain_now, *cut_element(net, rules.mode)]


def cut_element(net: BottleNet, mode: Mode) -> list[Part]:
    """The element that cuts, put in or taken out; put in first, since it may not be there."""
    veth = [device(net.veth)]
    return [*elements("add", CUT, veth), *([] if mode is Mode.CUT else elements("delete", CUT, veth))]


def bottle_deleted(slot: int) -> list[Part]:
    """Removes what `bottle_closed` made, once no element leads there any more; may find nothing to do."""
    things = [chain("flush", f"b{slot}"), chain("delete", f"b{slot}")]
    things += [delete_set(set_name(kind, v, slot)) for kind in _KINDS for v in FAMILIES]
    return things + [counter("delete", counter_name(slot, reason)) for reason in _COUNTERS]


def _spoof(net: BottleNet) -> list[list[Part]]:
    bad = [counted(counter_name(net.slot, "spoof")), DROP]
    ours4 = differs(field("ip", "saddr"), word(str(net.addr4)))
    ours6 = differs(field("ip6", "saddr"), word(str(net.addr6)))
    return [
        [shared_noise(), DROP],
        [differs(field("ether", "saddr"), word(net.mac_bottle)), *bad],
        [ours4, *bad],
        [ours6 if net.addr6 is not None else equal(meta("nfproto"), word("ipv6")), *bad],
    ]


def _closed(net: BottleNet) -> list[list[Part]]:
    return [[counted(counter_name(net.slot, "closed")), goto(REFUSE)]]


def _judged(slot: int, rules: BottleRules, also: Iterable[int]) -> list[list[Part]]:
    def refuse(reason: str) -> list[Part]:
        return [counted(counter_name(slot, reason)), goto(REFUSE)]

    accept = [_marked(rules.epoch), PASS, ACCEPT]
    out = [
        [differs(meta("iifname"), named(CUT)), *parts, PASS, ACCEPT] for parts in _current((rules.epoch, *also), slot)
    ]
    out += _services((e for e in rules.services if e.survives_cut), accept)
    out += [[*farewell, PASS, ACCEPT] for farewell in _farewell()]
    out.append([equal(meta("iifname"), named(CUT)), *refuse("cut")])
    out += _services((e for e in rules.services if not e.survives_cut), accept)
    for v in FAMILIES:
        out.append([equal(field(ip(v), "daddr"), named(f"{PROTECTED}{v}")), *refuse("protected")])
    out.append([not_away(), *refuse("protected")])
    out += [[equal(target(v), named(set_name("d", v, slot))), *refuse("deny")] for v in FAMILIES]
    out += [[equal(target(v), named(set_name(k, v, slot))), *accept] for k in "snlr" for v in FAMILIES]
    if rules.mode is Mode.OBSERVE:
        observed = [counted(counter_name(slot, "observed")), *accept]
        out += [[transport, *observed] for transport in _transports()]
    return [*out, refuse("policy")]


# ── inside ───────────────────────────────────────────────────────────────────


def inner_closed() -> list[Part]:
    """The bottle's own table from nothing, before its policy: its loopback device, nothing else."""
    loop_in, loop_out = equal(meta("iifname"), device("lo")), equal(meta("oifname"), device("lo"))
    return [
        table("add"),
        table("delete"),
        table("add"),
        *inner_sets(),
        *refusal(),
        base_chain("output", "filter", "output", FILTER, "drop"),
        base_chain("input", "filter", "input", FILTER, "drop"),
        rule("output", loop_out, ACCEPT),
        rule("input", loop_in, ACCEPT),
        rule("input", state("established", "related"), ACCEPT),
    ]


def inner_chain(rules: BottleRules, also: Iterable[int] = ()) -> list[Part]:
    """The bottle's own judgement of what it sends: refused here, a program hears it at once."""
    loop = rule("output", equal(meta("oifname"), device("lo")), ACCEPT)
    return [chain("flush", "output"), loop, *inner_judgement("output", rules, also)]


def inner_judgement(name: str, rules: BottleRules, also: Iterable[int] = ()) -> list[Part]:
    """The rules of chain `name` that say what may leave."""
    parts: list[list[Part]] = [[noise(), DROP]]
    if rules.mode is not Mode.CLOSED:
        cut = rules.mode is Mode.CUT
        accept = [_marked(rules.epoch), ACCEPT]
        if not cut:
            parts += [[*current, ACCEPT] for current in _current((rules.epoch, *also), None)]
        parts += _services((e for e in rules.services if e.survives_cut or not cut), accept)
        parts += [[*farewell, ACCEPT] for farewell in _farewell()]
        if not cut:
            parts += [[equal(target(v), named(set_name("d", v, None))), goto(REFUSE)] for v in FAMILIES]
            parts += [[equal(target(v), named(set_name(k, v, None))), *accept] for k in "snlr" for v in FAMILIES]
        if rules.mode is Mode.OBSERVE:
            parts += [[transport, *accept] for transport in _transports()]
    return [rule(name, *p) for p in [*parts, [goto(REFUSE)]]]


# ── both ─────────────────────────────────────────────────────────────────────


def inner_sets() -> list[Part]:
    return _sets(None)


def _sets(slot: int | None) -> list[Part]:
    return [add_set(set_name(kind, v, slot), TUPLE[v], *flags) for kind, flags in _KINDS.items() for v in FAMILIES]


def _current(epochs: Iterable[int], slot: int | None) -> list[list[Part]]:
    """For each family: a flow of these epochs to what has not been taken back since; not ICMP errors about one, which
    could carry data out."""
    return [
        [
            differs(target(v), named(set_name("x", v, slot))),
            equal(masked(ct("mark"), EPOCH_MASK), number(epoch)),
            state("established", "new"),
        ]
        for epoch in epochs
        for v in FAMILIES
    ]


def _farewell() -> list[list[Part]]:
    """For each family and length: a reset of a connection that conntrack still knows, with no more than a time stamp in
    it: the far end of a flow that ends here is told. Its entry is deleted next."""
    reset = equal(masked(field("tcp", "flags"), _RST), number(_RST))
    return [
        [equal(meta("nfproto"), word(f"ipv{v}")), reset, equal(meta("length"), Part(str(n), n)), state("established")]
        for v, lengths in _BARE.items()
        for n in lengths
    ]


def _marked(bits: int) -> Part:
    return put(ct("mark"), union(masked(ct("mark"), _KEEP), bits))


def _transports() -> list[Part]:
    return [equal(meta("l4proto"), word(name)) for name in ("tcp", "udp")]


def _services(services: Iterable[Endpoint], verdict: Sequence[Part]) -> list[list[Part]]:
    """A rule for each: a set without a name would be one more for nf_tables to walk past."""
    out = []
    services = tuple(services)
    for v in FAMILIES:
        for address, proto, port in sorted({(e.address, e.proto, e.port) for e in services if e.address.version == v}):
            to = equal(field(ip(v), "daddr"), word(str(address)))
            at = equal(field("th", "dport"), Part(str(port), port))
            out.append([to, equal(meta("l4proto"), word(proto)), at, *verdict])
    return out


# ── elements ─────────────────────────────────────────────────────────────────

Static = dict[tuple[str, int], list[Element]]  # by kind and family


def static(rules: BottleRules) -> Static:
    """What belongs into the sets s, n and d."""
    found: Static = {(kind, v): [] for kind in "snd" for v in FAMILIES}
    for element in disjoint(rules.allow):
        found["s" if element.exact else "n", element.version].append(element)
    for element in disjoint(rules.deny):
        found["d", element.version].append(element)
    return found


class Difference(NamedTuple):
    """What one set needs. `flushed`: emptied first, because little of it stays, or nobody knows what is there."""

    kind: str
    version: int
    flushed: bool
    gone: Batch
    came: Batch


def differences(now: Static, before: Static | None) -> list[Difference]:
    """Only of sets that change; without a `before`, whatever is there goes."""
    found = []
    for (kind, v), wanted in now.items():
        there = [] if before is None else before[kind, v]
        if before is not None and wanted == there:
            continue
        kept, known = set(wanted), set(there)
        gone = [e for e in there if e not in kept]
        flushed = before is None or (len(gone) > _FLUSH_FROM and 2 * len(gone) > len(there))
        came = wanted if flushed else [e for e in wanted if e not in known]
        found.append(Difference(kind, v, flushed, Batch(gone), Batch(came)))
    return found


def changed_sets(slot: int | None, changed: Iterable[Difference]) -> list[Command]:
    commands: list[Command] = []
    for kind, v, flushed, gone, came in changed:
        name, ranged = set_name(kind, v, slot), kind != "s"
        if flushed:
            commands.append(flush_set(name))
        elif gone.elements:
            commands.append(Members("delete", name, gone, ranged))
        if came.elements:
            commands.append(Members("add", name, came, ranged))
    return commands


def static_sets(slot: int | None, rules: BottleRules) -> list[Command]:
    """The sets s, n and d, whatever is in them."""
    return changed_sets(slot, differences(static(rules), None))


def taken_back(slot: int | None, now: Sequence[Element], before: Sequence[Element]) -> list[Command]:
    """Bring x from what `before` put there to `now`."""
    commands: list[Command] = []
    for v in FAMILIES:
        name = set_name("x", v, slot)
        gone = [e for e in before if e.version == v and e not in now]
        came = [e for e in now if e.version == v and e not in before]
        commands += [Members("delete", name, Batch(gone), True)] if gone else []
        commands += [Members("add", name, Batch(came), True)] if came else []
    return commands


def flushed(kinds: str, slot: int | None) -> list[Command]:
    return [flush_set(set_name(kind, v, slot)) for kind in kinds for v in FAMILIES]


def learned_anew(change: Change, slot: int | None) -> list[Command]:
    """Learned elements into sets that have just been flushed."""
    commands: list[Command] = []
    for v in FAMILIES:
        timed = [t for t in change.exact if t.element.version == v]
        commands += [Members("add", set_name("l", v, slot), Batch.timed(timed), False)] if timed else []
    return [*commands, *pieces(Change(add=change.add), _pattern("r", slot))]


def learned_in(change: Change, slot: int | None) -> list[Command]:
    """Learned elements over what is there, renewing it."""
    return [*renewals(change, _pattern("l", slot)), *pieces(change, _pattern("r", slot))]


def unlearned(elements: Sequence[Element], slot: int | None) -> list[Command]:
    """Learned exact elements out. They may have expired meanwhile, so they are added first."""
    commands: list[Command] = []
    for v in FAMILIES:
        gone = Batch([e for e in elements if e.version == v])
        if gone.elements:
            commands += [Members(verb, set_name("l", v, slot), gone, False) for verb in ("add", "delete")]
    return commands


def _pattern(kind: str, slot: int | None) -> str:
    return f"{kind}%d" if slot is None else f"{kind}%d_{slot}"
