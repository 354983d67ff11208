"""FakeBpf: ebpf.spec.Bpf in memory, under the same contract tests as the kernel edge."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace

from ebpf import encode, model, sources
from ebpf.errors import MapFull, Missing, Unencodable, UnknownSlot
from ebpf.spec import Address, BottlePolicy, Entry, Event, Mode, Proto


class FakeBpf:
    """Keeps what it is told and decides as the programs do. `emit` plays the kernel's part for events."""

    def __init__(self, sizes: sources.Sizes | None = None) -> None:
        self.sizes = sizes or sources.Sizes()
        self.cgroup: str | None = None
        self.policies: dict[int, BottlePolicy] = {}
        self.learned: dict[int, list[model.Learned]] = {}
        self.processes: dict[int, int] = {}
        self.places: dict[int, str] = {}
        self._waiting: list[Event] = []
        self._lost = 0
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def open(self, cgroup: str) -> None:
        self.cgroup = cgroup

    def close(self) -> None:
        self.cgroup = None
        self.policies.clear()
        self.learned.clear()
        self.places.clear()
        self._waiting.clear()

    def release(self) -> None:
        self.cgroup = None

    def apply(self, policy: BottlePolicy) -> None:
        self._check_open()
        for slot, other in self.policies.items():
            if slot == policy.slot:
                continue
            if other.cgroup_id == policy.cgroup_id:
                raise ValueError(f"cgroup {policy.cgroup_id} is the bottle in slot {slot} already")
        now_ns = _now_ns()
        self._check_room({**self.policies, policy.slot: policy}, now_ns)
        self.policies[policy.slot] = policy
        self.learned[policy.slot] = [model.Learned(e, encode.expiry(e, now_ns)) for e in policy.allow if e.timeout_s]

    def learn(self, slot: int, entries: Sequence[Entry]) -> None:
        self._check_open()
        if slot not in self.policies:
            raise UnknownSlot(slot)
        now_ns = _now_ns()
        for entry in entries:
            if not encode.is_host(entry.network):
                raise Unencodable(f"{entry.network}: a network cannot be learned", "learn single addresses")
            encode.split(entry)
            self.learned[slot].append(model.Learned(entry, encode.expiry(entry, now_ns)))

    def set_mode(self, slot: int, mode: Mode) -> None:
        if slot not in self.policies:
            raise UnknownSlot(slot)
        self.policies[slot] = replace(self.policies[slot], mode=mode)

    def delete_bottle(self, slot: int) -> None:
        self._check_open()
        self.policies.pop(slot, None)
        self.learned.pop(slot, None)
        self.places.pop(slot, None)

    def slots(self) -> frozenset[int]:
        return frozenset(self.policies)

    def attach(self, slot: int, cgroup_path: str) -> None:
        if slot not in self.policies:
            raise UnknownSlot(slot)
        self.places[slot] = cgroup_path

    def detach(self, slot: int) -> None:
        self.places.pop(slot, None)

    def attached(self) -> frozenset[int]:
        return frozenset(self.places)

    def features(self) -> frozenset[str]:
        return frozenset(("vouch", "origin", "unix"))

    def lost_guarded(self) -> int:
        self._check_open()
        return 0

    def guarded(self) -> dict[int, int]:
        return dict(self.processes)

    def modes(self) -> dict[int, Mode]:
        return {slot: policy.mode for slot, policy in self.policies.items()}

    def missing(self) -> list[str]:
        self._check_open()
        return []

    def differing(self, policy: BottlePolicy) -> list[str]:
        self._check_open()
        there = self.policies.get(policy.slot)
        if there is None:
            raise UnknownSlot(policy.slot)
        return (
            []
            if replace(policy, policy_id=there.policy_id, mode=there.mode) == there
            else ["its policy is another one"]
        )

    def fileno(self) -> int:
        self._check_open()
        return self._wake

    def read(self) -> list[Event]:
        self._check_open()
        waiting, self._waiting = self._waiting, []
        if waiting:
            os.eventfd_read(self._wake)
        return waiting

    def lost(self) -> int:
        self._check_open()
        return self._lost

    def lost_origins(self) -> int:
        self._check_open()
        return 0

    # ---- what the kernel does by itself

    def emit(self, event: Event) -> None:
        self._waiting.append(event)
        os.eventfd_write(self._wake, 1)

    def lose(self, events: int) -> None:
        self._lost += events

    def verdict(self, slot: int, proto: Proto, address: Address, port: int, cookie: int = 0) -> model.Verdict:
        """What a process of the bottle would be told."""
        to = (address, port)
        return model.decide(self.policies.get(slot), self.learned.get(slot, ()), cookie, proto, to, _now_ns())

    def _check_open(self) -> None:
        if self.cgroup is None:
            raise Missing("open BPF programs", "call open(cgroup) before anything else")

    def _check_room(self, policies: dict[int, BottlePolicy], now_ns: int) -> None:
        """The limits that the kernel's maps have."""
        if len(policies) > self.sizes.bottles:
            raise MapFull("am_bottle", self.sizes.bottles)
        new = [encode.encode(p, now_ns) for p in policies.values()]
        limits = {
            "am_exact": self.sizes.exact,
            "am_host": self.sizes.host,
            "am_prefix": self.sizes.prefix,
            "am_deny": self.sizes.prefix,
            "am_listen": self.sizes.listen,
            "am_unix": self.sizes.unix,
        }
        for table, limit in limits.items():
            if sum(e.tables[table].count for e in new) > limit:
                raise MapFull(table, limit)


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
