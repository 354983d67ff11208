"""One bottle's rules as nftables commands, for the host's table and for its own. Pure.

Host chain b<slot>, of constant length, in this order:

    noise, spoof → (unless cut) current epoch → services that survive a cut → bare resets → cut → services
    → protected → deny → allow: s exact, n networks → learned: l exact, r port ranges → refuse

A flow carries its epoch in the conntrack mark; the chain names one epoch, so that writing it anew ends all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from netfilter.elements import Change, Element, Timed, disjoint
from netfilter.language import (
    ACCEPT,
    DROP,
    TUPLE,
    Part,
    add_set,
    address_type,
    base_chain,
    chain,
    choice,
    counted,
    counter,
    ct,
    delete_set,
    destination,
    device,
    differs,
    elements,
    equal,
    field,
    flush_set,
    goto,
    joined,
    masked,
    meta,
    named,
    network,
    number,
    put,
    rule,
    state,
    table,
    union,
    word,
)
from netfilter.render import (
    CUT,
    FAMILIES,
    FILTER,
    PASS,
    REFUSE,
    ip,
    noise,
    refusal,
    target,
)
from netfilter.spec import EPOCH_MASK, BottleNet, BottleRules, Endpoint, Mode, Network
from netfilter.verdict import PROTECTED4, PROTECTED6

REASONS = ("spoof", "protected", "deny", "policy", "cut", "closed")
_COUNTERS = (*REASONS, "observed")
_KEEP = 0xFFFF_FFFF & ~EPOCH_MASK
_RST = 0x04
_BARE = ((4, 40), (4, 52), (6, 60), (6, 72))  # IP and TCP headers, without and with the time stamp option
_KINDS = {"s": (), "n": ("interval",), "l": ("timeout",), "r": ("interval", "timeout"), "d": ("interval",)}


def set_name(kind: str, version: int, slot: int | None) -> str:
    """s4_16 in the host's table, s4 in the bottle's own."""
    return f"{kind}{version}" if slot is None else f"{kind}{version}_{slot}"


def counter_name(slot: int, reason: str) -> str:
    return f"c{slot}_{reason}"


# ── host side ────────────────────────────────────────────────────────────────


def bottle_closed(net: BottleNet) -> list[Part]:
    """Chain, counters and sets of a new bottle, closed. An element of BOTTLES then sends its packets there."""
    s = net.slot
    return [
        *(counter("add", counter_name(s, reason)) for reason in _COUNTERS),
        *_sets(s),
        chain("add", f"b{s}"),
        chain("flush", f"b{s}"),
        *(rule(f"b{s}", *parts) for parts in [*_spoof(net), [counted(counter_name(s, "closed")), goto(REFUSE)]]),
    ]


def bottle_chain(
    net: BottleNet, rules: BottleRules, own: Iterable[Network], before: BottleRules | None = None
) -> list[Part]:
    """The chain written anew, and the element that cuts put in or taken out.

    An element that stays is left alone: for any `add element`, libnftables 1.0.6 reads the elements of every set.
    """
    name = f"b{net.slot}"
    judged = _closed(net) if rules.mode is Mode.CLOSED else _judged(net.slot, rules, own)
    chain_now = [chain("flush", name), *(rule(name, *parts) for parts in [*_spoof(net), *judged])]
    if before is not None and (before.mode is Mode.CUT) is (rules.mode is Mode.CUT):
        return chain_now
    veth = [device(net.veth)]
    uncut = [] if rules.mode is Mode.CUT else elements("delete", CUT, veth)
    return [*chain_now, *elements("add", CUT, veth), *uncut]


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
        [noise(), DROP],
        [differs(field("ether", "saddr"), word(net.mac_bottle)), *bad],
        [ours4, *bad],
        [ours6 if net.addr6 is not None else equal(meta("nfproto"), word("ipv6")), *bad],
    ]


def _closed(net: BottleNet) -> list[list[Part]]:
    return [[counted(counter_name(net.slot, "closed")), goto(REFUSE)]]


def _judged(slot: int, rules: BottleRules, own: Iterable[Network]) -> list[list[Part]]:
    def refuse(reason: str) -> list[Part]:
        return [counted(counter_name(slot, reason)), goto(REFUSE)]

    accept = [_marked(rules.epoch), PASS, ACCEPT]
    out = [[differs(meta("iifname"), named(CUT)), *_current(rules.epoch), PASS, ACCEPT]]
    out += _services((e for e in rules.services if e.survives_cut), accept)
    out += [[*_farewell(), PASS, ACCEPT], [equal(meta("iifname"), named(CUT)), *refuse("cut")]]
    out += _services((e for e in rules.services if not e.survives_cut), accept)
    own = tuple(own)
    for v, fixed in ((4, PROTECTED4), (6, PROTECTED6)):
        nets = [*fixed, *(n for n in own if n.version == v)]
        out.append([equal(field(ip(v), "daddr"), choice(map(network, nets))), *refuse("protected")])
    out.append([equal(address_type(), choice(map(word, ("local", "broadcast", "multicast")))), *refuse("protected")])
    out += [[equal(target(v), named(set_name("d", v, slot))), *refuse("deny")] for v in FAMILIES]
    out += [[equal(target(v), named(set_name(k, v, slot))), *accept] for k in "snlr" for v in FAMILIES]
    if rules.mode is Mode.OBSERVE:
        out.append([_transport(), counted(counter_name(slot, "observed")), *accept])
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


def inner_chain(rules: BottleRules) -> list[Part]:
    """The bottle's own judgement of what it sends: refused here, a program hears it at once."""
    loop = rule("output", equal(meta("oifname"), device("lo")), ACCEPT)
    return [chain("flush", "output"), loop, *inner_judgement("output", rules)]


