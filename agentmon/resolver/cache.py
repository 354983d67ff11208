"""What upstream said about a name, kept until it expires; pure: the caller passes the time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class _Entry(Generic[V]):
    value: V
    expires_ns: int


class Cache(Generic[K, V]):
    """At most `size` entries; the least recently used one makes room. Expired entries are never returned."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K, now_ns: int) -> V | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires_ns <= now_ns:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return entry.value

    def put(self, key: K, value: V, expires_ns: int) -> None:
        self._entries[key] = _Entry(value, expires_ns)
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        self._entries.clear()
