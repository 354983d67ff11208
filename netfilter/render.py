"""Specs as nftables commands. Pure and deterministic: what stands in the golden files is what the kernel gets.

Host table `inet agentmon`:

    pre (prerouting −150) ─ iifname vmap @bottles ─▶ b<slot> | service          other interfaces: not ours
    forward: answers to bottles, nothing new into them      post: masquerade what leaves the pool
    b<slot>: see render_bottle.py

Verdicts that pass set PASS_MARK, without which the routing backstop forwards nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network

from netfilter.batch import Batch, Members
from netfilter.elements import Change, Element, Timed, disjoint
from netfilter.language import (
    ACCEPT,
    DROP,
    MASQUERADE,
    PROHIBITED,
    RESET,
    TUPLE,
    Command,
    Part,
    add_map,
    add_set,
    address_type,
    base_chain,
    chain,
    choice,
    counted,
    counter,
    ct,
    device,
    differs,
    elements,
    equal,
    field,
    flush_set,
    goto,
    joined,
    leads_to,
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
    vmap,
    word,
)
from netfilter.spec import PASS_MARK, Direct, HostSpec, Network
from netfilter.verdict import PROTECTED4, PROTECTED6, own_networks

FAMILIES = (4, 6)
DIAL_MARK = 0x0200_0000  # conntrack mark bit: a connection that the service namespace was allowed to open
PASS = put(meta("mark"), union(meta("mark"), PASS_MARK))
BOTTLES, CUT, ROUTER, PROTECTED = "bottles", "cut", "router", "protected"
SWITCHED4, SWITCHED6, MARKED4 = "switched4", "switched6", "marked4"  # what forwarding.py changed
NOISE, NOT_AWAY = "noise", "notaway"
REFUSE, SERVICE, INBOUND = "refuse", "service", "inbound"
MARKED_PRE, FILTER, SOURCE_NAT = -150, 0, 100  # hook priorities
_NOISE = (
    "nd-router-solicit", "nd-neighbor-solicit", "nd-neighbor-advert", "mld-listener-report", "mld2-listener-report",
)  # fmt: skip


_ICMP6_TYPE = Part("icmpv6 type", {"payload": {"protocol": "icmpv6", "field": "type"}})


def ip(version: int) -> str:
    return "ip" if version == 4 else "ip6"


def target(version: int) -> Part:
    """Key of the destination sets. No dependency on a protocol is needed: the protocol is part of the key."""
    return joined(field(ip(version), "daddr"), meta("l4proto"), field("th", "dport"))


def noise() -> Part:
    """What an IPv6 stack says by itself. Neighbours are permanent, so nobody needs to hear it; not an attack either."""
    return equal(_ICMP6_TYPE, choice(map(word, _NOISE)))


def neighbours() -> Part:
    """What IPv6 finds a neighbour's hardware address with, as ARP does for IPv4 past these tables."""
    return equal(_ICMP6_TYPE, choice(map(word, ("nd-neighbor-solicit", "nd-neighbor-advert"))))


def shared_noise() -> Part:
    """The same by the host table's own set. nf_tables finds sets by walking a list of all of a table's, so bottles
    share what is the same for all."""
    return equal(_ICMP6_TYPE, named(NOISE))


def not_away() -> Part:
    """Is the destination one of the host's own, a broadcast or a multicast address?"""
    return equal(address_type(), named(NOT_AWAY))


def refusal() -> list[Part]:
    """The chain that says no at once."""
    return [
        chain("add", REFUSE),
        chain("flush", REFUSE),
        rule(REFUSE, equal(meta("l4proto"), word("tcp")), RESET),
        rule(REFUSE, PROHIBITED),
    ]


def host_table(host: HostSpec) -> list[Command]:
    """Table, maps, sets and base chains. Where they are already, only the base chains' rules are replaced, in one
    step: chains and elements of bottles stay."""
    commands: list[Command] = [
        table("add"),
        add_map(BOTTLES, "ifname"),
        add_map(ROUTER, "nf_proto"),
        *(add_set(name, ("ifname",)) for name in (CUT, SWITCHED4, SWITCHED6, MARKED4)),
        *(counter("add", name) for name in (SERVICE, INBOUND)),
    ]
    for name, kind, words in (
        (NOISE, "icmpv6_type", _NOISE),
        (NOT_AWAY, "fib_addrtype", ("local", "broadcast", "multicast")),
    ):
        commands += [add_set(name, (kind,)), *elements("add", name, map(word, words))]
    for v in FAMILIES:
        commands += [add_set(f"dns{v}", TUPLE[v]), add_set(f"dial{v}", TUPLE[v], "timeout")]
        commands.append(add_set(f"span{v}", TUPLE[v], "interval", "timeout"))
        commands += [add_set(f"{PROTECTED}{v}", TUPLE[v][:1], "interval"), flush_set(f"{PROTECTED}{v}")]
        nets = [n for n in (*PROTECTED4, *PROTECTED6, *own_networks(host)) if n.version == v]
        commands += elements("add", f"{PROTECTED}{v}", map(network, nets))
    commands += refusal()
    commands += [
        base_chain("pre", "filter", "prerouting", MARKED_PRE, "accept"),
        base_chain("forward", "filter", "forward", FILTER, "accept"),
        base_chain("post", "nat", "postrouting", SOURCE_NAT, "accept"),
        chain("add", SERVICE),
        *(chain("flush", name) for name in ("pre", "forward", "post", SERVICE)),
        rule("pre", vmap(meta("iifname"), BOTTLES)),
        *_answers(host),
        *_forward(host),
        *_masquerade(host),
        *_service(host),
        *elements("add", BOTTLES, [leads_to(device(host.service_veth), goto(SERVICE))]),
    ]
    for v in FAMILIES:
        servers = [
            Direct(ip_network(address), proto, ((port, port),))
            for address, port in host.upstream_dns
            if address.version == v
            for proto in ("udp", "tcp")
        ]
        servers += [Direct(ip_network(a), "tcp", ((port, port),)) for a, port in host.service_dials if a.version == v]
        commands += [flush_set(f"dns{v}"), *exact("add", f"dns{v}", disjoint(servers))]
    return commands


