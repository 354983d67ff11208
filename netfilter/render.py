"""Specs as nft(8) text. Pure and deterministic: what stands in the golden files is what the kernel gets.

Host table `inet agentmon`:

    pre (prerouting −150) ─ iifname vmap @bottles ─▶ b<slot> | k<slot> (cut) | service      other interfaces: not ours
    b<slot>: spoof → current epoch → services → protected → deny → allow → refuse
    forward: nothing new from outside into a bottle        post: masquerade what leaves by others' interfaces

Verdicts of chain b<slot> set PASS_MARK, without which the routing backstop forwards nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from netfilter.spec import (
    EPOCH_MASK,
    PASS_MARK,
    BottleNet,
    BottleRules,
    Direct,
    Endpoint,
    HostSpec,
    Learned,
    Mode,
)

TABLE = "inet agentmon"
REASONS = ("spoof", "protected", "deny", "policy", "cut", "closed")
PROTECTED4 = ("0.0.0.0/8", "127.0.0.0/8", "168.63.129.16", "169.254.0.0/16", "224.0.0.0/3")
PROTECTED6 = ("::/127", "::ffff:0:0/96", "64:ff9b::/96", "fd00:ec2::254", "fe80::/10", "ff00::/8")
_KEEP = 0xFFFF_FFFF & ~EPOCH_MASK
_TYPES = {4: "ipv4_addr", 6: "ipv6_addr"}
_PASS = f"meta mark set meta mark | {PASS_MARK:#x}"
FAMILIES = (4, 6)


def _ip(version: int) -> str:
    return "ip" if version == 4 else "ip6"


def _key(version: int, direction: str = "daddr") -> str:
    return f"{_ip(version)} {direction} . meta l4proto . th dport"


def _type(version: int) -> str:
    return f"{_TYPES[version]} . inet_proto . inet_service"


def _ports(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}-{pair[1]}"


# ── host ─────────────────────────────────────────────────────────────────────


def host_table(host: HostSpec) -> str:
    """Table, maps, sets and base chains. Applying it to a table that is there changes nothing but the base chains'
    rules, in one step: bottles' elements and chains stay."""
    lines = [
        f"add table {TABLE}",
        f"add map {TABLE} bottles {{ type ifname : verdict; }}",
        f"add set {TABLE} ours {{ type ifname; }}",
        f"add set {TABLE} switched4 {{ type ifname; }}",
        f"add set {TABLE} switched6 {{ type ifname; }}",
        f"add counter {TABLE} service",
        f"add counter {TABLE} inbound",
    ]
    for v in FAMILIES:
        lines.append(f"add set {TABLE} dns{v} {{ type {_type(v)}; }}")
        lines.append(f"add set {TABLE} dial{v} {{ type {_type(v)}; flags timeout; }}")
    for chain, hook in (
        ("pre", "type filter hook prerouting priority -150; policy accept;"),
        ("forward", "type filter hook forward priority 0; policy accept;"),
        ("post", "type nat hook postrouting priority 100; policy accept;"),
        ("refuse", ""),
        ("service", ""),
    ):
        lines.append(f"add chain {TABLE} {chain} {{ {hook} }}" if hook else f"add chain {TABLE} {chain}")
        lines.append(f"flush chain {TABLE} {chain}")
    rules = {
        "pre": ["iifname vmap @bottles", "iifname @ours drop"],
        "refuse": ["meta l4proto tcp reject with tcp reset", "reject with icmpx type admin-prohibited"],
        "forward": [
            "oifname @ours iifname != @ours ct direction original counter name inbound drop",
            "meta nfproto ipv4 iifname @switched4 oifname != @ours drop",
            'meta nfproto ipv6 "all" @switched6 iifname != @ours oifname != @ours drop',
        ],
        "post": _masquerade(host),
        "service": _service(host),
    }
    rules["forward"].pop()  # see switch6_rule(): present only while we switched IPv6 forwarding on
    for chain, texts in rules.items():
        lines += [f"add rule {TABLE} {chain} {text}" for text in texts]
    lines.append(f'add element {TABLE} ours {{ "{host.service_veth}" }}')
    lines.append(f'add element {TABLE} bottles {{ "{host.service_veth}" : goto service }}')
    for v in FAMILIES:
        servers = [
            f"{address} . {proto} . {port}"
            for address, port in host.upstream_dns
            if address.version == v
            for proto in ("udp", "tcp")
        ]
        lines.append(f"flush set {TABLE} dns{v}")
        if servers:
            lines.append(f"add element {TABLE} dns{v} {{ {', '.join(servers)} }}")
    return "\n".join(lines)


def switch6_rule() -> str:
    """While we are the ones who made this host an IPv6 router, it routes for bottles only."""
    return f"add rule {TABLE} forward meta nfproto ipv6 iifname != @ours oifname != @ours drop"


def _masquerade(host: HostSpec) -> list[str]:
    pools = [p for p in (host.pool4, host.pool6) if p is not None]
    return [f"{_ip(p.version)} saddr {p} oifname != @ours masquerade" for p in pools]


