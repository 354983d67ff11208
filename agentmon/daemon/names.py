"""Which names of a bottle had resolved to an address, so that a connect to the address can be told by name.

For people and for `policy learn`: nothing is decided by it. Written by the thread that commits, read by the loop: a
value is replaced, never changed.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address
MAX_ADDRESSES = 4096  # of one bottle; the oldest are forgotten
MAX_NAMES = 8  # of one address


class Names:
    """By slot: address → names, the last one first."""

    def __init__(self) -> None:
        self._known: dict[int, dict[Address, tuple[str, ...]]] = {}

    def note(self, slot: int, name: str, addresses: tuple[Address, ...]) -> None:
        """`name` was answered with `addresses`."""
        known = self._known.setdefault(slot, {})
        for address in addresses:
            others = known.pop(address, ())
            known[address] = (name, *(n for n in others if n != name))[:MAX_NAMES]
        while len(known) > MAX_ADDRESSES:
            del known[next(iter(known))]

    def of(self, slot: int, address: Address | None) -> tuple[str, ...]:
        """() where no name is known."""
        known = self._known.get(slot)
        return known.get(address, ()) if known and address is not None else ()

    def forget(self, slot: int) -> None:
        self._known.pop(slot, None)