def _answers(host: HostSpec) -> list[Part]:
    """Reverse-path checks (rp_filter, with src_valid_mark) ask for the way back with the answer's own mark: without
    it the backstop would say that there is none."""
    reply, commands = equal(ct("direction"), word("reply")), []
    for pool in own_networks(host):
        name = ip(pool.version)
        origin = Part(f"ct original {name} saddr", {"ct": {"key": f"{name} saddr", "dir": "original"}})
        commands.append(rule("pre", reply, equal(origin, network(pool)), PASS))
    return commands


def _forward(host: HostSpec) -> list[Part]:
    commands = [rule("forward", equal(masked(meta("mark"), PASS_MARK), number(PASS_MARK)), ACCEPT)]
    answer = (equal(ct("direction"), word("reply")), state("established", "related"), ACCEPT)
    for pool in own_networks(host):
        commands += [rule("forward", _to(pool), *answer), rule("forward", _to(pool), counted(INBOUND), DROP)]
    closed = equal(meta("iifname"), named(SWITCHED4))
    commands.append(rule("forward", equal(meta("nfproto"), word("ipv4")), closed, DROP))
    return [*commands, rule("forward", vmap(meta("nfproto"), ROUTER))]


def _to(pool: Network) -> Part:
    return equal(field(ip(pool.version), "daddr"), network(pool))


def _masquerade(host: HostSpec) -> list[Part]:
    commands = []
    for pool in own_networks(host):
        source, away = field(ip(pool.version), "saddr"), field(ip(pool.version), "daddr")
        commands.append(rule("post", equal(source, network(pool)), differs(away, network(pool)), MASQUERADE))
    return commands


def _service(host: HostSpec) -> list[Part]:
    """The service namespace: answers to bottles, upstream DNS, vetted upstreams, and what it has opened so."""
    commands = [rule(SERVICE, noise(), DROP)]
    for v in FAMILIES:
        own = [word(str(a)) for a in host.service_addresses if a.version == v]
        bad = differs(field(ip(v), "saddr"), choice(own)) if own else equal(meta("nfproto"), word(f"ipv{v}"))
        commands.append(rule(SERVICE, bad, counted(SERVICE), DROP))
    commands += [
        rule(SERVICE, equal(ct("direction"), word("reply")), PASS, ACCEPT),
        rule(SERVICE, state("related"), PASS, ACCEPT),
        rule(SERVICE, equal(masked(ct("mark"), DIAL_MARK), number(DIAL_MARK)), PASS, ACCEPT),
    ]
    opened = put(ct("mark"), union(ct("mark"), DIAL_MARK))
    for v in FAMILIES:
        for name in ("dns", "dial", "span"):
            commands.append(rule(SERVICE, equal(target(v), named(f"{name}{v}")), opened, PASS, ACCEPT))
    return [*commands, rule(SERVICE, counted(SERVICE), goto(REFUSE))]


def router6(verb: str) -> list[Part]:
    """While we are the ones who made this host an IPv6 router, it routes for bottles only."""
    return elements(verb, ROUTER, [leads_to(word("ipv6"), DROP) if verb == "add" else word("ipv6")])


# ── elements ──


def exact(verb: str, set_name: str, members: Sequence[Element]) -> list[Command]:
    """Into or out of a hash set; nothing for no elements."""
    return [Members(verb, set_name, Batch(members), False)] if members else []


def ranged(verb: str, set_name: str, members: Sequence[Element]) -> list[Command]:
    """Into or out of an interval set; nothing for no elements."""
    return [Members(verb, set_name, Batch(members), True)] if members else []


def renewed(set_name: str, timed: Sequence[Timed]) -> list[Command]:
    """Exact elements with these times from now, also where they are there already.

    Added, deleted, added again: an `add` alone leaves the time as it was before v6.12 ("netfilter: nf_tables:
    set element timeout update support").
    """
    if not timed:
        return []
    bare = Batch([t.element for t in timed])
    steps = (("add", bare), ("delete", bare), ("add", Batch.timed(timed)))
    return [Members(verb, set_name, batch, False) for verb, batch in steps]


def renewals(change: Change, name: str) -> list[Command]:
    """The exact elements of a change; `name` is the sets' name with %d for the family."""
    return [
        command for v in FAMILIES for command in renewed(name % v, [t for t in change.exact if t.element.version == v])
    ]


def pieces(change: Change, name: str) -> list[Command]:
    """The pieces of learned port ranges out and in.

    A piece that is to go may have expired meanwhile, and deleting what is not there fails: it is added first.
    """
    commands: list[Command] = []
    for v in FAMILIES:
        gone = [e for e in change.remove if e.version == v]
        new = [t for t in change.add if t.element.version == v]
        commands += [*ranged("add", name % v, gone), *ranged("delete", name % v, gone)]
        commands += [Members("add", name % v, Batch.timed(new), True)] if new else []
    return commands
