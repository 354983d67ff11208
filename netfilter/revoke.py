"""What a change takes back: the destinations for which a live flow's epoch no longer speaks. Pure.

While an epoch lasts, set x holds a region that covers everything taken back since it began. A flow to there is judged
by the other sets as if it were new, so a removal is in force with one transaction of elements, nobody's flows need to
be known for it, and whoever dies right after it leaves the bottle closed.

x may cover more than was taken back, as long as the other sets pass what is still allowed. They do not for an address
that was learned and has expired; where such a one lies inside, a new epoch has to begin (`beyond`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from ipaddress import ip_network

from netfilter.elements import WIDTH, Element, disjoint
from netfilter.render_bottle import Difference
from netfilter.spec import Direct, Learned

MOST = 256  # elements; with more, a new epoch is cheaper


class Region:
    """Destinations, as disjoint elements."""

    def __init__(self, elements: Sequence[Element] = ()) -> None:
        self.elements = tuple(elements)

    def with_more(self, elements: Iterable[Element]) -> Region:
        """Both together."""
        every = (*self.elements, *elements)
        return Region(disjoint(Direct(e.network, e.proto, ((e.low, e.high),)) for e in every))

    @cached_property
    def _networks(self) -> dict[tuple[int, str, int], dict[int, list[tuple[int, int]]]]:
        found: dict[tuple[int, str, int], dict[int, list[tuple[int, int]]]] = {}
        for version, number, length, proto, low, high in self.elements:
            found.setdefault((version, proto, length), {}).setdefault(number, []).append((low, high))
        return found

    def meets(self, entry: Learned) -> bool:
        """Whether any port of a learned address lies in it."""
        version, number = entry.address.version, int(entry.address)
        for (family, proto, length), networks in self._networks.items():
            if family != version or proto != entry.proto:
                continue
            shift = WIDTH[version] - length
            for low, high in networks.get(number >> shift << shift, ()):
                if any(a <= high and low <= b for a, b in entry.ports):
                    return True
        return False


def taken_back(changed: Iterable[Difference], forgotten: Iterable[Learned]) -> list[Element]:
    """Elements that leave the allowlist or enter the denied networks, and learned addresses that are no longer."""
    found: list[Element] = []
    for kind, _, _, gone, came in changed:
        found += came.elements if kind == "d" else gone.elements
    for e in forgotten:
        network = ip_network(e.address)
        found += [Element.of(network, e.proto, low, high) for low, high in e.ports]
    return found


def beyond(region: Region, elements: Sequence[Element], learned: Iterable[Learned]) -> Region | None:
    """`region` with `elements`; None where a new epoch has to begin."""
    if len(region.elements) + len(elements) > MOST:
        return None
    if elements:
        region = region.with_more(elements)
    if len(region.elements) > MOST or (region.elements and any(map(region.meets, learned))):
        return None
    return region
