"""Set elements: static rules made disjoint, learned port ranges made disjoint over time. Pure.

A concatenated interval set (nft_set_pipapo) refuses an element that overlaps one it holds, so what
people write (10.0.0.0/8 and 10.1.0.0/16 on the same port) must be taken apart before.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from netfilter.spec import Address, Direct, Learned, Network, Proto

_NS = 1_000_000_000
WIDTH = {4: 32, 6: 128}


class Element(NamedTuple):
    """Key of `addr . inet_proto . inet_service` sets, in numbers: 100,000 of them are compared and sorted in C.

    A whole address (`length` 32 or 128) with low == high is exact.
    """

    version: int
    number: int  # of the network's first address
    length: int
    proto: Proto
    low: int
    high: int

    @classmethod
    def of(cls, network: Network, proto: Proto, low: int, high: int) -> Element:
        return cls(network.version, int(network.network_address), network.prefixlen, proto, low, high)

    @classmethod
    def at(cls, address: Address, proto: Proto, low: int, high: int) -> Element:
        return cls(address.version, int(address), WIDTH[address.version], proto, low, high)

    @property
    def network(self) -> Network:
        make = IPv4Network if self.version == 4 else IPv6Network
        return make((self.number, self.length))

    @property
    def exact(self) -> bool:
        return self.low == self.high and self.length == WIDTH[self.version]


Ranges = list[tuple[int, int]]


def disjoint(entries: Iterable[Direct]) -> list[Element]:
    """The same destinations and ports as `entries`, no two elements overlapping, in a fixed order."""
    groups: dict[tuple[Proto, int, int], dict[int, tuple[tuple[int, int], ...]]] = {}
    for e in entries:
        network = e.network
        group = groups.setdefault((e.proto, network.version, network.prefixlen), {})
        number = int(network.network_address)
        group[number] = group[number] + e.ports if number in group else e.ports
    found: list[Element] = []
    plain: dict[tuple[tuple[int, int], ...], Ranges] = {}
    for (proto, version, length), networks in groups.items():
        outer = [
            (~((1 << (WIDTH[version] - wider)) - 1), wide)
            for (p, v, wider), wide in groups.items()
            if p == proto and v == version and wider < length
        ]
        for number, ports in networks.items():
            own = plain.get(ports)
            if own is None:
                own = plain[ports] = merged(ports)
            for mask, wide in outer:
                taken = wide.get(number & mask)
                own = own if taken is None else minus(own, merged(taken))
            for low, high in own:
                found.append(Element(version, number, length, proto, low, high))
    found.sort()
    return found


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Sorted, neither overlapping nor touching."""
    out: Ranges = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return out


def minus(ranges: Ranges, taken: Ranges) -> Ranges:
    """`ranges` without the ports in `taken`; both merged."""
    for low, high in taken:
        rest = []
        for a, b in ranges:
            if b < low or a > high:
                rest.append((a, b))
                continue
            rest += [(a, low - 1)] if a < low else []
            rest += [(high + 1, b)] if b > high else []
        ranges = rest
    return ranges


class Timed(NamedTuple):
    """An element and for how long it is to stay."""

    element: Element
    timeout_s: int


@dataclass(slots=True)
class Change:
    """What the learned sets need: exact elements renewed, range elements taken out and put in."""

    exact: list[Timed] = field(default_factory=list)
    remove: list[Element] = field(default_factory=list)
    add: list[Timed] = field(default_factory=list)


class Segments:
    """Learned port ranges of one bottle as they stand in the kernel: per address disjoint pieces with their ends.

    Exact ports need no memory: an element there is renewed by its key alone.
    """

    def __init__(self) -> None:
        self._pieces: dict[tuple[Address, Proto], list[tuple[int, int, int]]] = {}

    def clear(self) -> None:
        self._pieces.clear()

    def copy(self) -> Segments:
        """To work a change out on, and keep only if the kernel took it."""
        other = Segments()
        other._pieces.update(self._pieces)
        return other

    def change(self, entries: Iterable[Learned], now_ns: int) -> Change:
        """Work `entries` in; entries that are over already (timeout 0) change nothing."""
        change = Change()
        exact: dict[Element, int] = {}
        wide: dict[tuple[Address, Proto], list[tuple[int, int, int]]] = {}
        for e in entries:
            if e.timeout_s <= 0:
                continue
            for low, high in e.ports:
                if low == high:
                    element = Element.at(e.address, e.proto, low, high)
                    exact[element] = max(e.timeout_s, exact.get(element, 0))
                else:
                    end = now_ns + e.timeout_s * _NS
                    wide.setdefault((e.address, e.proto), []).append((low, high, end))
        change.exact = [Timed(element, timeout) for element, timeout in exact.items()]
        for (address, proto), new in wide.items():
            self._rewrite(change, address, proto, new, now_ns)
        return change

    def _rewrite(
        self, change: Change, address: Address, proto: Proto, new: Sequence[tuple[int, int, int]], now_ns: int
    ) -> None:
        old = self._pieces.get((address, proto), [])
        change.remove += [Element.at(address, proto, low, high) for low, high, _ in old]
        pieces = pieced([*(p for p in old if p[2] > now_ns), *new])
        self._pieces[address, proto] = pieces
        for low, high, end in pieces:
            timeout = max(1, -(-(end - now_ns) // _NS))
            change.add.append(Timed(Element.at(address, proto, low, high), timeout))


def pieced(spans: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Spans (low, high, end) as disjoint pieces; where they overlap the later end counts."""
    cuts = sorted({low for low, _, _ in spans} | {high + 1 for _, high, _ in spans})
    out: list[tuple[int, int, int]] = []
    for low, after in itertools.pairwise(cuts):
        ends = [end for a, b, end in spans if a <= low <= b]
        if not ends:
            continue
        if out and out[-1][1] == low - 1 and out[-1][2] == max(ends):
            out[-1] = (out[-1][0], after - 1, out[-1][2])
        else:
            out.append((low, after - 1, max(ends)))
    return out