def _service(host: HostSpec) -> list[str]:
    out = []
    for v in FAMILIES:
        own = [str(a) for a in host.service_addresses if a.version == v]
        if own:
            out.append(f"{_ip(v)} saddr != {{ {', '.join(own)} }} counter name service drop")
        else:
            out.append(f"meta nfproto ipv{v} counter name service drop")
    out += [f"ct direction reply {_PASS} accept", f"ct state related {_PASS} accept"]
    for v in FAMILIES:
        out += [f"{_key(v)} @{name}{v} {_PASS} accept" for name in ("dns", "dial")]
    return [*out, "counter name service goto refuse"]


def dial_elements(entries: Iterable[Learned]) -> str:
    """What the service namespace may dial."""
    return _learned_lines(entries, lambda v, _wide: f"dial{v}")


# ── one bottle, host side ────────────────────────────────────────────────────


def bottle_closed(net: BottleNet) -> str:
    """Chains, counters and sets of a new bottle, closed, and the element that sends its packets there."""
    s = net.slot
    lines = [f"add counter {TABLE} c{s}_{reason}" for reason in REASONS]
    lines += _set_lines(TABLE, s)
    lines += [f"add chain {TABLE} {kind}{s}" for kind in "bk"]
    for kind in "bk":
        lines += [f"add rule {TABLE} {kind}{s} {text}" for text in [*_spoof(net), f"counter name c{s}_closed drop"]]
    lines.append(f'add element {TABLE} ours {{ "{net.veth}" }}')
    lines.append(f'add element {TABLE} bottles {{ "{net.veth}" : goto b{s} }}')
    return "\n".join(lines)


def bottle_rules(net: BottleNet, rules: BottleRules, own: Sequence[str], *, fresh: bool) -> str:
    """Both chains of a bottle, its sets and its element, replaced in one transaction.

    :param own: the pool's networks: gateway and other bottles, never reachable but for services.
    :param fresh: a new epoch: learned elements are replaced too; else they stay.
    """
    s = net.slot
    lines = []
    for name, entries in (("n", rules.allow), ("d", rules.deny)):
        lines += _static_lines(TABLE, f"{name}%d_{s}", entries)
    if fresh:
        lines += [f"flush set {TABLE} {kind}{v}_{s}" for kind in "lr" for v in FAMILIES]
    if rules.learned:
        lines += learned_elements(s, rules.learned).splitlines()
    for kind, texts in (("b", _judge(net, rules, own)), ("k", _cut(net, rules))):
        lines.append(f"flush chain {TABLE} {kind}{s}")
        lines += [f"add rule {TABLE} {kind}{s} {text}" for text in [*_spoof(net), *texts]]
    return "\n".join([*lines, *_switch(net, "k" if rules.mode is Mode.CUT else "b")])


def _switch(net: BottleNet, kind: str) -> list[str]:
    element = f'{TABLE} bottles {{ "{net.veth}"'
    return [f"delete element {element} }}", f"add element {element} : goto {kind}{net.slot} }}"]


def bottle_cut(net: BottleNet) -> str:
    """The one element of a cut."""
    return "\n".join(_switch(net, "k"))


def bottle_deleted(slot: int, veth: str) -> list[str]:
    """Transactions that remove what is left of a bottle; each may find nothing to do."""
    element = f'delete element {TABLE} bottles {{ "{veth}" }}'
    ours = f'delete element {TABLE} ours {{ "{veth}" }}'
    chains = "\n".join(f"{verb} chain {TABLE} {kind}{slot}" for verb in ("flush", "delete") for kind in "bk")
    sets = "\n".join(f"delete set {TABLE} {kind}{v}_{slot}" for kind in "lrnd" for v in FAMILIES)
    counters = "\n".join(f"delete counter {TABLE} c{slot}_{reason}" for reason in REASONS)
    return [element, f"{chains}\n{sets}\n{counters}", ours]


def _spoof(net: BottleNet) -> list[str]:
    bad = f"counter name c{net.slot}_spoof drop"
    six = f"ip6 saddr != {net.addr6} {bad}" if net.addr6 is not None else f"meta nfproto ipv6 {bad}"
    return [f"ether saddr != {net.mac_bottle} {bad}", f"ip saddr != {net.addr4} {bad}", six]


def _accept(epoch: int) -> str:
    return f"ct mark set ct mark & {_KEEP:#x} | {epoch:#x} {_PASS} accept"


def _services(services: Iterable[Endpoint], verdict: str) -> list[str]:
    out = []
    for v in FAMILIES:
        found = [f"{e.address} . {e.proto} . {e.port}" for e in services if e.address.version == v]
        if found:
            out.append(f"{_key(v)} {{ {', '.join(sorted(found))} }} {verdict}")
    return out


