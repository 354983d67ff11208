"""Which process holds something, and whether it still lives: pid and start time from /proc (proc_pid_stat(5))."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from agentmon.ledger.state import Owner

_STATE, _START = 0, 19  # of the fields after the command, which is in parentheses and may contain anything


@cache
def boot_id() -> str:
    """The kernel's random id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def owner_of(pid: int) -> Owner:
    """The running process `pid`; start 0 when it has gone already (it is dead for alive(), then)."""
    return Owner(boot_id(), pid, _started(pid))


def alive(owner: Owner) -> bool:
    """Whether it runs. A zombie does not; neither does a process of an earlier boot, or another one with its pid."""
    return owner.boot == boot_id() and owner.start != 0 and _started(owner.pid) == owner.start


def _started(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[_STATE] in (b"Z", b"X") else int(fields[_START])
