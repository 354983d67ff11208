"""Policy meets kernel, here and nowhere else: a bottle's policy as netfilter rules, BPF entries and services' view.

    EffectivePolicy + Place ─▶ compile_bottle ─▶ Compiled(rules, bpf, view)
    a direct name's addresses ─▶ learned ─▶ elements for both

Pure: the same input gives the same values, on any host. Name and inspected rules compile to nothing in the kernel: the
bottle reaches resolver, relay and proxy, and they hold the names. Direct rules compile to disjoint entries: networks
are nested or apart, so where one lies inside another it carries only the ports that the wider one does not.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal, NamedTuple, cast

import ebpf.spec
import netfilter.spec
from agentmon import wire
from agentmon.addresses import Pair, Pool
from agentmon.policy import sockets
from agentmon.policy.change import with_rule
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.rules import PolicySet, Rule, protected_in
from agentmon.policy.rules.ports import ALL, Ports, merged, without

__all__ = ["Compiled", "Place", "compile_bottle", "learned", "policy_set", "view", "with_rule"]

_TRANSPORTS: tuple[Literal["tcp", "udp"], ...] = ("udp", "tcp")
Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Proto = Literal["tcp", "udp"]


@dataclass(frozen=True, slots=True)
class Place:
    """What a running bottle has that its policy has not. `netns_cookie` 0: not checked."""

    slot: int
    net: netfilter.spec.BottleNet
    pool: Pool
    cgroup_id: int
    worker: int = 0  # the proxy worker that serves it
    netns_cookie: int = 0
    policy_id: int = 1
    unix: tuple[str, ...] | None = None  # places whose unix sockets it may use; None: the kernel cannot hold it to them
    unix_given: tuple[str, ...] = ()  # of these, the host's own
    unix_closed: tuple[str, ...] = ()
    nameservers: tuple[Address, ...] = ()  # where an attached container asks; its packets are led to our resolver


@dataclass(frozen=True, slots=True)
class Compiled:
    """One policy for every layer."""

    rules: netfilter.spec.BottleRules
    bpf: ebpf.spec.BottlePolicy
    view: wire.BottleView


class _Service(NamedTuple):
    pair: Pair
    proto: Proto
    port: int
    survives_cut: bool
    unvouched: bool = False


class _Wanted(NamedTuple):
    """One network of one rule, before overlaps are resolved. `rule` indexes the policy's rules."""

    network: Network
    proto: Proto
    ports: Ports
    rule: int


def compile_bottle(
    policy: EffectivePolicy, place: Place, epoch: int, mode: netfilter.spec.Mode | str, *, run: str = ""
) -> Compiled:
    """What every layer is told about a bottle.

    Rule indices of BPF entries are those of `view.rules`; an index past the end is agentmon's own protection.

    :param mode: closed | enforce | observe | cut.
    """
    mode = netfilter.spec.Mode(mode)
    services = _services(place)
    allow = _disjoint(_wanted(enumerate(policy.rules), deny=False))
    deny = _disjoint((*_wanted(enumerate(policy.rules), deny=True), *_protections(policy, allow)))
    rules = netfilter.spec.BottleRules(
        slot=place.slot,
        epoch=epoch,
        mode=mode,
        services=tuple(netfilter.spec.Endpoint(a, s.proto, s.port, s.survives_cut) for s, a in services),
        allow=tuple(netfilter.spec.Direct(w.network, w.proto, w.ports) for w in allow),
        deny=tuple(netfilter.spec.Direct(w.network, w.proto, w.ports) for w in deny),
    )
    bpf = ebpf.spec.BottlePolicy(
        slot=place.slot,
        cgroup_id=place.cgroup_id,
        policy_id=place.policy_id,
        epoch=epoch,
        mode=ebpf.spec.Mode[mode.name],
        services=(
            *(ebpf.spec.Endpoint(a, s.proto, s.port, s.survives_cut, s.unvouched) for s, a in services),
            *(ebpf.spec.Endpoint(a, proto, 53, True, True) for a in place.nameservers for proto in _TRANSPORTS),
        ),
        allow=tuple(ebpf.spec.Entry(w.network, w.proto, w.ports, w.rule) for w in allow),
        deny=tuple(ebpf.spec.Entry(w.network, w.proto, w.ports, w.rule) for w in deny),
        netns_cookie=place.netns_cookie,
        guard=ebpf.spec.Guard[policy.guard.upper()],
        listen=None if policy.listen is None else tuple(ebpf.spec.Listen(*sockets.ports(t)) for t in policy.listen),
        unix=place.unix,
        unix_given=place.unix_given,
        unix_closed=place.unix_closed,
    )
    return Compiled(rules, bpf, view(policy, place, epoch, mode, run=run))


def view(policy: EffectivePolicy, place: Place, epoch: int, mode: netfilter.spec.Mode, *, run: str) -> wire.BottleView:
    """What resolver, relay and proxy are told."""
    proxy = place.pool.proxy(place.worker)
    return wire.BottleView(
        slot=place.slot,
        bottle=policy.bottle,
        run=run,
        addr4=str(place.net.addr4),
        addr6="" if place.net.addr6 is None else str(place.net.addr6),
        epoch=epoch,
        mode=mode.value,
        rules=tuple(rule.text for rule in policy.rules),
        inspected=policy.inspected,
        routes=policy.routes,
        relay=tuple(str(a) for a in _in_families(place, place.pool.relay)),
        proxy=tuple(str(a) for a in _in_families(place, proxy)),
        agent=policy.agent,
        log=policy.log,
        unreadable=policy.unreadable,
        limits=dict(sorted(policy.limits.items())),
    )


