"""Events from the ring, and repeats from am_seen, as one stream behind one file descriptor.

The kernel reports an operation once and counts its repeats in am_seen. A timer, armed by every read that found
something, empties that map: counted repeats become events, and the next occurrence is reported at once again.
"""

from __future__ import annotations

import os
import select
import struct
from dataclasses import replace
from pathlib import Path

from ebpf import abi, events, syscall
from ebpf.maps import Map
from ebpf.ring import Ring
from ebpf.spec import Event

READ_LIMIT = 4096
_COUNT = struct.Struct("=I")
_COUNT_AT = abi.EventRecord.count.offset


class Collector:
    """Reads one installation's events. `flush_ns`: how long repeats may wait."""

    def __init__(self, maps: dict[str, Map], ring_bytes: int, flush_ns: int) -> None:
        self._seen = maps["am_seen"]
        self._lost = maps["am_lost"]
        self._ring = Ring(maps["am_events"].fd, ring_bytes)
        self._flush_ns = flush_ns
        self._timer = syscall.timerfd()
        self._armed = False
        self._pending: list[Event] = []
        self._epoll = select.epoll()
        self._epoll.register(self._ring.fd, select.EPOLLIN)
        self._epoll.register(self._timer, select.EPOLLIN)
        self._arm(1)  # what an earlier reader left

    def fileno(self) -> int:
        return self._epoll.fileno()

    def read(self) -> list[Event]:
        """Without blocking; first occurrences in order, then what :meth:`flush` found."""
        found = events.decode(self._ring.read(READ_LIMIT, events.RECORD.size))
        try:
            os.read(self._timer, 8)
        except BlockingIOError:
            pass
        else:
            self._armed = False
            self._drain()
        if found and not self._armed:
            self._arm(self._flush_ns)
        waiting, self._pending = self._pending, []
        return [_with_parent(e) for e in found + waiting]

    def flush(self) -> None:
        """Turn counted repeats into events now and start counting anew; the descriptor becomes readable."""
        self._drain()
        if self._pending:
            self._arm(1)

    def _drain(self) -> None:
        records = [value for _, value in self._seen.drain() if _COUNT.unpack_from(value, _COUNT_AT)[0]]
        self._pending += events.decode(b"".join(records))

    def lost(self) -> int:
        value = self._lost.lookup(b"\0\0\0\0") or b""
        return sum(struct.unpack(f"={len(value) // 8}Q", value))

    def close(self) -> None:
        self._epoll.close()
        os.close(self._timer)
        self._ring.close()

    def _arm(self, after_ns: int) -> None:
        syscall.arm(self._timer, max(1, after_ns))
        self._armed = True


def _with_parent(event: Event) -> Event:
    """The parent's pid from /proc while the process still lives; 0 afterwards."""
    try:
        stat = Path(f"/proc/{event.tgid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return event
    return replace(event, ppid=int(stat.rpartition(")")[2].split()[1]))
