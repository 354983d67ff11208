"""Completes an event with what its origin and /proc tell: parent, executable, command line, system call, library.

Looking at a process takes some 2 ms. So that a burst of different destinations cannot keep the daemon busy, each
process is looked at only so often a second, and all together too; what is past that says `busy`.
"""

from __future__ import annotations

from dataclasses import replace

from ebpf import maker, origin
from ebpf.origin import Origin
from ebpf.spec import Event

PER_PROCESS = 40
ALTOGETHER = 100
_SECOND_NS = 1_000_000_000


class Attribution:
    """Not thread-safe, like the reader that uses it."""

    def __init__(self) -> None:
        self._second = 0
        self._looks: dict[int, int] = {}
        self._all = 0

    def describe(self, event: Event, where: Origin | None) -> Event | None:
        """`event` with what is known of its maker; None for libc's own sorting of addresses, which nobody did."""
        if where is not None:
            event = replace(event, syscall=origin.syscall_name(where), path=_path(where.path))
        if not self._may_look(event):
            return replace(event, evidence="busy")
        if where is None:
            facts = maker.facts_at(event.tgid, event.ts_ns, event.pid)
            return event if facts is None else replace(event, **facts._asdict())
        made = maker.maker_of(where)
        if made.sorting and event.proto == "udp" and event.kind == "bypass":
            return None
        if made.facts is not None:
            event = replace(event, **made.facts._asdict())
        found = made.culprit
        return replace(event, library=found.library, offset=found.offset, evidence=str(found))

    def _may_look(self, event: Event) -> bool:
        second = event.ts_ns // _SECOND_NS
        if second != self._second:
            self._second = second
            self._looks.clear()
            self._all = 0
        looks = self._looks.get(event.tgid, 0)
        if looks >= PER_PROCESS or self._all >= ALTOGETHER:
            return False
        self._looks[event.tgid] = looks + 1
        self._all += 1
        return True


def _path(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
