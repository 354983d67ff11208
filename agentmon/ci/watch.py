"""The process that looks which step each process of a runner is of: `python -m agentmon.ci.watch INODE FILE`.

It reads the environments of what is new in the network namespace with that inode number, at once where the kernel
tells of it (execs.py) and ten times a second, and appends a line to FILE for each process of a step. It has no part in
deciding: a job that makes it wait, or floods it, loses its own attribution. Ends by SIGTERM, or when nothing has been
in the namespace for a while. Needs CAP_SYS_PTRACE.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from pathlib import Path

import msgspec

from agentmon.ci.execs import Exec, Execs
from agentmon.ci.steps import Seen, step_of

EVERY_S = 0.1
LOOKS = 10  # at a new process: it may still be what forked it, or on its way into the namespace
MOST = 100_000  # processes of steps; what comes later is attributed by time
_ENVIRON_BYTES = 1 << 18
_ALONE_S = 30.0
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class Watch:
    """:param inode: of the runner's network namespace."""

    def __init__(self, inode: int, proc: Path = Path("/proc")) -> None:
        self._inode = inode
        self._proc = proc
        self._known: set[int] = set()
        self._young: dict[int, int] = {}  # pid → looks that are left
        self._steps: dict[int, str] = {}  # of living processes
        self._inside: set[int] = set()

    def look(self) -> list[Seen]:
        """Processes of steps that were not told before."""
        pids = {int(name) for name in os.listdir(self._proc) if name.isdecimal()}
        self._known &= pids
        self._inside &= pids
        for gone in self._steps.keys() - pids:
            del self._steps[gone]
        young = {pid: self._young.get(pid, LOOKS) for pid in pids - self._known}
        self._young = {}
        found = []
        for pid, left in sorted(young.items()):
            seen = self._one(pid)
            if seen is not None:
                self._steps[pid] = seen.step
                found.append(seen)
            if seen is not None or left == 1:
                self._known.add(pid)
            else:
                self._young[pid] = left - 1
        return found

    def began(self, began: Exec) -> Seen | None:
        """A process that runs another program, with another environment perhaps; None where nothing is new."""
        seen = self._one(began.pid)
        before = self._steps.get(began.pid)
        if seen is None or seen.step == before:
            return None
        self._known.add(began.pid)
        self._steps[began.pid] = seen.step
        return seen if before is None else Seen(began.pid, began.at_ns, seen.step)

    @property
    def alone(self) -> bool:
        """Whether no process of the namespace is left that was seen in it."""
        self._inside = {pid for pid in self._inside if self._is_inside(pid)}
        return not self._inside

    def _is_inside(self, pid: int) -> bool:
        try:
            return os.stat(self._proc / str(pid) / "ns/net").st_ino == self._inode
        except OSError:
            return False

    def _one(self, pid: int) -> Seen | None:
        if not self._is_inside(pid):
            return None
        self._inside.add(pid)
        place = self._proc / str(pid)
        try:
            stat = (place / "stat").read_bytes()
            with (place / "environ").open("rb") as file:
                step = step_of(file.read(_ENVIRON_BYTES))
            step = step or self._steps.get(int(stat.rpartition(b")")[2].split()[1]), "")
            boot_ns = _started_ns(stat)
        except (OSError, IndexError):
            return None
        return Seen(pid, _wall_ns(boot_ns), step) if step else None


def _started_ns(stat: bytes) -> int:
    """CLOCK_BOOTTIME of a process's start, from its proc_pid_stat(5): field 22, counted behind the command."""
    return int(stat.rpartition(b")")[2].split()[19]) * _TICK_NS


def _wall_ns(boot_ns: int) -> int:
    """CLOCK_REALTIME of a CLOCK_BOOTTIME, as the clock stands now."""
    return boot_ns + time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def note_self(file: Path, step: str) -> None:
    """Add this process as one of `step`, before it becomes the step's command: nothing is to be looked for then."""
    began = _wall_ns(_started_ns(Path("/proc/self/stat").read_bytes()))
    with file.open("ab", buffering=0) as out:
        out.write(msgspec.json.encode(Seen(os.getpid(), began, step)) + b"\n")


def main(argv: list[str]) -> int:
    watch, told, alone_since = Watch(int(argv[0])), 0, time.monotonic()
    execs: Execs | None = None
    with contextlib.suppress(OSError):
        execs = Execs()
    next_look = 0.0
    with Path(argv[1]).open("ab", buffering=0) as out:
        while time.monotonic() - alone_since <= _ALONE_S:
            waiting = [] if execs is None else [execs]
            ready, _, _ = select.select(waiting, [], [], max(0.0, next_look - time.monotonic()))
            found = [seen for began in execs.read() if (seen := watch.began(began))] if execs and ready else []
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + EVERY_S
                found += watch.look()
                alone_since = alone_since if watch.alone else time.monotonic()
            if told < MOST:
                out.write(b"".join(msgspec.json.encode(seen) + b"\n" for seen in found))
                told += len(found)
    return 0


def read(file: Path) -> list[Seen]:
    """What was written; a line that was being written when its writer ended is left out."""
    decode = msgspec.json.Decoder(Seen).decode
    found = []
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        with contextlib.suppress(msgspec.MsgspecError):
            found.append(decode(line))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
