"""What the BPF programs saw, made readable: ring records ─▶ events with process, rule and bottle names."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import ebpf.spec
from agentmon.control.state import Bottle, Phase
from agentmon.daemon import whose
from agentmon.events import Event


class Sightings:
    """:param bottles: the current bottles by slot."""

    def __init__(
        self, bpf: ebpf.spec.Bpf, bottles: Callable[[], Mapping[int, Bottle]], emit: Callable[[Event], object]
    ) -> None:
        self._bpf = bpf
        self._bottles = bottles
        self._emit = emit
        self._lost = bpf.lost()

    def read(self) -> None:
        """Called by the loop when the ring has records."""
        to_real_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for seen in self._bpf.read():
            bottle = self._bottles().get(seen.slot)
            if bottle is not None and bottle.phase is Phase.STARTING:
                continue  # the job is frozen: this is the bottle's own test of what must be refused
            self._emit(describe(seen, bottle, to_real_ns))
        lost = self._bpf.lost()
        if lost > self._lost:
            self._emit(Event("lost", layer="bpf", count=lost - self._lost, reason="the event ring was full"))
            self._lost = lost


def _reason(seen: str, bottle: Bottle | None) -> str:
    """A cut is the budget's only where a budget was spent; else an operator's."""
    if seen == "cut" and bottle is not None and (bottle.spent or {}).get("used"):
        return "budget"
    return seen


def describe(seen: ebpf.spec.Event, bottle: Bottle | None, to_real_ns: int) -> Event:
    """One event; process details come from /proc if the process still lives."""
    who = whose.describe(seen.tgid)
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
        ppid=seen.ppid or who.get("ppid", 0),
        uid=seen.uid,
        comm=seen.comm,
        exe=who.get("exe", ""),
        cmdline=who.get("cmdline", ""),
        proto=seen.proto,
        dst=str(seen.dst) if seen.dst is not None else "",
        port=seen.port,
        rule=rule,
        epoch=seen.epoch,
        count=seen.count,
        ts_ns=seen.ts_ns + to_real_ns,
    )
