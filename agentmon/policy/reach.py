"""What two policies let a bottle reach, place by place and port by port: compared by meaning, not by text. Pure.

    rules of both ─▶ places (hosts, "*." for all others below, networks without the narrower ones) ─▶ segments of ports
    each segment is decided once by either policy; where the answers differ, that is a Change

A place stands for all that no narrower place of either policy speaks of, so that one name or address of it answers for
all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses
from typing import NamedTuple

from agentmon.policy.rules import METADATA, NEVER_ANSWERED, Decision, Index, PolicySet, Rule, parse_rule, stripped
from agentmon.policy.rules.ports import Ports, merged, text_of, without
from agentmon.policy.rules.relate import patterns_above

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address
PROTOS = ("tcp", "udp")
_ANY_LABEL = "any-other-name-xq7"  # no rule is expected to name it
_TRIES = 64  # addresses looked at for one that is not protected for its form
_END = 65536


class Change(NamedTuple):
    """`before` and `after`: direct | name | inspected, or "" where it is not reachable."""

    place: str
    proto: str
    ports: Ports
    before: str
    after: str

    @property
    def shown(self) -> dict[str, str]:
        ports = "all" if self.ports == ((1, 65535),) else text_of(self.ports)
        return {"place": self.place, "proto": self.proto, "ports": ports, "before": self.before, "after": self.after}


class _Place(NamedTuple):
    """`stands_for`: the name or address that is asked for. `above`: the places around it, the nearest first."""

    text: str
    stands_for: str | Address
    rule: Rule
    above: tuple[str, ...]


def changes(before: PolicySet, after: PolicySet) -> list[Change]:
    """In the order of hosts (by their labels from the right), then of networks; without those that a wider place's
    change says already."""
    rules = (*before.rules, *after.rules)
    index = Index(rules)
    found: dict[str, list[Change]] = {}
    for place in (*_hosts(rules, before.inspected | after.inspected), *_networks(rules)):
        mine = [c for proto in PROTOS for c in _at(place, proto, index, before, after)]
        found[place.text] = [c for c in mine if not _implied(c, place, found)]
    return [change for of_place in found.values() for change in of_place]


def private_changes(before: PolicySet, after: PolicySet) -> tuple[list[str], list[str]]:
    """Names that both allow: (those that may from now on lead to private addresses, those that no longer may)."""
    opened: list[str] = []
    closed: list[str] = []
    for host in sorted({r.host for r in (*before.rules, *after.rules) if r.host and not r.deny and not r.wildcard}):
        if before.resolves(host).allowed and after.resolves(host).allowed:
            was, will = before.names_exactly(host), after.names_exactly(host)
            if was != will:
                (opened if will else closed).append(host)
    return opened, closed


def _implied(change: Change, place: _Place, found: dict[str, list[Change]]) -> bool:
    return any(
        (wider.proto, wider.before, wider.after) == (change.proto, change.before, change.after)
        and not without(change.ports, wider.ports)
        for above in place.above
        for wider in found.get(above, ())
    )


def _at(place: _Place, proto: str, index: Index, before: PolicySet, after: PolicySet) -> list[Change]:
    edges = {1, 80, 81, 443, 444}
    for rule in index.around(place.rule):
        edges.update(e for _, ports, _ in rule.parts for lo, hi in ports for e in (lo, hi + 1))
    starts = sorted(edge for edge in edges if edge < _END)
    by_answer: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for lo, end in zip(starts, (*starts[1:], _END), strict=True):
        answer = _depth(before, place, lo, proto), _depth(after, place, lo, proto)
        if answer[0] != answer[1]:
            by_answer.setdefault(answer, []).append((lo, end - 1))
    return [Change(place.text, proto, merged(ports), *answer) for answer, ports in sorted(by_answer.items())]


def _depth(policies: PolicySet, place: _Place, port: int, proto: str) -> str:
    said: Decision
    if isinstance(place.stands_for, str):
        said = policies.decide_name(place.stands_for, port, proto)
    else:
        said = policies.decide_address(place.stands_for, port, proto)
    return said.depth.name.lower() if said.depth is not None else ""


def _hosts(rules: Iterable[Rule], inspected: Iterable[str]) -> Iterator[_Place]:
    """Every pattern, the wider ones first. A provider's may have its "*" anywhere."""
    names = {pattern: pattern.replace("*", _ANY_LABEL) for pattern in inspected}
    names |= {rule.host: rule.host.replace("*", _ANY_LABEL) for rule in rules if rule.host}
    for pattern in sorted(names, key=lambda p: [(label != "*", label) for label in p.split(".")[::-1]]):
        name = names[pattern]
        above = tuple(wider for wider in patterns_above(name) if wider not in {name, pattern})
        yield _Place(pattern, name, parse_rule(f"!{name}"), above)


def _networks(rules: Iterable[Rule]) -> Iterator[_Place]:
    """Every network that is not filled up by narrower ones, the wider ones first."""
    by_network = {rule.network: rule for rule in rules if rule.network is not None}
    ordered = sorted(by_network, key=lambda n: (n.version, int(n.network_address), n.prefixlen))
    inner: dict[Network, list[Network]] = {}
    around: list[Network] = []
    above: dict[Network, tuple[str, ...]] = {}
    for network in ordered:
        while around and not _contains(around[-1], network):
            around.pop()
        if around:
            inner.setdefault(around[-1], []).append(network)
        above[network] = tuple(str(n) for n in reversed(around))
        around.append(network)
    for network in ordered:
        address = _free(network, inner.get(network, []))
        if address is not None:
            yield _Place(str(network), address, by_network[network], above[network])


def _contains(outer: Network, network: Network) -> bool:
    return outer.version == network.version and network.network_address in outer


def _free(network: Network, inner: list[Network]) -> Address | None:
    """An address of `network` that lies in none of `inner` and is not protected; None: there is none."""
    closed = [p for _, networks in NEVER_ANSWERED for p in networks] + list(METADATA)
    taken: list[Network] = [*inner, *(p for p in closed if p.version == network.version and p.overlaps(network))]
    at, last = int(network.network_address), int(network.broadcast_address)
    make = type(network.network_address)
    for gap_end in (*collapse_addresses(taken), None):  # type: ignore[type-var]
        end = last if gap_end is None else int(gap_end.network_address) - 1
        for number in range(at, min(end, at + _TRIES) + 1):
            if not stripped(make(number)):
                return make(number)
        if gap_end is not None:
            at = int(gap_end.broadcast_address) + 1
    return None
