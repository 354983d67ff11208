"""One nf_tables table of the calling thread's namespace as raw netlink says it, and no more of it than was asked for.

For namespaces whose root may have filled it: libnftables reads everything there is, and begins anew while it changes.
Needs CAP_NET_ADMIN. Formats: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
import struct
import sys
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from netfilter.batch import attribute
from netfilter.errors import KernelRefused, TooMuch
from netfilter.netns.wire import HEADER, NETFILTER, Netlink, Request, attributes

MOST = 2048  # rules, and parts of a table: what is more is nobody's policy
_INET = 1
_GENERIC = struct.Struct(">BBH")
_ATTRIBUTE = struct.Struct("=HH")
_GETTABLE, _GETCHAIN, _GETRULE, _GETSET, _GETELEMENTS, _GETOBJECT = (10 << 8 | n for n in (1, 4, 7, 10, 13, 19))
_TABLE, _NAME, _ELEMENTS, _TABLE_USE, _EXPRESSIONS = 1, 2, 3, 3, 4
_CHAIN_NAME, _CHAIN_SAID = 3, (4, 5, 7)  # hook, policy, type
_SET_SAID = (3, 4, 5, 6, 7)  # flags, types and lengths of key and data
_SET_FLAGS, _ANONYMOUS, _TIMED = 3, 1, 16
_KEY, _DATA, _FLAGS, _EXPIRES, _KEY_END = 1, 2, 3, 5, 10
_EXPIRATION = 5  # NFTA_SET_ELEM_EXPIRATION, milliseconds
_LEAST_BYTES = 64  # of one message
_CLOSE_MS = 2000  # an element so near to its end may be gone on one side already

PARTS = ("parts", "")  # how many chains, sets and counters there are, also of those that are not listed

Objects = dict[tuple[str, str], Hashable]


@dataclass(frozen=True, slots=True)
class Size:
    """`parts`: chains, sets and counters; of rules and parts no more than MOST + 1 are counted."""

    parts: int
    rules: int

    @property
    def too_much(self) -> bool:
        return self.parts > MOST or self.rules > MOST


def size(table: str) -> Size | None:
    """None: there is no such table."""
    link = Netlink(NETFILTER)
    try:
        return Size(_parts(link, table), len(link.first(_request(_GETRULE, table), MOST + 1)))
    except KernelRefused as e:
        if e.errno != errno.ENOENT:
            raise
        return None
    finally:
        link.close()


class Read(NamedTuple):
    """What is in a table, and how many bytes said it."""

    objects: Objects
    size_bytes: int


def objects(table: str, most_bytes: int = sys.maxsize) -> Read | None:
    """What is in it, comparable: chains with their rules in order, sets with their elements. None: it is not there.

    :raises TooMuch: it is more than `most_bytes` of messages, or MOST rules.
    """
    reading = _Reading(table, most_bytes)
    try:
        return Read(reading.everything(), most_bytes - reading.left)
    except KernelRefused as e:
        if e.errno != errno.ENOENT:
            raise
        return None
    finally:
        reading.link.close()


class _Reading:
    def __init__(self, table: str, left: int) -> None:
        self.link = Netlink(NETFILTER)
        self._table = table
        self.left = left

    def everything(self) -> Objects:
        parts = _parts(self.link, self._table)
        if parts > MOST:
            raise TooMuch(f"table {self._table}", f"more than {MOST} chains, sets and counters")
        found: Objects = {PARTS: parts}
        rules: dict[str, list[Hashable]] = {}
        listed = self._listed(_request(_GETRULE, self._table), MOST)
        sets = {_text(said[_NAME]): said for said in self._listed(_request(_GETSET, self._table), MOST)}
        elements = {name: self._elements(name, said) for name, said in sets.items()}
        for said in listed:
            rules.setdefault(_text(said[_NAME]), []).append(_rule(said.get(_EXPRESSIONS, b""), elements))
        for said in self._chains():
            name = _text(said[_CHAIN_NAME])
            found["chain", name] = (_of(said, _CHAIN_SAID), tuple(rules.get(name, ())))
        for name, said in sets.items():
            if not _number(said.get(_SET_FLAGS, b"")) & _ANONYMOUS:
                found["set", name] = (_of(said, _SET_SAID), elements[name])
        for said in self._listed(_request(_GETOBJECT, self._table), MOST):
            found["counter", _text(said[_NAME])] = ()
        return found

    def _chains(self) -> list[dict[int, bytes]]:
        """The kernel lists those of every table: ours of the first. What is behind them, the count of parts tells."""
        link = Netlink(NETFILTER)
        try:
            listed = link.first(_request(_GETCHAIN, ""), MOST)
        finally:
            link.close()
        every = [attributes(body, _GENERIC.size) for body in listed if body[0] == _INET]
        return [said for said in every if _text(said[_TABLE]) == self._table]

    def _listed(self, request: Request, most: int) -> list[dict[int, bytes]]:
        bodies = self.link.first(request, min(most, self.left // _LEAST_BYTES) + 1)
        self.left -= sum(map(len, bodies))
        if len(bodies) > most or self.left < 0:
            raise TooMuch(f"table {self._table}", f"more than {most} rules, or more elements than those of its policy")
        return [attributes(body, _GENERIC.size) for body in bodies]

    def _elements(self, name: str, said: dict[int, bytes]) -> Hashable:
        """As often as each is there: a set has none twice, but a listing that was interrupted may."""
        timed = _number(said.get(_SET_FLAGS, b"")) & _TIMED
        found: Counter[Hashable] = Counter()
        for listed in self._listed(_request(_GETELEMENTS, self._table, name), MOST):
            for each in _each(listed.get(_ELEMENTS, b"")):
                element = attributes(each)
                left = int.from_bytes(element.get(_EXPIRATION, b""), "big")
                if not timed or left > _CLOSE_MS:
                    found[_of(element, (_KEY, _DATA, _FLAGS, _KEY_END))] = 1
        return frozenset(found)


def _rule(expressions: bytes, sets: dict[str, Hashable]) -> Hashable:
    """Its expressions in order; a set without a name as what is in it: the number in its name says nothing."""
    found = []
    for each in _each(expressions):
        said = attributes(each)
        data = attributes(said.get(2, b""))
        meant: list[Hashable] = [_of(data, tuple(sorted(data)))]
        name = _text(data.get(1, b"")) if said.get(1) == b"lookup\0" else ""
        if name.startswith("__set"):
            meant = [_of(data, tuple(sorted(data.keys() - {1}))), sets.get(name)]
        found.append((said.get(1), *meant))
    return tuple(found)


def _parts(link: Netlink, table: str) -> int:
    data = _request(_GETTABLE, "", attribute(_TABLE, table.encode() + b"\0"))
    return _number(attributes(link.ask(data), _GENERIC.size).get(_TABLE_USE, b""))


def _request(kind: int, table: str, more: bytes | str = b"") -> Request:
    said = more if isinstance(more, bytes) else attribute(_NAME, more.encode() + b"\0")
    body = _GENERIC.pack(_INET, 0, 0) + (attribute(_TABLE, table.encode() + b"\0") if table else b"") + said
    return Request("look at a table", HEADER.pack(HEADER.size + len(body), kind, 1, 0, 0) + body)


def _each(data: bytes) -> Iterator[bytes]:
    """The members of a list."""
    at = 0
    while at + 4 <= len(data):
        length, _ = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            return
        yield data[at + 4 : at + length]
        at += (length + 3) & ~3


def _of(said: dict[int, bytes], kinds: Sequence[int]) -> Hashable:
    return tuple((kind, said[kind]) for kind in kinds if kind in said)


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")
