"""Events from the ring, their origins from the other ring, and repeats from am_seen, as one stream behind one file
descriptor.

The kernel reports an operation once and counts its repeats in am_seen. A timer, armed by every read that found
something, empties that map: counted repeats become events, and the next occurrence is reported at once again.
An origin is written right after its event, on the same CPU; an event that is read in between waits for the next read.
"""

from __future__ import annotations

import os
import select
import struct
import threading
from dataclasses import replace

from ebpf import abi, events, origin, syscall
from ebpf.attribution import Attribution
from ebpf.maps import Map
from ebpf.origin import Origin
from ebpf.ring import Ring
from ebpf.spec import Event

READ_LIMIT = 4096
_COUNT = struct.Struct("=I")
_COUNT_AT = abi.EventRecord.count.offset
_FIELDS = struct.Struct("=16xI8xI12xHBBBB6x16s16x")  # slot, tgid, port, proto, kind, verdict, reason, addr
_OPERATION = struct.Struct("=IIHBBBB16s")
_ORIGIN_WAIT_NS = 5_000_000

_Key = tuple[int, int]  # ts_ns, pid


def _operations(records: bytes) -> list[bytes]:
    """For each record what tells its operation from others, as struct am_seen_key does."""
    return [_OPERATION.pack(*fields) for fields in _FIELDS.iter_unpack(records)]


def is_told_apart(event: Event) -> bool:
    """Whether the kernel reports each of these, since libc's sorting of addresses looks the same there."""
    return event.kind == "bypass" and event.proto == "udp" and event.syscall in ("connect", "io_uring")


class Collector:
    """Reads one installation's events. `flush_ns`: how long repeats may wait.

    read() looks into /proc and may take a while: it and the other calls may be made by different threads."""

    def __init__(self, maps: dict[str, Map], ring_bytes: int, origin_bytes: int, flush_ns: int) -> None:
        self._seen = maps["am_seen"]
        self._lost = maps["am_lost"]
        self._ring = Ring(maps["am_events"].fd, ring_bytes)
        self._origins = Ring(maps["am_origins"].fd, origin_bytes)
        self._flush_ns = flush_ns
        self._timer = syscall.timerfd()
        self._armed = False
        self._repeats: list[tuple[bytes, Event]] = []
        self._waiting: list[tuple[bytes, Event]] = []  # read before their origin was
        self._early: dict[_Key, Origin] = {}  # read before their event was
        self._attribution = Attribution()
        self._lock = threading.Lock()
        self._described: dict[bytes, Event | None] = {}  # the last first occurrence of each operation, for its repeats
        self._places: dict[tuple[bytes, str, str], tuple[Event, int]] = {}
        self._counted: list[Event] = []
        self._epoll = select.epoll()
        self._epoll.register(self._ring.fd, select.EPOLLIN)
        self._epoll.register(self._timer, select.EPOLLIN)
        self._arm(1)  # what an earlier reader left

    def fileno(self) -> int:
        return self._epoll.fileno()

    def read(self) -> list[Event]:
        """Without blocking; first occurrences in order, then what :meth:`flush` found."""
        with self._lock:
            return self._read()

    def _read(self) -> list[Event]:
        late, self._waiting = self._waiting, []
        records = self._ring.read(READ_LIMIT, events.RECORD.size)
        found = events.decode(records)
        follows = records[events.ORIGIN_AT :: events.RECORD.size]
        origins = self._early
        origins.update(((o.ts_ns, o.pid), o) for o in origin.decode(self._origins.read(READ_LIMIT, origin.ORIGIN.size)))
        self._early = {}
        out: list[Event] = []
        for key, event in late:
            where = origins.pop((event.ts_ns, event.pid), None)
            out += self._describe(key, event if where else replace(event, evidence="lost"), where)
        for key, event, wants in zip(_operations(records), found, follows, strict=True):
            where = origins.pop((event.ts_ns, event.pid), None) if wants else None
            if wants and where is None:
                self._waiting.append((key, event))
            else:
                out += self._describe(key, event, where)
        self._early = origins if len(origins) < READ_LIMIT else {}
        self._rearm(bool(found))
        repeats, self._repeats = self._repeats, []
        for key, event in repeats:
            out += self._repeat(key, event)
        counted, self._counted = self._counted, []
        return out + counted

    def _describe(self, key: bytes, event: Event, where: Origin | None) -> list[Event]:
        """The event completed, or nothing where it is none."""
        known = self._described[key] = self._attribution.describe(event, where)
        if len(self._described) > READ_LIMIT:
            del self._described[next(iter(self._described))]
        if known is None:
            return []
        return self._first_from(key, known) if is_told_apart(known) else [known]

    def _first_from(self, key: bytes, event: Event) -> list[Event]:
        """Of operations that the kernel reports one by one: the first from each place, until the next flush."""
        operation = (key, event.library, event.evidence.partition(":")[0])
        known, more = self._places.get(operation, (event, -1))
        self._places[operation] = (known, more + 1)
        return [event] if more < 0 else []

    def _repeat(self, key: bytes, event: Event) -> list[Event]:
        """Counted repeats are the operation that was described when it came first."""
        first = key in self._described
        known = self._described.pop(key) if first else self._attribution.describe(event, None)
        return [] if known is None else [replace(known, ts_ns=event.ts_ns, count=event.count)]

    def _rearm(self, found: bool) -> None:
        try:
            os.read(self._timer, 8)
        except BlockingIOError:
            pass
        else:
            self._armed = False
            self._drain()
        if self._waiting:
            self._arm(_ORIGIN_WAIT_NS)
        elif found and not self._armed:
            self._arm(self._flush_ns)

    def flush(self) -> None:
        """Turn counted repeats into events now and start counting anew; the descriptor becomes readable."""
        with self._lock:
            self._drain()
            if self._repeats or self._counted:
                self._arm(1)

    def _drain(self) -> None:
        records = [value for _, value in self._seen.drain() if _COUNT.unpack_from(value, _COUNT_AT)[0]]
        self._counted += [replace(event, count=more) for event, more in self._places.values() if more]
        self._places.clear()
        joined = b"".join(records)
        self._repeats += zip(_operations(joined), events.decode(joined), strict=True)

    def lost(self, what: str = "AM_LOST_EVENT") -> int:
        """How many of AM_LOST_EVENT, AM_LOST_ORIGIN or AM_LOST_GUARDED, over all CPUs, since the maps were made."""
        value = self._lost.lookup(struct.pack("=I", abi.C[what])) or b""
        return sum(struct.unpack(f"={len(value) // 8}Q", value))

    def close(self) -> None:
        with self._lock:
            self._epoll.close()
            os.close(self._timer)
            self._ring.close()
            self._origins.close()

    def _arm(self, after_ns: int) -> None:
        syscall.arm(self._timer, max(1, after_ns))
        self._armed = True
