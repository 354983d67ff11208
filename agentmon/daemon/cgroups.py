"""The cgroup v2 tree of the bottles: `<v2 mount>/agentmon/b<slot>/{job,probe}`, and directories that others made for
what a bottle is attached to. Needs root.

The mount point comes from mountinfo (a hybrid host has it elsewhere than /sys/fs/cgroup). Kernel files used:
cgroup.freeze, cgroup.kill, cgroup.events, cgroup.procs, pids.max (cgroup-v2 documentation, "Core Interface Files").
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from agentmon.errors import HostLacks

PARENT = "agentmon"


def find_v2(mountinfo: str = "/proc/self/mountinfo") -> Path:
    """The mount point of cgroup v2.

    :raises HostLacks: only v1 is mounted.
    """
    for line in Path(mountinfo).read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split(" ", 1)[0] == "cgroup2":
            return Path(fields.split()[4].encode().decode("unicode_escape"))
    raise HostLacks(
        "cgroup v2 is not mounted: the programs that decide have nowhere to be attached",
        "boot with systemd.unified_cgroup_hierarchy=1, or mount -t cgroup2 none /sys/fs/cgroup/unified",
    )


class Tree:
    """All bottles' cgroups under one parent directory.

    :param parent: made when missing; tests pass their own.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self.parent = parent if parent is not None else find_v2() / PARENT
        self._others: dict[int, Path] = {}  # slot → a cgroup that is not ours

    def open(self) -> None:
        self.parent.mkdir(exist_ok=True)

    def bottle(self, slot: int) -> Path:
        return self._others.get(slot, self.parent / f"b{slot}")

    def job(self, slot: int) -> Path:
        return self._others.get(slot, self.bottle(slot) / "job")

    def probe(self, slot: int) -> Path:
        return self.bottle(slot) / ("agentmon-probe" if slot in self._others else "probe")

    def take(self, slot: int, cgroup: Path) -> int:
        """Know a cgroup that others made as the slot's; its id. :raises FileNotFoundError: it has gone."""
        found = cgroup.stat().st_ino
        self._others[slot] = cgroup
        return found

    def open_probe(self, slot: int) -> None:
        """The sibling leaf for a test, where it is not there all the time: in a cgroup of others."""
        if slot in self._others:
            self.probe(slot).mkdir(exist_ok=True)

    def close_probe(self, slot: int) -> None:
        """Others find nothing of ours in their cgroup once the test is over; idempotent."""
        if slot in self._others:
            with contextlib.suppress(OSError):
                self.probe(slot).rmdir()

    def move_in(self, slot: int, pids: Iterable[int]) -> int:
        """Processes to the slot's job leaf; those that have ended are passed over. How many."""
        return _move(self.job(slot), pids)

    def move_out(self, slot: int, directory: Path) -> int:
        """Every process of the slot to another cgroup, or to the root where that has gone."""
        target = directory if directory.is_dir() else self.parent.parent
        moved = 0
        while pids := self.processes(slot):
            if not (now := _move(target, pids)):
                break
            moved += now
        return moved

    def make(self, slot: int, pids: int = 0) -> int:
        """Directory with a frozen job leaf; returns the bottle's cgroup id (its inode number).

        :raises FileExistsError: the slot is in use, or an earlier daemon's rest was not cleaned.
        """
        bottle = self.bottle(slot)
        bottle.mkdir()
        self.job(slot).mkdir()
        self.probe(slot).mkdir()
        (self.job(slot) / "cgroup.freeze").write_text("1")
        self.limit(slot, pids)
        return bottle.stat().st_ino

    def limit(self, slot: int, pids: int) -> None:
        """At most so many processes; 0: not limited here."""
        file = self.bottle(slot) / "pids.max"
        if pids and file.exists():  # the pids controller may live in v1 on a hybrid host
            file.write_text(str(pids))

    def cgroup_id(self, slot: int) -> int:
        return self.bottle(slot).stat().st_ino

    def freeze(self, slot: int, *, frozen: bool) -> None:
        (self.job(slot) / "cgroup.freeze").write_text("1" if frozen else "0")

    def populated(self, slot: int) -> bool:
        try:
            return "populated 1" in (self.bottle(slot) / "cgroup.events").read_text()
        except FileNotFoundError:
            return False

    def kill(self, slot: int) -> None:
        """SIGKILL to every process of the subtree, also frozen ones and those that fork meanwhile; idempotent."""
        with contextlib.suppress(FileNotFoundError):
            (self.bottle(slot) / "cgroup.kill").write_text("1")

    def remove(self, slot: int, deadline_s: float = 2.0) -> None:
        """Remove the (empty) subtree; a directory the kernel still holds busy is tried again until the deadline.

        :raises OSError: EBUSY at the deadline.
        """
        bottle = self.probe(slot) if slot in self._others else self.bottle(slot)
        self._others.pop(slot, None)
        end = time.monotonic() + deadline_s
        for path in sorted((Path(p) for p, _, _ in os.walk(bottle)), key=lambda p: -len(p.parts)):
            while True:
                try:
                    path.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    if time.monotonic() > end:
                        raise
                    os.sched_yield()
                else:
                    break

    def slots(self) -> frozenset[int]:
        if not self.parent.is_dir():
            return frozenset()
        names = (p.name[1:] for p in self.parent.iterdir() if p.is_dir() and p.name.startswith("b"))
        return frozenset(int(n) for n in names if n.isdigit())

    def processes(self, slot: int) -> list[int]:
        """Pids in the whole subtree."""
        out: list[int] = []
        for path, _, _ in os.walk(self.bottle(slot)):
            with contextlib.suppress(OSError):
                out += [int(p) for p in (Path(path) / "cgroup.procs").read_text().split()]
        return out

    def holds(self, slot: int, pid: int) -> bool:
        """Whether a process is in the bottle's subtree. :raises OSError: it has ended."""
        path = next((p for p in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if p.startswith("0::")), "")
        if slot in self._others:
            return f"{path}/".startswith(f"0::/{self._others[slot].relative_to(self.parent.parent)}/")
        return f"{path}/".find(f"/{self.parent.name}/b{slot}/") >= 0

    def close(self) -> None:
        """Remove the parent when no bottle is left in it."""
        with contextlib.suppress(OSError):
            self.parent.rmdir()


def _move(directory: Path, pids: Iterable[int]) -> int:
    moved = 0
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            (directory / "cgroup.procs").write_text(str(pid))
            moved += 1
    return moved
