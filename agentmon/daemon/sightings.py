"""What the BPF programs saw, made readable: ring records ─▶ events with process, rule and bottle names.

Reading looks into /proc (2 ms a process, up to 100 a second): it has a thread of its own, so that a cut never waits for
it. Events are completed and logged on the loop, in the order in which they were read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import ebpf.spec
from agentmon.control.state import Bottle, Phase
from agentmon.daemon import whose
from agentmon.daemon.names import Names
from agentmon.events import Event

_SLICE = 50  # events logged in one turn of the loop, some 20 µs each
_PAUSE_S = 1.0  # after a read that failed
_ROUNDS = 4  # of settle(): a read takes a few thousand events, and an origin may come a moment after its event


class Sightings:
    """Called in the loop, but for what it hands to its thread.

    :param bottles: the current bottles by slot. :param names: what their names had resolved to."""

    def __init__(
        self,
        bpf: ebpf.spec.Bpf,
        bottles: Callable[[], Mapping[int, Bottle]],
        emit: Callable[[Event], object],
        names: Names | None = None,
    ) -> None:
        self._bpf = bpf
        self._bottles = bottles
        self._emit = emit
        self._names = names or Names()
        self._lost = self._losses()
        self._thread = ThreadPoolExecutor(1, "sightings")
        self._opened: dict[int, int] = {}
        self._reading: asyncio.Task[int] | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(bpf.fileno(), self._ready)

    def opened(self, slot: int) -> None:
        """The job of `slot` begins now: what was seen before was the bottle's own test of what must be refused."""
        self._opened[slot] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    async def settle(self) -> None:
        """Return when what the kernel has seen until now is logged, as far as a few reads take it."""
        for _ in range(_ROUNDS):
            if not await self._read():
                return

    async def close(self) -> None:
        """Read no more; the programs may be closed then."""
        self._closed = True
        self._loop.remove_reader(self._bpf.fileno())
        if self._reading is not None:
            await asyncio.wait({self._reading})
        self._thread.shutdown()

    def _ready(self) -> None:
        """The descriptor stays readable until it is read: it is not watched meanwhile."""
        self._loop.remove_reader(self._bpf.fileno())
        if self._reading is None:
            self._start()

    def _watch(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._bpf.fileno(), self._ready)

    def _start(self) -> asyncio.Task[int]:
        task = self._reading = self._loop.create_task(self._take(), name="sightings")
        return task

    async def _read(self) -> int:
        """How many events one read found, which begins after this was called."""
        if self._reading is not None:
            await asyncio.wait({self._reading})
        return await asyncio.shield(self._reading or self._start())

    async def _take(self) -> int:
        """One read, and what it found logged: in slices, because a read may find thousands."""
        try:
            seen, lost = await self._loop.run_in_executor(self._thread, self._look)
            to_real_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            for number, one in enumerate(seen, 1):
                self._log(one, to_real_ns)
                if number % _SLICE == 0:
                    await asyncio.sleep(0)
            self._tell_lost(lost)
        except (OSError, ValueError) as error:
            self._emit(Event("lost", layer="bpf", reason=f"events could not be read: {error}"))
            self._loop.call_later(_PAUSE_S, self._watch)
            return 0
        finally:
            self._reading = None
        self._watch()
        return len(seen)

    def _log(self, one: ebpf.spec.Event, to_real_ns: int) -> None:
        bottle = self._bottles().get(one.slot)
        testing = bottle is not None and (bottle.phase is Phase.STARTING or bottle.unbegun)
        if not testing and one.ts_ns >= self._opened.get(one.slot, 0):
            self._emit(describe(one, bottle, to_real_ns, self._names.of(one.slot, one.dst)))

    def _look(self) -> tuple[list[ebpf.spec.Event], tuple[int, int, int]]:
        return self._bpf.read(), self._losses()

    def _losses(self) -> tuple[int, int, int]:
        return self._bpf.lost(), self._bpf.lost_origins(), self._bpf.lost_guarded()

    def _tell_lost(self, lost: tuple[int, int, int]) -> None:
        events, origins, guarded = (now - before for now, before in zip(lost, self._lost, strict=True))
        self._lost = lost
        if events > 0:
            self._emit(Event("lost", layer="bpf", count=events, reason="the event ring was full"))
        if origins > 0:
            what = "the ring of origins was full: these events name no system call and no library"
            self._emit(Event("lost", layer="bpf", count=origins, reason=what))
        if guarded > 0:
            what = "the table of guarded processes was full: these forked children are held by the policy alone"
            self._emit(Event("lost", layer="bpf", count=guarded, reason=what))


def _reason(seen: str, bottle: Bottle | None) -> str:
    """A cut is the budget's only where a budget was spent; else an operator's."""
    if seen == "cut" and bottle is not None and (bottle.spent or {}).get("used"):
        return "budget"
    return seen


def describe(seen: ebpf.spec.Event, bottle: Bottle | None, to_real_ns: int, names: tuple[str, ...] = ()) -> Event:
    """One event. A process that could not be looked at when it was read (too many at once) is not looked at here.

    :param names: of the bottle, which had resolved to the destination.
    """
    rule = ""
    if bottle is not None and seen.reason == "deny" and 0 <= seen.rule < len(bottle.policy.rules):
        rule = bottle.policy.rules[seen.rule].text
    return Event(
        kind=seen.kind,
        verdict=seen.verdict,
        bottle=bottle.name if bottle else "",
        reason=_reason(seen.reason, bottle),
        layer="bpf",
        pid=seen.pid,
        tgid=seen.tgid,
        ppid=seen.ppid,
        uid=seen.uid,
        comm=seen.comm,
        exe=seen.exe,
        cmdline=seen.cmdline[: whose.CMDLINE],
        proto=seen.proto,
        dst=str(seen.dst) if seen.dst is not None else "",
        port=seen.port,
        path=seen.path,
        rule=rule,
        syscall=seen.syscall,
        library=seen.library,
        library_evidence=seen.evidence,
        offset=seen.offset,
        epoch=seen.epoch,
        count=seen.count,
        detail={"names": list(names)} if names else {},
        ts_ns=seen.ts_ns + to_real_ns,
    )
