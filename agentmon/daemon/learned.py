"""Addresses that names have brought a bottle: which are open, until when, and that there is room for more. Pure.

An address stays known when its time is over, because flows to it may live on (epochs carry it over), until the room is
needed: then what ended first goes first. What is open is never displaced: beyond the limit a new address is refused.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address
MOST_OF_A_NAME = 256


class Open(Container[Address]):
    """The addresses that are open at one time, to be asked by `in`."""

    def __init__(self, until: Mapping[Address, float], now: float) -> None:
        self._until = until
        self._now = now

    def __contains__(self, address: object) -> bool:
        return self._until.get(address, -1.0) >= self._now  # type: ignore[call-overload, no-any-return]


class Book:
    """Of one bottle: name → address → end of its element, in seconds of the caller's clock."""

    def __init__(self) -> None:
        self._names: dict[str, dict[Address, float]] = {}
        self._until: dict[Address, float] = {}  # whatever name brought it; asked at every commit
        self._size = 0
        self._full_until = 0.0  # before then nothing of what is open ends: no use in looking for room

    def open(self, name: str, addresses: Iterable[Address], now: float, until: float, most: int) -> tuple[Address, ...]:
        """Note those addresses for which there is room, and return them.

        :param most: of all names together; MOST_OF_A_NAME of this one.
        """
        known = self._names.setdefault(name, {})
        taken = []
        for address in addresses:
            if address not in known and not self._room(name, known, now, most):
                continue
            self._size += address not in known
            until_before = known.pop(address, until)  # the newest last
            known[address] = max(until, until_before)
            self._until[address] = max(until, self._until.get(address, until))
            taken.append(address)
        if not known:
            del self._names[name]
        return tuple(taken)

    def _room(self, name: str, known: dict[Address, float], now: float, most: int) -> bool:
        if len(known) >= MOST_OF_A_NAME:
            oldest = min(known, key=known.__getitem__)
            if known[oldest] > now:
                return False
            del known[oldest]
            self._size -= 1
            if self._until.get(oldest, now + 1) <= now:
                del self._until[oldest]
        if self._size >= most and now >= self._full_until:
            self._sweep(name, now)
        return self._size < most

    def _sweep(self, keep: str, now: float) -> None:
        """Forget what is over, of every name; the names that are empty then, but for `keep`, too."""
        for name, known in list(self._names.items()):
            for address in [a for a, until in known.items() if until <= now]:
                del known[address]
                self._size -= 1
            if not known and name != keep:
                del self._names[name]
        self._until = {address: until for address, until in self._until.items() if until > now}
        ends = [until for known in self._names.values() for until in known.values()]
        self._full_until = min(ends, default=0.0)

    def drop(self, addresses: Iterable[Address]) -> None:
        """Forget these, whatever name brought them."""
        gone = set(addresses)
        for address in gone:
            self._until.pop(address, None)
        for known in self._names.values():
            for address in gone & known.keys():
                del known[address]
                self._size -= 1
        self._full_until = 0.0

    def items(self) -> Iterator[tuple[str, dict[Address, float]]]:
        yield from self._names.items()

    def addresses(self) -> set[Address]:
        return {address for known in self._names.values() for address in known}

    def open_at(self, now: float) -> Open:
        return Open(self._until, now)
