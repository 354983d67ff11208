"""The daemon's state as frozen values: one Host, its Bottles by slot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from agentmon.policy.effective import EffectivePolicy


class Phase(Enum):
    STARTING = "starting"  # closed on every layer until the probe has passed
    RUNNING = "running"
    CUT = "cut"  # reaches only resolver and proxy
    FROZEN = "frozen"  # cut, and every process stopped
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Job:
    """What runs in a bottle: enough to build its LaunchSpec and to know who asked. `uid` is never 0."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    cwd: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    tty: bool
    rows: int = 24
    cols: int = 80
    owner: int = 0  # uid that started it


@dataclass(frozen=True, slots=True)
class Attached:
    """What others started and agentmon holds. Paths are the daemon's; `layers` and `notes` say what holds it, and what
    does not."""

    what: str  # for people: "container web", "process 4711"
    namespace: str  # path that leads to its network namespace
    inode: int  # of that namespace
    pid: int = 0  # a process of it; 0: there was none
    cgroup: str = ""  # its own cgroup directory; "": its processes are moved into a leaf of agentmon's
    came_from: str = ""  # where moved processes go back to
    named: bool = False  # the namespace has a name of its own: it is there without a process, too
    nameservers: tuple[str, ...] = ()  # of its resolv.conf
    layers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bottle:
    slot: int
    name: str
    run: str
    phase: Phase
    policy: EffectivePolicy
    job: Job
    epoch: int
    worker: int = 0
    pid: int = 0  # of the launcher's outer process, 0 before it runs
    started_ns: int = 0  # CLOCK_REALTIME
    spent: Mapping[str, Any] | None = None  # the budget that cut it; {} when an operator did
    held_by: int = -1  # uid of the operator who cut or froze it; -1: nobody did
    lacks: str = ""  # what this host cannot hold of its policy, found when it was adopted: it stays cut
    attached: Attached | None = None  # None: agentmon started it
    unbegun: bool = False  # it was cut before its start was through: a start that fails still ends it
    restored: bool = False  # started again in the state it was saved in

    def with_phase(self, phase: Phase, **changes: Any) -> Bottle:
        return replace(self, phase=phase, **changes)


@dataclass(frozen=True, slots=True)
class Host:
    """Everything the machine decides on. `epoch` is the last one handed out; it only grows, over restarts too."""

    first_slot: int
    last_slot: int
    epoch: int = 0
    last: int = 0  # slot handed out last
    bottles: Mapping[int, Bottle] = field(default_factory=dict)
    saved: Mapping[str, Bottle] = field(default_factory=dict)  # by name: frozen, on disk and nowhere else
    workers: int = 1  # of the proxy: bottles are spread over them by slot
    unknown: frozenset[int] = frozenset()  # slots that stay held, of which nobody knows the policy: never handed out

    def find(self, name: str) -> Bottle | None:
        """A bottle by name, or by its slot written as a number."""
        for bottle in self.bottles.values():
            if bottle.name == name:
                return bottle
        return self.bottles.get(int(name)) if name.isdigit() else None

    def put(self, bottle: Bottle) -> Host:
        return replace(self, bottles={**self.bottles, bottle.slot: bottle})

    def drop(self, slot: int) -> Host:
        return replace(self, bottles={s: b for s, b in self.bottles.items() if s != slot})

    def keep(self, bottle: Bottle) -> Host:
        return replace(self, saved={**self.saved, bottle.name: bottle})

    def unkeep(self, name: str) -> Host:
        return replace(self, saved={n: b for n, b in self.saved.items() if n != name})

    def free_slot(self) -> int | None:
        """The next unused slot above the last one, wrapping: a freed address is used again as late as possible."""
        span = self.last_slot - self.first_slot + 1
        start = max(self.last + 1, self.first_slot) - self.first_slot
        for i in range(span):
            slot = self.first_slot + (start + i) % span
            if slot not in self.bottles and slot not in self.unknown:
                return slot
        return None
