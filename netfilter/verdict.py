"""What a bottle's rules say about one destination: the same answer as the chain gives, worked out in pure code.

For live flows when an epoch changes, for `policy explain`-like questions, and for the fake.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network

from netfilter.spec import Address, BottleRules, Direct, HostSpec, Learned, Mode, Network

PROTECTED4 = tuple(
    IPv4Network(n) for n in ("0.0.0.0/8", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16", "224.0.0.0/3")
)
PROTECTED6 = tuple(
    IPv6Network(n) for n in ("::/127", "::ffff:0:0/96", "64:ff9b::/96", "fd00:ec2::254/128", "fe80::/10", "ff00::/8")
)
PROTOCOLS = {6: "tcp", 17: "udp"}
Ports = tuple[tuple[int, int], ...]


class Verdict(Enum):
    """Why a packet passes, or why not: the last five are the reasons that `refusals` counts."""

    SURVIVING = "surviving"  # a service that survives a cut
    SERVICE = "service"
    ALLOW = "allow"
    LEARNED = "learned"
    OBSERVED = "observed"  # refused but for OBSERVE
    CLOSED = "closed"
    CUT = "cut"
    PROTECTED = "protected"
    DENY = "deny"
    POLICY = "policy"

    @property
    def passes(self) -> bool:
        return self in _PASSING


_PASSING = frozenset({Verdict.SURVIVING, Verdict.SERVICE, Verdict.ALLOW, Verdict.LEARNED, Verdict.OBSERVED})


@dataclass(frozen=True, slots=True)
class Flow:
    """One connection by its original direction. `proto` is the number, ports 0 where the protocol has none."""

    source: Address
    destination: Address
    proto: int
    source_port: int
    destination_port: int
    mark: int = 0


def own_networks(host: HostSpec) -> tuple[Network, ...]:
    """The pools: gateway, services and other bottles. Only listed services of them are reachable."""
    return tuple(pool for pool in (host.pool4, host.pool6) if pool is not None)


class Judge:
    """The rules of one bottle, indexed. A destination costs as many look-ups as there are prefix lengths.

    :param own: the pools (`own_networks`).
    """

    def __init__(self, rules: BottleRules, own: Iterable[Network] = ()) -> None:
        self.rules = rules
        self._own = tuple(own)
        self._services = {(e.address, e.proto, e.port): e for e in rules.services}

    @cached_property
    def _allow(self) -> _Index:
        return _Index(self.rules.allow)

    @cached_property
    def _deny(self) -> _Index:
        return _Index(self.rules.deny)

    @cached_property
    def _protected(self) -> _Index:
        every: Ports = ((0, 65535),)
        nets = (*PROTECTED4, *PROTECTED6, *self._own)
        return _Index(Direct(n, p, every) for n in nets for p in ("tcp", "udp"))

    def verdict(self, destination: Address, proto: int, port: int, learned: Iterable[Learned] | None = None) -> Verdict:
        """On a new flow. `learned` are the addresses in force; by default all of the rules' own, expired ones too."""
        mode, name = self.rules.mode, PROTOCOLS.get(proto, "")
        if mode is Mode.CLOSED:
            return Verdict.CLOSED
        service = self._services.get((destination, name, port))  # type: ignore[arg-type]
        if service is not None and service.survives_cut:
            return Verdict.SURVIVING
        if mode is Mode.CUT:
            return Verdict.CUT
        if service is not None:
            return Verdict.SERVICE
        return self._open(destination, name, port, self.rules.learned if learned is None else learned)

    def _open(self, destination: Address, name: str, port: int, learned: Iterable[Learned]) -> Verdict:
        if name and self._protected.has(destination, name, port):
            return Verdict.PROTECTED
        if self._deny.has(destination, name, port):
            return Verdict.DENY
        if self._allow.has(destination, name, port):
            return Verdict.ALLOW
        for e in learned:
            if e.address == destination and e.proto == name and _within(port, e.ports):
                return Verdict.LEARNED
        return Verdict.OBSERVED if self.rules.mode is Mode.OBSERVE and name else Verdict.POLICY


class _Index:
    """Direct rules by protocol, prefix length and network number."""

    def __init__(self, entries: Iterable[Direct]) -> None:
        self._by: dict[tuple[int, str], dict[int, dict[int, list[Ports]]]] = {}
        for e in entries:
            lengths = self._by.setdefault((e.network.version, e.proto), {})
            networks = lengths.setdefault(e.network.prefixlen, {})
            networks.setdefault(int(e.network.network_address), []).append(e.ports)

    def has(self, address: Address, proto: str, port: int) -> bool:
        number, bits = int(address), address.max_prefixlen
        for length, networks in self._by.get((address.version, proto), {}).items():
            found = networks.get(number >> (bits - length) << (bits - length))
            if found is not None and any(_within(port, ports) for ports in found):
                return True
        return False


def _within(port: int, ports: Ports) -> bool:
    return any(low <= port <= high for low, high in ports)
