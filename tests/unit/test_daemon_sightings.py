"""What the programs saw becomes events: complete, in order, without holding up the loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv4Address

import ebpf.spec
from agentmon.control.state import Bottle, Job, Phase
from agentmon.daemon.names import MAX_ADDRESSES, MAX_NAMES, Names
from agentmon.daemon.sightings import Sightings
from agentmon.events import Event, hint, to_dict
from agentmon.policy.effective import EffectivePolicy
from agentmon.render.events import sentence
from ebpf.fake import FakeBpf

JOB = Job(("true",), (), "/", 1000, 1000, (), False)
BOTTLE = Bottle(16, "b", "r", Phase.RUNNING, EffectivePolicy("b", ()), JOB, 1)
SEEN = ebpf.spec.Event(
    ts_ns=0, slot=16, epoch=1, kind="bypass", verdict="refused", reason="unvouched", pid=12, tgid=11, ppid=10, uid=1000,
    comm="python3", proto="tcp", dst=IPv4Address("203.0.113.1"), port=443, rule=0, count=1, guarded=True,
    exe="/usr/bin/python3", cmdline="python3 job.py", syscall="connect", library="/x/_ctypes.so", offset=77,
    evidence="stack: /x/_ctypes.so+0x4d",
)  # fmt: skip


class Rig:
    def __init__(self, bpf: FakeBpf) -> None:
        self.bpf = bpf
        self.bottle = BOTTLE
        self.events: list[Event] = []
        self.names = Names()
        self.sightings = Sightings(bpf, lambda: {16: self.bottle}, self.events.append, self.names)

    def see(self, **changes: object) -> None:
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self.bpf.emit(replace(SEEN, **{"ts_ns": now, **changes}))  # type: ignore[arg-type]

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.events) < count:
                await asyncio.sleep(0.005)


def run(body: Callable[[Rig], Awaitable[None]], bpf: FakeBpf | None = None) -> list[Event]:
    async def whole() -> list[Event]:
        fake = bpf or FakeBpf()
        fake.open("/c")
        rig = Rig(fake)
        await body(rig)
        await rig.sightings.close()
        return rig.events

    return asyncio.run(whole())


def test_every_field() -> None:
    async def body(rig: Rig) -> None:
        rig.see()
        rig.see(
            kind="connect", reason="unix", dst=None, port=0, proto="unix", path="/srv/x", library="", evidence="gone"
        )
        await rig.until(2)

    first, second = (to_dict(e) for e in run(body))
    assert {k: v for k, v in first.items() if k not in {"ts", "epoch", "count"}} == {
        "kind": "bypass", "verdict": "refused", "bottle": "b", "reason": "unvouched", "layer": "bpf", "pid": 12,
        "tgid": 11, "ppid": 10, "uid": 1000, "comm": "python3", "exe": "/usr/bin/python3", "cmdline": "python3 job.py",
        "proto": "tcp", "dst": "203.0.113.1", "port": 443, "syscall": "connect", "library": "/x/_ctypes.so",
        "library_evidence": "stack: /x/_ctypes.so+0x4d", "offset": 77,
    }  # fmt: skip
    assert (second["path"], second["library_evidence"]) == ("/srv/x", "gone") and "library" not in second


def test_an_address_is_told_with_the_names_that_had_resolved_to_it() -> None:
    async def body(rig: Rig) -> None:
        for slot, name in ((16, "a.example"), (16, "b.example"), (17, "c.example"), (16, "a.example")):
            rig.names.note(slot, name, (IPv4Address("203.0.113.1"),))
        rig.see(kind="connect", reason="default", port=8443)
        rig.see(kind="connect", reason="default", dst=IPv4Address("203.0.113.2"))
        await rig.until(2)
        rig.names.forget(16)
        rig.see(kind="connect", reason="default", port=8444)
        await rig.until(3)

    named, *others = run(body)
    assert named.detail == {"names": ["a.example", "b.example"]}  # the last one asked for first; not another bottle's
    assert hint(named) == "agentmon allow b tcp://a.example:8443"
    assert "to 203.0.113.1:8443 (a.example or b.example): refused" in sentence(to_dict(named))
    assert [e.detail for e in others] == [{}, {}]


def test_names_of_addresses_have_bounds() -> None:
    names, first = Names(), IPv4Address("198.18.0.0")
    for number in range(MAX_NAMES + 1):
        names.note(16, f"{number}.example", (first,))
    assert names.of(16, first) == tuple(f"{n}.example" for n in range(MAX_NAMES, 0, -1))
    names.note(16, "more.example", tuple(first + n for n in range(1, MAX_ADDRESSES + 1)))
    assert names.of(16, first) == () and names.of(16, first + MAX_ADDRESSES) == ("more.example",)


def test_the_bottles_own_test_is_not_the_jobs() -> None:
    async def body(rig: Rig) -> None:
        rig.bottle = BOTTLE.with_phase(Phase.STARTING)
        rig.see(port=1)
        await rig.sightings.settle()
        rig.bottle = BOTTLE
        before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        rig.sightings.opened(16)
        rig.see(port=2, ts_ns=before)
        rig.see(port=3)
        await rig.until(1)
        await rig.sightings.settle()

    assert [e.port for e in run(body)] == [3]


def test_settle_waits_for_what_was_seen_and_close_reads_no_more() -> None:
    async def body(rig: Rig) -> None:
        for port in range(1, 50):
            rig.see(port=port)
        await rig.sightings.settle()
        assert [e.port for e in rig.events] == list(range(1, 50))

    run(body)


def test_a_slow_look_into_proc_does_not_hold_up_the_loop() -> None:
    class Slow(FakeBpf):
        def __init__(self) -> None:
            super().__init__()
            self.reading, self.go_on = threading.Event(), threading.Event()
            self.reads = 0

        def read(self) -> list[ebpf.spec.Event]:
            self.reads += 1
            self.reading.set()
            assert self.go_on.wait(10)
            return super().read()

    async def body(rig: Rig) -> None:
        slow = rig.bpf
        assert isinstance(slow, Slow)
        rig.see()
        async with asyncio.timeout(10):
            while not slow.reading.is_set():
                await asyncio.sleep(0)
        for _ in range(100):  # the descriptor is readable all the time; the loop turns, and nothing is read twice
            await asyncio.sleep(0)
        assert (slow.reads, rig.events) == (1, [])
        slow.go_on.set()
        await rig.until(1)

    assert len(run(body, Slow())) == 1


def test_what_was_lost_is_told() -> None:
    class Losing(FakeBpf):
        origins = 0

        def lost_origins(self) -> int:
            return self.origins

    async def body(rig: Rig) -> None:
        assert isinstance(rig.bpf, Losing)
        rig.bpf.lose(3)
        rig.bpf.origins = 2
        rig.see()
        await rig.until(3)

    events = [e for e in run(body, Losing()) if e.kind == "lost"]
    assert [e.count for e in events] == [3, 2] and "origins" in events[1].reason


def test_a_read_that_fails_is_told() -> None:
    class Broken(FakeBpf):
        def read(self) -> list[ebpf.spec.Event]:
            raise OSError("no memory")

    async def body(rig: Rig) -> None:
        rig.see()
        await rig.until(1)

    assert [e.reason for e in run(body, Broken())] == ["events could not be read: no memory"]
