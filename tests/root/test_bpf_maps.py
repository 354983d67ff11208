"""The maps and the ring of the programs: counts, expiry, what is lost, what is not there."""

from __future__ import annotations

import errno
import struct
from dataclasses import replace

import pytest

from ebpf import entries, maps
from ebpf.errors import BpfError, MapFull
from ebpf.spec import Event
from tests.support.bpf_lab import Lab, entry, until

pytestmark = pytest.mark.root


@pytest.fixture
def lab(own_bpf_lab: Lab) -> Lab:
    return own_bpf_lab


def test_bpf_repeats_are_counted(lab: Lab) -> None:
    bottle = lab.bottle()
    bottle.apply()
    job = bottle.process()
    assert job.connect("198.51.100.8", 443) == errno.EPERM
    (first,) = lab.events(job)
    assert first.count == 1
    for _ in range(50):
        job.connect("198.51.100.8", 443)
    counted: list[Event] = []
    until(lambda: counted.extend(lab.events(job)) or sum(e.count for e in counted) >= 50)
    assert sum(e.count for e in counted) == 50
    assert len(counted) <= 4
    assert {replace(e, ts_ns=0, count=0) for e in counted} == {replace(first, ts_ns=0, count=0)}
    job.connect("198.51.100.8", 443)
    job.connect("198.51.100.8", 443)
    lab.programs.delete_bottle(bottle.slot)  # what was counted is not lost with the bottle
    assert sum(e.count for e in lab.events(job)) == 2


def test_bpf_a_full_ring_loses_reports_not_verdicts(lab: Lab) -> None:
    bottle = lab.bottle()
    bottle.apply(allow=(entry("198.51.100.7/32", 443),))
    job = bottle.process()
    for port in range(1000, 2500):
        assert job.connect("198.51.100.8", port) == errno.EPERM
    lost = lab.programs.lost()
    found = lab.events(job)
    assert lost > 0
    assert len({e.port for e in found}) + lost >= 1500
    assert job.connect("198.51.100.7", 443) == 0
    assert job.connect("203.0.113.5", 443) == errno.EPERM
    assert [str(e.dst) for e in lab.events(job) if e.port == 443] == ["203.0.113.5"]


def test_bpf_an_event_of_a_process_that_is_gone_has_no_parent(lab: Lab) -> None:
    bottle = lab.bottle()
    bottle.apply()
    job = bottle.process()
    job.connect("198.51.100.8", 443)
    lab.end_processes()
    assert [e.ppid for e in lab.events(job)] == [0]


def test_bpf_maps_take_exactly_sized_bytes_and_skip_what_is_not_there(lab: Lab) -> None:
    table = lab.programs.table("am_exact")
    with pytest.raises(ValueError, match="am_exact: a key has 24 bytes, not 3"):
        table.lookup(b"abc")
    with pytest.raises(ValueError, match="am_exact: a value has 16 bytes, not 3"):
        table.update(bytes(24), b"abc")
    keys = [struct.pack("=I20x", i) for i in range(10)]
    table.update_batch(b"".join(keys), bytes(160))
    assert table.delete(keys[3])
    assert not table.delete(keys[3])
    table.delete_batch(b"".join(keys))
    assert list(table.items()) == []
    with pytest.raises(MapFull):
        table.update_batch(b"".join(struct.pack("=I20x", i) for i in range(3000)), bytes(3000 * 16))
    assert len(list(table.drain())) == 2048
    with pytest.raises(BpfError, match="opening the pin /sys/fs/bpf/none"):
        maps.Map("/sys/fs/bpf/none")
    table.close()
    table.close()
    with pytest.raises(BpfError, match="reading BPF map am_exact"):
        table.lookup(bytes(24))
    with pytest.raises(BpfError, match="deleting from BPF map am_exact"):
        table.delete(bytes(24))
    with pytest.raises(BpfError, match="deleting from BPF map am_exact"):
        table.delete_batch(bytes(24))
    with pytest.raises(BpfError, match="reading BPF map am_exact"):
        list(table.items())
    with pytest.raises(BpfError, match="writing BPF map am_exact"):
        table.update(bytes(24), bytes(16))


def test_bpf_crowded_buckets_are_read_whole(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "_BATCH", 1)
    table = lab.programs.table("am_exact")
    keys = {struct.pack("=I20x", i) for i in range(500)}
    table.update_batch(b"".join(keys), bytes(500 * 16))
    assert {k for k, _ in table.items()} == keys


def test_bpf_expired_elements_are_swept(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "SWEEP_NS", 0)
    bottle = lab.bottle()
    bottle.apply()
    short = [entry("198.51.100.7/32", 443, (1000, 2000), timeout_s=1), entry("198.51.100.8/32", 443, timeout_s=99)]
    lab.programs.learn(bottle.slot, short)

    def left() -> tuple[int, int]:
        lab.programs.learn(bottle.slot, [])
        return len(list(lab.programs.table("am_exact").items())), len(list(lab.programs.table("am_host").items()))

    assert left() == (2, 1)
    until(lambda: left() == (1, 0))
    lab.programs.delete_bottle(bottle.slot)
    assert list(lab.programs.table("am_exact").items()) == []