def policy_set(policy: EffectivePolicy) -> PolicySet:
    """The policy's rules, ready to be asked: what resolver, relay and proxy build from their view."""
    return PolicySet(policy.rules, policy.inspected)


def learned(
    policies: PolicySet,
    name: str,
    addresses: Iterable[Address],
    ttl_s: int,
    *,
    floor_s: int = 0,
    held: Container[Address] = (),
) -> tuple[list[netfilter.spec.Learned], list[ebpf.spec.Entry]]:
    """The elements that open a direct name's addresses for max(ttl_s, floor_s) seconds; none for any other name.

    :param held: addresses that a name or inspected rule also resolves to: never opened as direct (DESIGN 3).
    """
    parts = policies.direct_parts(name)
    by_rule, by_proto = _of_one_address(tuple((policies.number(rule), proto, ports) for rule, proto, ports in parts))
    timeout_s = max(ttl_s, floor_s)
    nft, bpf = [], []
    for address in dict.fromkeys(addresses):
        if address in held:
            continue
        single = _single(address)
        bpf += [ebpf.spec.Entry(single, proto, ports, rule, timeout_s) for rule, proto, ports in by_rule]
        nft += [netfilter.spec.Learned(address, proto, ports, timeout_s) for proto, ports in by_proto]
    return nft, bpf


_Parts = tuple[tuple[int, str, Ports], ...]  # (number of the rule, protocol, ports)


@lru_cache(maxsize=1024)
def _of_one_address(parts: _Parts) -> tuple[tuple[tuple[int, Proto, Ports], ...], tuple[tuple[Proto, Ports], ...]]:
    """What rules open of any one address, without overlaps: by rule, and by protocol. Names of a wildcard share it."""
    any_ = IPv4Network("0.0.0.0/32")
    disjoint = _disjoint(_Wanted(any_, cast(Proto, proto), ports, number) for number, proto, ports in parts)
    by_proto: dict[Proto, list[tuple[int, int]]] = {}
    for entry in disjoint:
        by_proto.setdefault(entry.proto, []).extend(entry.ports)
    by_rule = tuple((entry.rule, entry.proto, entry.ports) for entry in disjoint)
    return by_rule, tuple((proto, merged(pairs)) for proto, pairs in by_proto.items())


def _single(address: Address) -> IPv4Network | IPv6Network:
    """The network of one address; ip_network() would print it and read it again."""
    if isinstance(address, IPv4Address):
        return IPv4Network((int(address), 32))
    return IPv6Network((int(address), 128))


def _services(place: Place) -> list[tuple[_Service, Address]]:
    pool, proxy = place.pool, place.pool.proxy(place.worker)
    services = (
        _Service(pool.resolver, "udp", 53, True, unvouched=True),  # libc asks it, past any guard
        _Service(pool.resolver, "tcp", 53, True, unvouched=True),
        _Service(pool.relay, "tcp", 443, False),
        _Service(pool.relay, "tcp", 80, False),  # plain HTTP to a name rule: the first proxy listens there
        _Service(proxy, "tcp", 443, True),
        _Service(proxy, "tcp", 80, True),
    )
    return [(service, address) for service in services for address in _in_families(place, service.pair)]


def _in_families(place: Place, pair: Pair) -> tuple[Address, ...]:
    return pair.all() if place.net.addr6 is not None else (pair.v4,)


def _wanted(rules: Iterable[tuple[int, Rule]], *, deny: bool) -> list[_Wanted]:
    return [
        _Wanted(rule.network, cast(Proto, proto), ports, number)
        for number, rule in rules
        if rule.network is not None and rule.deny is deny
        for proto, ports, _ in rule.parts
    ]


def _protections(policy: EffectivePolicy, allow: Sequence[_Wanted]) -> list[_Wanted]:
    """Denies of protected addresses that an accepted, wider network covers (a metadata service in 100.64.0.0/10)."""
    networks = dict.fromkeys(p for w in allow for p in protected_in(w.network))
    protos: tuple[Proto, ...] = ("tcp", "udp")
    return [_Wanted(network, proto, ALL, len(policy.rules)) for network in networks for proto in protos]


def _disjoint(wanted: Iterable[_Wanted]) -> list[_Wanted]:
    """The same traffic without overlaps; where two rules agree, the wider network keeps it, then the earlier rule."""
    taken: dict[tuple[Proto, int], dict[int, dict[int, Ports]]] = {}  # (proto, version) → prefix length → network
    out = []
    for entry in sorted(wanted, key=lambda w: (w.network.version, w.network.prefixlen, w.rule)):
        by_length = taken.setdefault((entry.proto, entry.network.version), {})
        number, width = int(entry.network.network_address), entry.network.max_prefixlen
        left = entry.ports
        for length, networks in by_length.items():
            shift = width - length
            covered = networks.get(number >> shift << shift)
            left = left if covered is None else without(left, covered)
        if not left:
            continue
        same = by_length.setdefault(entry.network.prefixlen, {})
        same[number] = merged([*same.get(number, ()), *left])
        out.append(entry._replace(ports=left))
    return sorted(out, key=_order)


def _order(w: _Wanted) -> tuple[int, int, int, int, str]:
    return w.rule, w.network.version, int(w.network.network_address), w.network.prefixlen, w.proto
