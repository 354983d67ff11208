"""The rules inside a namespace that others made, and those that shut its own ways out on the host. Pure.

output ─ lo accept │ not our address: refuse ─▶ judge         its own packets; IPv6 neighbours by its own devices
forward ─ answers │ ─▶ judge                                  of containers inside it
input ─ lo, answers by our device; nothing else               dns ─ port 53 goes to our resolver
judge ─ not by our device: refuse, then as in render_bottle.inner_chain
"""

from __future__ import annotations

from collections.abc import Iterable

from netfilter import render_bottle
from netfilter.language import (
    ACCEPT,
    DROP,
    Part,
    base_chain,
    chain,
    choice,
    counter,
    device,
    differs,
    dnat,
    equal,
    field,
    goto,
    meta,
    rule,
    state,
    table,
    word,
)
from netfilter.render import FILTER, REFUSE, neighbours, noise, refusal
from netfilter.spec import BottleNet, BottleRules

JUDGE = "judge"
KEPT = "kept"  # a counter that is there as long as nobody removes our table
_DESTINATION_NAT = -100
_FIRST = -500  # before whatever others hang on the device
_NETDEV = "netdev agentmon"


def inner_closed(net: BottleNet) -> list[Part]:
    """The whole table from nothing, before its policy: the loopback device, nothing else."""
    ours = _ours(net)
    loop_in, loop_out = equal(meta("iifname"), device("lo")), equal(meta("oifname"), device("lo"))
    answers = [equal(meta("iifname"), ours), state("established", "related"), ACCEPT]
    commands = [
        table("add"),
        table("delete"),
        table("add"),
        counter("add", KEPT),
        *render_bottle.inner_sets(),
        *refusal(),
        chain("add", JUDGE),
        rule(JUDGE, goto(REFUSE)),
        base_chain("output", "filter", "output", FILTER, "drop"),
        base_chain("forward", "filter", "forward", FILTER, "drop"),
        base_chain("input", "filter", "input", FILTER, "drop"),
        rule("output", loop_out, ACCEPT),
        rule("output", differs(meta("oifname"), ours), neighbours(), ACCEPT),
        rule("output", noise(), DROP),
        *(rule("output", bad, goto(REFUSE)) for bad in _not_its_address(net)),
        rule("output", goto(JUDGE)),
        rule("forward", *answers),
        rule("forward", goto(JUDGE)),
        rule("input", loop_in, ACCEPT),
        rule("input", *answers),
        rule("input", differs(meta("iifname"), ours), neighbours(), ACCEPT),
    ]
    for name, hook, away in (("dns", "output", meta("oifname")), ("dns_in", "prerouting", meta("iifname"))):
        commands.append(base_chain(name, "nat", hook, _DESTINATION_NAT, "accept"))
        commands += _led(net, name, differs(away, device("lo") if hook == "output" else ours))
    return commands


def _ours(net: BottleNet) -> Part:
    assert net.foreign is not None
    return device(net.foreign.device)


def _not_its_address(net: BottleNet) -> list[Part]:
    four = differs(field("ip", "saddr"), word(str(net.addr4)))
    six = equal(meta("nfproto"), word("ipv6"))
    return [four, six if net.addr6 is None else differs(field("ip6", "saddr"), word(str(net.addr6)))]


def _led(net: BottleNet, name: str, which: Part) -> list[Part]:
    """DNS to anywhere but the loopback device, whose own resolver asks in turn."""
    assert net.foreign is not None
    transport = equal(meta("l4proto"), choice([word("tcp"), word("udp")]))
    port = equal(field("th", "dport"), Part("53", 53))
    return [
        rule(name, which, equal(meta("nfproto"), word(f"ipv{a.version}")), transport, port, dnat(a.version, str(a)))
        for a in net.foreign.dns
    ]


def inner_chain(net: BottleNet, rules: BottleRules, also: Iterable[int] = ()) -> list[Part]:
    """The judgement written anew."""
    first = rule(JUDGE, differs(meta("oifname"), _ours(net)), goto(REFUSE))
    return [chain("flush", JUDGE), first, *render_bottle.inner_judgement(JUDGE, rules, also)]


# ── on the host: the devices by which it used to reach the world ──


def shut(slot: int, devices: Iterable[tuple[int, str]]) -> list[Part]:
    """Nothing passes these (number, name) devices of the host in either direction, bridged frames included."""
    commands = [_netdev("add table")]
    for number, name in devices:
        for hook in ("ingress", "egress"):
            commands.append(_netdev("add chain", f"{hook}{slot}_{number}", hook, name))
    return commands


def opened(names: Iterable[str]) -> list[Part]:
    """Removes chains of `shut`."""
    return [_netdev("delete chain", name) for name in names]


def no_shut_table() -> list[Part]:
    return [_netdev("delete table")]


def _netdev(verb: str, name: str = "", hook: str = "", dev: str = "") -> Part:
    word_, kind = verb.split()
    place = {"family": "netdev", "table" if name else "name": "agentmon"}
    if not name:
        return Part(f"{verb} {_NETDEV}", {word_: {kind: place}})
    if not hook:
        return Part(f"{verb} {_NETDEV} {name}", {word_: {kind: {**place, "name": name}}})
    words = f'type filter hook {hook} device "{dev}" priority {_FIRST}; policy drop;'
    fields = {"type": "filter", "hook": hook, "prio": _FIRST, "dev": dev, "policy": "drop"}
    return Part(f"{verb} {_NETDEV} {name} {{ {words} }}", {word_: {kind: {**place, "name": name, **fields}}})


# ── whichever kind a bottle is of ──


def table_closed(net: BottleNet) -> list[Part]:
    """The table inside a bottle from nothing, before its policy."""
    return render_bottle.inner_closed() if net.foreign is None else inner_closed(net)


def table_judging(net: BottleNet, rules: BottleRules, also: Iterable[int] = ()) -> list[Part]:
    """The judgement inside a bottle written anew; `also`: epochs of flows that are about to be re-marked."""
    return render_bottle.inner_chain(rules, also) if net.foreign is None else inner_chain(net, rules, also)
