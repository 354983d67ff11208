"""Reads a BPF ring buffer through mmap, without libbpf. Layout: kernel/bpf/ringbuf.c, from v5.8.

The first page holds the consumer position (ours to write), the second the producer position; then the data follows,
mapped twice in a row so that no record is split. A record: 4 bytes length with two flag bits, 4 bytes, payload, padding
to 8.
Only x86-64 keeps loads in order by itself; elsewhere the epoll_wait before a read orders what it announced.
"""

from __future__ import annotations

import mmap
import struct

_BUSY = 1 << 31
_DISCARD = 1 << 30
_HEADER_BYTES = 8
_U32 = struct.Struct("=I")


class Ring:
    """The reader of one ring; a ring has only one reader at a time. `size` is the map's max_entries."""

    def __init__(self, fd: int, size: int) -> None:
        page = mmap.PAGESIZE
        self.fd = fd
        self._mask = size - 1
        self._consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        self._producer = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._page = page
        self._consumed = memoryview(self._consumer).cast("Q")
        self._produced = memoryview(self._producer).cast("Q")

    def read(self, limit: int, record_bytes: int) -> bytes:
        """At most `limit` waiting records end to end; records of another length are skipped (they are not ours)."""
        position = self._consumed[0]
        end = self._produced[0]
        data, base, mask = self._producer, self._page, self._mask
        out: list[bytes] = []
        while position < end and len(out) < limit:
            at = base + (position & mask)
            (length,) = _U32.unpack_from(data, at)
            if length & _BUSY:
                break
            size = length & ~_DISCARD
            if not length & _DISCARD and size == record_bytes:
                out.append(data[at + _HEADER_BYTES : at + _HEADER_BYTES + size])
            position += (size + _HEADER_BYTES + 7) & ~7
        self._consumed[0] = position
        return b"".join(out)

    def close(self) -> None:
        self._consumed.release()
        self._produced.release()
        self._consumer.close()
        self._producer.close()