def inner_judgement(name: str, rules: BottleRules) -> list[Part]:
    """The rules of chain `name` that say what may leave."""
    parts: list[list[Part]] = [[noise(), DROP]]
    if rules.mode is not Mode.CLOSED:
        cut = rules.mode is Mode.CUT
        accept = [_marked(rules.epoch), ACCEPT]
        if not cut:
            parts.append([*_current(rules.epoch), ACCEPT])
        parts += _services((e for e in rules.services if e.survives_cut or not cut), accept)
        parts.append([*_farewell(), ACCEPT])
        if not cut:
            parts += [[equal(target(v), named(set_name("d", v, None))), goto(REFUSE)] for v in FAMILIES]
            parts += [[equal(target(v), named(set_name(k, v, None))), *accept] for k in "snlr" for v in FAMILIES]
        if rules.mode is Mode.OBSERVE:
            parts.append([_transport(), *accept])
    return [rule(name, *p) for p in [*parts, [goto(REFUSE)]]]


# ── both ─────────────────────────────────────────────────────────────────────


def inner_sets() -> list[Part]:
    return _sets(None)


def _sets(slot: int | None) -> list[Part]:
    return [add_set(set_name(kind, v, slot), TUPLE[v], *flags) for kind, flags in _KINDS.items() for v in FAMILIES]


def _current(epoch: int) -> list[Part]:
    """A flow of this epoch; not ICMP errors about one, which could carry data out."""
    return [equal(masked(ct("mark"), EPOCH_MASK), number(epoch)), state("established", "new")]


def _farewell() -> list[Part]:
    """A reset of a connection that conntrack still knows, with no more than a time stamp in it: the far end of a flow
    that ends here is told. Its entry is deleted next."""
    reset = equal(masked(field("tcp", "flags"), _RST), number(_RST))
    bare = choice(joined(word(f"ipv{v}"), Part(str(n), n)) for v, n in _BARE)
    return [reset, equal(joined(meta("nfproto"), meta("length")), bare), state("established")]


def _marked(bits: int) -> Part:
    return put(ct("mark"), union(masked(ct("mark"), _KEEP), bits))


def _transport() -> Part:
    return equal(meta("l4proto"), choice([word("tcp"), word("udp")]))


def _services(services: Iterable[Endpoint], verdict: Sequence[Part]) -> list[list[Part]]:
    out = []
    services = tuple(services)
    for v in FAMILIES:
        found = sorted({(e.address, e.proto, e.port) for e in services if e.address.version == v})
        if found:
            members = [joined(word(str(a)), word(proto), Part(str(port), port)) for a, proto, port in found]
            out.append([equal(target(v), choice(members)), *verdict])
    return out


def static_sets(slot: int | None, rules: BottleRules, before: BottleRules | None) -> list[Part]:
    """Bring s, n and d from what `before` put there to `rules`; without a `before`, whatever is there goes."""
    now, old = _static(rules), {} if before is None else _static(before)
    commands = []
    for kind in "snd":
        for v in FAMILIES:
            name = set_name(kind, v, slot)
            wanted, there = now.get((kind, v), []), old.get((kind, v), [])
            if before is None:
                commands.append(flush_set(name))
            keep, known = set(wanted), set(there)
            commands += elements("delete", name, (destination(e) for e in there if e not in keep))
            commands += elements("add", name, (destination(e) for e in wanted if e not in known))
    return commands


def _static(rules: BottleRules) -> dict[tuple[str, int], list[Element]]:
    found: dict[tuple[str, int], list[Element]] = {}
    for element in disjoint(rules.allow):
        found.setdefault(("s" if element.exact else "n", element.network.version), []).append(element)
    for element in disjoint(rules.deny):
        found.setdefault(("d", element.network.version), []).append(element)
    return found


def learned_flushed(slot: int | None) -> list[Part]:
    return [flush_set(set_name(kind, v, slot)) for kind in "lr" for v in FAMILIES]


def learned_in(change: Change, slot: int | None, *, fresh: bool) -> list[Part]:
    """Learned elements within a transaction; not `fresh`: over what is there, renewing it."""
    commands = [] if fresh else ranges(Change(remove=change.remove), slot)
    for name, timed in exact_sets(change, slot).items():
        bare = [destination(t.element) for t in timed]
        if not fresh:
            commands += [*elements("add", name, bare), *elements("delete", name, bare)]
        commands += elements("add", name, (destination(t.element, t.timeout_s) for t in timed))
    return [*commands, *ranges(Change(add=change.add), slot)]


def exact_sets(change: Change, slot: int | None) -> dict[str, list[Timed]]:
    """Learned exact elements by the set they go to."""
    found: dict[str, list[Timed]] = {}
    for timed in change.exact:
        found.setdefault(set_name("l", timed.element.network.version, slot), []).append(timed)
    return found


def ranges(change: Change, slot: int | None) -> list[Part]:
    """Learned port ranges of a bottle."""
    return range_pieces(change, "r%d" if slot is None else f"r%d_{slot}")


def range_pieces(change: Change, name: str) -> list[Part]:
    """Pieces out and in; `name` is the sets' name with %d for the family.

    A piece that is to go may have expired meanwhile, and deleting what is not there fails: it is added first.
    """
    commands = []
    for v in FAMILIES:
        gone = [destination(e) for e in change.remove if e.network.version == v]
        new = [destination(t.element, t.timeout_s) for t in change.add if t.element.network.version == v]
        commands += [*elements("add", name % v, gone), *elements("delete", name % v, gone)]
        commands += elements("add", name % v, new)
    return commands