def _judge(net: BottleNet, rules: BottleRules, own: Sequence[str]) -> list[str]:
    s, accept = net.slot, _accept(rules.epoch)
    if rules.mode is Mode.CLOSED:
        return [f"counter name c{s}_closed goto refuse"]
    out = [f"ct mark & {EPOCH_MASK:#x} == {rules.epoch:#x} {_PASS} accept"]
    out += _services(rules.services, accept)
    protected = f"counter name c{s}_protected goto refuse"
    for v, fixed in ((4, PROTECTED4), (6, PROTECTED6)):
        networks = [*fixed, *(n for n in own if (":" in n) == (v == 6))]
        out.append(f"{_ip(v)} daddr {{ {', '.join(networks)} }} {protected}")
    out.append(f"fib daddr type {{ local, broadcast, multicast }} {protected}")
    out += [f"{_key(v)} @d{v}_{s} counter name c{s}_deny goto refuse" for v in FAMILIES]
    if rules.mode is Mode.OBSERVE:
        return [*out, f"counter name c{s}_policy {accept}"]
    out += [f"{_key(v)} @{kind}{v}_{s} {accept}" for kind in "lrn" for v in FAMILIES]
    return [*out, f"counter name c{s}_policy goto refuse"]


def _cut(net: BottleNet, rules: BottleRules) -> list[str]:
    surviving = [e for e in rules.services if e.survives_cut]
    return [*_services(surviving, _accept(rules.epoch)), f"counter name c{net.slot}_cut goto refuse"]


# ── one bottle, inside ───────────────────────────────────────────────────────


def inner_closed() -> str:
    """The bottle's own table before its policy: its loopback device, nothing else."""
    lines = [
        f"add table {TABLE}",
        *_set_lines(TABLE, 0),
        f"add chain {TABLE} refuse",
        f"add chain {TABLE} output {{ type filter hook output priority 0; policy drop; }}",
        f"add chain {TABLE} input {{ type filter hook input priority 0; policy drop; }}",
        f"add rule {TABLE} refuse meta l4proto tcp reject with tcp reset",
        f"add rule {TABLE} refuse reject with icmpx type admin-prohibited",
        f'add rule {TABLE} input iifname "lo" accept',
        f"add rule {TABLE} input ct state established,related accept",
        f'add rule {TABLE} output oifname "lo" accept',
    ]
    return "\n".join(lines)


def inner_rules(rules: BottleRules, *, fresh: bool) -> str:
    """The bottle's own judgement of new flows; flows that live are the host side's business."""
    lines = []
    for name, entries in (("n", rules.allow), ("d", rules.deny)):
        lines += _static_lines(TABLE, f"{name}%d_0", entries)
    if fresh:
        lines += [f"flush set {TABLE} {kind}{v}_0" for kind in "lr" for v in FAMILIES]
    if rules.learned:
        lines += learned_elements(0, rules.learned).splitlines()
    out = ['oifname "lo" accept']
    if rules.mode is not Mode.CLOSED:
        out.append("ct state established,related accept")
        services = [e for e in rules.services if e.survives_cut or rules.mode is not Mode.CUT]
        out += _services(services, "accept")
        if rules.mode is not Mode.CUT:
            out += [f"{_key(v)} @d{v}_0 goto refuse" for v in FAMILIES]
            out += [f"{_key(v)} @{kind}{v}_0 accept" for kind in "lrn" for v in FAMILIES]
        if rules.mode is Mode.OBSERVE:
            out.append("accept")
    lines.append(f"flush chain {TABLE} output")
    lines += [f"add rule {TABLE} output {text}" for text in [*out, "goto refuse"]]
    return "\n".join(lines)


# ── sets ─────────────────────────────────────────────────────────────────────


def _set_lines(table: str, slot: int) -> list[str]:
    """l: learned, exact · r: learned port ranges · n: allowed networks · d: denied networks."""
    flags = {"l": "timeout", "r": "interval, timeout", "n": "interval", "d": "interval"}
    return [
        f"add set {table} {kind}{v}_{slot} {{ type {_type(v)}; flags {flags[kind]}; }}"
        for kind in "lrnd"
        for v in FAMILIES
    ]


def _static_lines(table: str, pattern: str, entries: Iterable[Direct]) -> list[str]:
    entries = tuple(entries)
    lines = []
    for v in FAMILIES:
        found = [
            f"{e.network} . {e.proto} . {_ports(pair)}" for e in entries if e.network.version == v for pair in e.ports
        ]
        lines.append(f"flush set {table} {pattern % v}")
        if found:
            lines.append(f"add element {table} {pattern % v} {{ {', '.join(found)} }}")
    return lines


def learned_elements(slot: int, entries: Iterable[Learned]) -> str:
    """Elements with their timeout written out: only that renews one that is there. Slot 0: the bottle's own table."""
    return _learned_lines(entries, lambda v, wide: f"{'r' if wide else 'l'}{v}_{slot}")


def _learned_lines(entries: Iterable[Learned], name: object) -> str:
    assert callable(name)
    by_set: dict[str, dict[str, int]] = {}
    for entry in entries:
        if entry.timeout_s <= 0:
            continue
        for pair in entry.ports:
            key = f"{entry.address} . {entry.proto} . {_ports(pair)}"
            elements = by_set.setdefault(name(entry.address.version, pair[0] != pair[1]), {})
            elements[key] = max(entry.timeout_s, elements.get(key, 0))
    return "\n".join(
        f"add element {TABLE} {where} {{ {', '.join(f'{key} timeout {t}s' for key, t in elements.items())} }}"
        for where, elements in by_set.items()
    )
