"""Elements that go into or out of sets of one form, as nft text, as JSON and as netlink bytes. Pure.

Both sides of a bottle get the same batch: it is encoded once. Formats: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import repeat
from typing import NamedTuple

from netfilter.elements import WIDTH, Element, Timed
from netfilter.spec import Proto

_NESTED = 0x8000
_LIST_ELEM, _ELEM_KEY, _ELEM_TIMEOUT, _ELEM_KEY_END, _DATA_VALUE = 1, 1, 4, 10, 1
_ATTRIBUTE = struct.Struct("=HH")
_PROTOCOLS = {"tcp": b"\x06\0\0\0", "udp": b"\x11\0\0\0"}
_MOST_BYTES = 0xFF00  # an attribute's length has sixteen bits


def attribute(kind: int, data: bytes) -> bytes:
    """One struct nlattr, padded to four bytes."""
    return _ATTRIBUTE.pack(4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def nested(kind: int, data: bytes) -> bytes:
    return attribute(kind | _NESTED, data)


class Batch:
    """Elements of one address family; `seconds` says how long each is to stay, None: all for good."""

    def __init__(self, elements: Sequence[Element], seconds: Sequence[int] | None = None) -> None:
        self.elements = elements
        self.seconds = seconds

    @classmethod
    def timed(cls, timed: Iterable[Timed]) -> Batch:
        rows = tuple(timed)
        return cls([row.element for row in rows], [row.timeout_s for row in rows])

    def first(self, count: int) -> Batch:
        return Batch(self.elements[:count], None if self.seconds is None else self.seconds[:count])

    def rows(self) -> Iterable[tuple[Element, int]]:
        return zip(self.elements, repeat(0) if self.seconds is None else self.seconds, strict=False)

    @cached_property
    def exact(self) -> list[bytes]:
        """For a hash set: elements as bytes, in pieces that fit into a message each."""
        if not self.elements:
            return []
        width = WIDTH[self.elements[0].version] // 8
        return _pieces(
            [
                _head(width, 1, seconds) + number.to_bytes(width, "big") + _tail(proto, low) + _end(seconds)
                for (_, number, _, proto, low, _), seconds in self.rows()
            ]
        )

    @cached_property
    def ranged(self) -> list[bytes]:
        """For an interval set: the same with each element's last key."""
        if not self.elements:
            return []
        bits = WIDTH[self.elements[0].version]
        width, last = bits // 8, _last_head(bits // 8)
        return _pieces(
            [
                _head(width, 2, seconds)
                + number.to_bytes(width, "big")
                + _tail(proto, low)
                + last
                + (number | ((1 << (bits - length)) - 1)).to_bytes(width, "big")
                + _tail(proto, high)
                + _end(seconds)
                for (_, number, length, proto, low, high), seconds in self.rows()
            ]
        )


@lru_cache(1 << 12)
def _head(width: int, keys: int, seconds: int) -> bytes:
    """The headers of an element, of its key and of the key's value."""
    value = 4 + width + 8
    size = (4 + value) * keys + len(_end(seconds))
    headers = ((4 + size, _LIST_ELEM | _NESTED), (4 + value, _ELEM_KEY | _NESTED), (value, _DATA_VALUE))
    return b"".join(_ATTRIBUTE.pack(*header) for header in headers)


def _last_head(width: int) -> bytes:
    value = 4 + width + 8
    return _ATTRIBUTE.pack(4 + value, _ELEM_KEY_END | _NESTED) + _ATTRIBUTE.pack(value, _DATA_VALUE)


@lru_cache(1 << 16)
def _tail(proto: Proto, port: int) -> bytes:
    if proto not in _PROTOCOLS:
        raise ValueError(f"protocol {proto!r}: only {' and '.join(_PROTOCOLS)} have ports")
    return _PROTOCOLS[proto] + struct.pack(">Hxx", port)


@lru_cache(1 << 12)
def _end(seconds: int) -> bytes:
    return attribute(_ELEM_TIMEOUT, struct.pack(">Q", seconds * 1000)) if seconds else b""


def _pieces(elements: list[bytes]) -> list[bytes]:
    count = _MOST_BYTES // max(map(len, elements))
    return [b"".join(elements[i : i + count]) for i in range(0, len(elements), count)]


class Members(NamedTuple):
    """A command: a batch into (`add`) or out of (`delete`) one set. `ranged`: it is a set of intervals."""

    verb: str
    set_name: str
    batch: Batch
    ranged: bool

    @property
    def pieces(self) -> list[bytes]:
        return self.batch.ranged if self.ranged else self.batch.exact
