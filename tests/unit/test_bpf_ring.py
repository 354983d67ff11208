"""The ring's reader on a hand-made ring: wrap-around, records being written, discarded and foreign ones."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import pytest

from ebpf.ring import Ring

SIZE = mmap.PAGESIZE
BUSY, DISCARDED = 1 << 31, 1 << 30


class HandMade:
    """A file laid out as kernel/bpf/ringbuf.c lays out its memory; both copies of the data are written."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * mmap.PAGESIZE + 2 * SIZE)
        self.position = 0

    def put(self, payload: bytes, flags: int = 0) -> None:
        record = struct.pack("=II", len(payload) | flags, 0) + payload
        record = record.ljust((len(record) + 7) // 8 * 8, b"\0")
        start = 2 * mmap.PAGESIZE
        for i, byte in enumerate(record):
            at = (self.position + i) % SIZE
            for copy in (at, at + SIZE):
                os.pwrite(self.fd, bytes([byte]), start + copy)
        self.position += len(record)
        os.pwrite(self.fd, struct.pack("=Q", self.position), mmap.PAGESIZE)

    def consumed(self) -> int:
        return int(struct.unpack("=Q", os.pread(self.fd, 8, 0))[0])


@pytest.fixture
def made() -> Iterator[HandMade]:
    ring = HandMade()
    yield ring
    os.close(ring.fd)


@pytest.fixture
def ring(made: HandMade) -> Iterator[Ring]:
    reader = Ring(made.fd, SIZE)
    yield reader
    reader.close()


def test_bpf_ring_empty(ring: Ring) -> None:
    assert ring.read(10, 8) == b""


def test_bpf_ring_in_order_and_no_more_than_asked(made: HandMade, ring: Ring) -> None:
    for i in range(5):
        made.put(bytes([i]) * 8)
    assert ring.read(2, 8) == b"\0" * 8 + b"\1" * 8
    assert ring.read(9, 8) == b"\2" * 8 + b"\3" * 8 + b"\4" * 8
    assert made.consumed() == made.position


def test_bpf_ring_waits_for_a_record_being_written(made: HandMade, ring: Ring) -> None:
    made.put(b"a" * 8)
    made.put(b"b" * 8, BUSY)
    made.put(b"c" * 8)
    assert ring.read(9, 8) == b"a" * 8
    assert made.consumed() == 16


def test_bpf_ring_skips_discarded_and_foreign_records(made: HandMade, ring: Ring) -> None:
    made.put(b"a" * 8, DISCARDED)
    made.put(b"b" * 12)
    made.put(b"c" * 8)
    assert ring.read(9, 8) == b"c" * 8


def test_bpf_ring_wraps_without_splitting(made: HandMade, ring: Ring) -> None:
    size = 24  # with its header it does not divide the ring
    for i in range(3 * SIZE // 32):
        made.put(bytes([i % 251]) * size)
        assert ring.read(1, size) == bytes([i % 251]) * size
    made.put(b"x" * 16)
    made.put(b"y" * size)
    assert ring.read(9, size) == b"y" * size
