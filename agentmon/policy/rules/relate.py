"""How two rules relate: does one cover the other, do they speak of common traffic. Deny and allow are alike here."""

from __future__ import annotations

from agentmon.policy.rules import ports as port_sets
from agentmon.policy.rules.grammar import Rule, path_matches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def covers(wide: Rule, narrow: Rule) -> bool:
    """True where everything that `narrow` speaks of is also spoken of by `wide`."""
    if not _place_covers(wide, narrow):
        return False
    if wide.path is not None and (narrow.path is None or not path_matches(wide.path, narrow.path)):
        return False
    for proto, ports, _ in narrow.parts:
        left = ports
        for wide_proto, wide_ports, _ in wide.parts:
            left = port_sets.without(left, wide_ports) if wide_proto == proto else left
        if left:
            return False
    return True


def overlaps(a: Rule, b: Rule) -> bool:
    """True where some traffic may be spoken of by both; paths are taken to overlap."""
    if not (_place_covers(a, b) or _place_covers(b, a)):
        return False
    return any(
        proto == other and port_sets.without(ports, others) != ports
        for proto, ports, _ in a.parts
        for other, others, _ in b.parts
    )


def _place_covers(wide: Rule, narrow: Rule) -> bool:
    outer, inner = wide.network, narrow.network
    if outer is not None and inner is not None:  # networks are nested or apart
        return outer.version == inner.version and outer.prefixlen <= inner.prefixlen and outer.overlaps(inner)
    if outer is not None or inner is not None:
        return False
    if wide.wildcard:
        return narrow.host == wide.host or narrow.host.endswith(wide.host[1:])
    return wide.host == narrow.host


class Index:
    """Finds, without going through all of them, the rules whose host or network contains that of another."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._hosts: dict[str, list[Rule]] = {}
        self._networks: dict[tuple[int, int], dict[int, list[Rule]]] = {}
        for rule in rules:
            if rule.network is None:
                self._hosts.setdefault(rule.host, []).append(rule)
            else:
                key = rule.network.version, rule.network.prefixlen
                self._networks.setdefault(key, {}).setdefault(int(rule.network.network_address), []).append(rule)

    def around(self, rule: Rule) -> Iterator[Rule]:
        """Rules of the same place or a wider one; ports and protocols may still differ."""
        network = rule.network
        if network is None:
            for pattern in patterns_above(rule.host):
                yield from self._hosts.get(pattern, ())
            return
        number = int(network.network_address)
        for (version, length), rules in self._networks.items():
            if version == network.version and length <= network.prefixlen:
                shift = network.max_prefixlen - length
                yield from rules.get(number >> shift << shift, ())


def patterns_above(pattern: str) -> Iterator[str]:
    """A host or "*.name", and every wildcard that covers it, from the narrowest to the widest."""
    at = 1 if pattern.startswith("*.") else 0
    if not at:
        yield pattern
        at = pattern.find(".")
    while at >= 0:
        yield "*" + pattern[at:]
        at = pattern.find(".", at + 1)
