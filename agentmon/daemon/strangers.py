"""Processes of the host inside a bottle's network namespace: whoever enters it is not held by the bottle's cgroup
programs, only by its packet rules. Nothing of agentmon's is there while a bottle runs, so each such process is told
once.

One readlink a process and look: 6 ms of CPU for 1,100 processes. Reading others' /proc/PID/ns/net needs CAP_SYS_PTRACE.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from agentmon import addresses, paths
from agentmon.control.state import Bottle, Phase
from agentmon.daemon import whose
from agentmon.events import Event

EVERY_S = 3.0
Identity = tuple[int, str]  # process, and when it started: another one once the number is used again


class Strangers:
    """Looks every EVERY_S, in a thread.

    :param bottles: the current bottles by slot.
    :param own: whether a process is in the cgroup of a bottle's slot.
    """

    def __init__(
        self,
        bottles: Callable[[], Mapping[int, Bottle]],
        own: Callable[[int, int], bool],
        emit: Callable[[Event], object],
        netns: Path = Path(paths.NETNS),
        proc: Path = Path("/proc"),
    ) -> None:
        self._bottles = bottles
        self._own = own
        self._emit = emit
        self._netns = netns
        self._proc = str(proc)
        self._told: set[Identity] = set()

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            slots = [slot for slot, bottle in self._bottles().items() if bottle.phase is not Phase.STARTING]
            if not slots:
                self._told.clear()
                continue
            for slot, pid in await asyncio.to_thread(self.look, slots):
                self._tell(slot, pid)

    def look(self, slots: list[int]) -> list[tuple[int, int]]:
        """(slot, process) of those that are new there. A bottle that starts is left out: its launcher is inside."""
        spaces: dict[str, int] = {}
        for slot in slots:
            try:
                spaces[f"net:[{os.stat(self._netns / addresses.netns(slot)).st_ino}]"] = slot
            except OSError:
                continue  # it has just ended
        found = []
        here: set[Identity] = set()
        for pid in self._pids():
            try:
                slot = spaces.get(os.readlink(f"{self._proc}/{pid}/ns/net"), -1)
                if slot < 0 or self._own(slot, pid):
                    continue
                who = (pid, _started(f"{self._proc}/{pid}/stat"))
            except OSError:
                continue
            here.add(who)
            if who not in self._told:
                found.append((slot, pid))
        self._told = here
        return found

    def _pids(self) -> list[int]:
        return [int(name) for name in os.listdir(self._proc) if name.isdigit()]

    def _tell(self, slot: int, pid: int) -> None:
        bottle = self._bottles().get(slot)
        known = whose.describe(pid)
        if bottle is not None and known:
            self._emit(Event("escape", "observed", bottle=bottle.name, reason="stranger", layer="daemon", **known))


def _started(stat: str) -> str:
    """Field 22 of proc_pid_stat(5)."""
    return Path(stat).read_text().rpartition(")")[2].split()[19]
