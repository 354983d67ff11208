"""CgroupPrograms: the kernel edge behind ebpf.spec.Bpf.

Single writer: one daemon at a time. The maps are the truth; what this object remembers (keys of each policy, so that
they can be removed again) is read back from them when it adopts pins. Not thread-safe: one thread calls everything.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ebpf import abi, cgroup, child, compare, encode, sources
from ebpf.collect import Collector
from ebpf.entries import Entries
from ebpf.errors import Misplaced, Missing, UnknownSlot
from ebpf.loader import Request
from ebpf.maps import Map
from ebpf.pins import BPFFS, Pins
from ebpf.spec import BottlePolicy, Entry, Event, Mode

SOURCE = "am_programs.bpf.c"
DEFAULT_PINS = BPFFS / "agentmon"
_ZERO = b"\0\0\0\0"


class CgroupPrograms:
    """Keeps ebpf.spec.Bpf on the running kernel. Needs root.

    `pin_dir` lies in a bpffs; two installations on one host need two. `log_allowed` reports permitted operations too.
    `flush_s`: how long repeats of an event are counted before they are reported.
    """

    def __init__(
        self,
        pin_dir: Path = DEFAULT_PINS,
        sizes: sources.Sizes | None = None,
        *,
        log_allowed: bool = False,
        flush_s: float = 1.0,
    ) -> None:
        self._sizes = sizes or sources.Sizes()
        self._pins = Pins(pin_dir, sources.layout(abi.SOURCES, self._sizes))
        self._flags = abi.C["AM_CONFIG_LOG_ALLOWED"] if log_allowed else 0
        self._flush_ns = int(flush_s * 1e9)
        self._maps: dict[str, Map] = {}
        self._bottles: dict[int, encode.BottleState] = {}
        self._policy_id = 0
        self._parent = Path("/")
        self.loader_log = ""
        """The whole text of compiler and verifier of the last load by this object."""
        self.left_out: dict[str, str] = {}
        """Groups of optional programs (ebpf.links.FEATURES) that this host does not take, with the reason."""
        self._entries: Entries | None = None
        self._collector: Collector | None = None

    # ---- life

    def open(self, cgroup_path: str) -> None:
        """See ebpf.spec.Bpf. Loading takes a child process and some 1.5 s of CPU; adopting, a few milliseconds.

        :raises Missing: bcc, bpffs or cgroup v2.
        :raises VerifierRefused: what was in force before still is.
        """
        self._forget()
        self._parent = Path(os.path.realpath(cgroup_path))
        bottle_level = cgroup.level(cgroup_path) + 1
        cgroup_id = cgroup.cgroup_id(cgroup_path)
        self._pins.prepare()
        if not self._is_current(cgroup_id, bottle_level):
            self.left_out, self.loader_log = child.run(
                Request(
                    SOURCE,
                    str(self._pins.maps),
                    str(self._pins.links),
                    cgroup_path,
                    cgroup_id,
                    bottle_level,
                    self._all_flags(),
                    self._sizes,
                    tuple(map(str, self._pins.attached())),
                )
            )
            self._pins.drop_stale()
            self._adopt()
        else:
            self._pins.drop_stale()
            self._adopt()
            missing = sorted(abi.FEATURES.keys() - self.features())
            self.left_out = dict.fromkeys(missing, "refused when the programs were loaded, by an earlier start")

    def close(self) -> None:
        self._forget()
        self._pins.remove()

    def release(self) -> None:
        """Close this object's descriptors and leave everything in force: what a stopping daemon does."""
        self._forget()

    # ---- policy

    def apply(self, policy: BottlePolicy) -> None:
        """See ebpf.spec.Bpf. Learned addresses are gone unless `policy.allow` names them (with a timeout); elements are
        keyed by an id of this object's own, not by `policy.policy_id`.

        :raises Unencodable: the policy has more ranges or nested networks than an element holds.
        :raises MapFull: nothing changed.
        """
        entries = self._open_entries()
        for other in self._bottles.values():
            if other.cgroup_id == policy.cgroup_id and other.slot != policy.slot:
                raise ValueError(f"cgroup {policy.cgroup_id} is the bottle in slot {other.slot} already")
        before = self._bottles.get(policy.slot)
        fresh = replace(policy, policy_id=self._next_policy_id())
        encoded = encode.encode(fresh, _now_ns())
        entries.write(fresh.policy_id, encoded.tables)
        state = encode.BottleState.unpack(encoded.bottle[1])
        if before is not None:
            state = replace(state, flags=state.flags | (before.flags & abi.C["AM_BOTTLE_ATTACHED"]))
        try:
            self._switch(state)
        except OSError:
            entries.remove(fresh.policy_id)
            raise
        if before is not None and before.cgroup_id != policy.cgroup_id:
            self._maps["am_bottle"].delete(encode.bottle_key(before.cgroup_id))
        if before is not None:
            entries.remove(before.policy_id)

    def learn(self, slot: int, entries: Sequence[Entry]) -> None:
        """Open single addresses for `timeout_s` from now (0: until the next apply); nothing is shortened.

        :raises UnknownSlot: no policy was applied to it.
        :raises Unencodable: a network, or more port ranges than an address can have.
        """
        writer, state = self._open_entries(), self._state(slot)
        unasked = state.flags & abi.C["AM_BOTTLE_NO_HOST"]
        if unasked and any(encode.split(entry)[1] for entry in entries if encode.is_host(entry.network)):
            self._switch(replace(state, flags=state.flags & ~unasked))  # first: what is learned is asked for
        writer.learn(state.policy_id, entries, _now_ns())

    def set_mode(self, slot: int, mode: Mode) -> None:
        """:raises UnknownSlot: no policy was applied to it."""
        self._switch(replace(self._state(slot), mode=mode))

    def _switch(self, state: encode.BottleState) -> None:
        """The one element that says what holds for a bottle."""
        self._maps["am_bottle"].update(encode.bottle_key(state.cgroup_id), state.pack())
        self._bottles[state.slot] = state

    def delete_bottle(self, slot: int) -> None:
        """Idempotent. Processes still in the cgroup are refused from then on."""
        entries = self._open_entries()
        state = self._bottles.pop(slot, None)
        if state is None:
            return
        self.detach(slot)
        self._maps["am_bottle"].delete(encode.bottle_key(state.cgroup_id))
        entries.remove(state.policy_id)
        if self._collector is not None:
            self._collector.flush()

    # ---- cgroups of others

    def attach(self, slot: int, cgroup_path: str) -> None:
        """See ebpf.spec.Bpf.

        :raises UnknownSlot: no policy was applied to it.
        :raises Misplaced: the cgroup is not that of the policy, or not beside the parent.
        :raises BpfError: a program that somebody attached there alone, for one.
        """
        state = self._state(slot)
        self._check_place(state, cgroup_path)
        self._switch(replace(state, flags=state.flags | abi.C["AM_BOTTLE_ATTACHED"]))
        self._write_flags(abi.C["AM_CONFIG_ATTACHED"])
        self._pins.attach(slot, cgroup_path, state.cgroup_id)

    def detach(self, slot: int) -> None:
        """See ebpf.spec.Bpf."""
        self._pins.detach(slot)
        self._write_flags(0)

    def attached(self) -> frozenset[int]:
        return frozenset(int(path.name) for path in self._pins.attached())

    def _check_place(self, state: encode.BottleState, cgroup_path: str) -> None:
        here = Path(os.path.realpath(cgroup_path))
        depth = cgroup.level(here)
        if cgroup.cgroup_id(here) != state.cgroup_id:
            raise Misplaced(f"{here} is not the cgroup of the policy of slot {state.slot}")
        if here == self._parent or here in self._parent.parents or self._parent in here.parents:
            raise Misplaced(f"{here} holds the bottles' cgroup {self._parent}, or is below it")
        if not 0 < depth <= abi.C["AM_LEVELS"]:
            raise Misplaced(f"{here} is {depth} levels deep; 1 to {abi.C['AM_LEVELS']} are looked at")

    def _write_flags(self, more: int) -> None:
        wanted = self._all_flags() | more
        config = self._maps["am_config"]
        in_force, level, flags, features = encode.CONFIG.unpack(config.lookup(_ZERO) or bytes(encode.CONFIG.size))
        if flags != wanted:
            config.update(_ZERO, encode.CONFIG.pack(in_force, level, wanted, features))

    def features(self) -> frozenset[str]:
        """The optional groups in force: "vouch", "origin", "unix"."""
        (*_, features) = encode.CONFIG.unpack(self._maps["am_config"].lookup(_ZERO) or bytes(encode.CONFIG.size))
        return abi.feature_names(features)

    def guarded(self) -> dict[int, int]:
        """See ebpf.spec.Bpf; processes that ended a moment ago may still be there."""
        return {
            struct.unpack("=I", key)[0]: int(encode.GUARDED.unpack(value)[2])
            for key, value in self._maps["am_guarded"].items()
        }

    def slots(self) -> frozenset[int]:
        return frozenset(self._bottles)

    def modes(self) -> dict[int, Mode]:
        """The mode of every bottle, as adopted or last set."""
        return {slot: state.mode for slot, state in self._bottles.items()}

    def table(self, name: str) -> Map:
        """One of the open maps, for tests and for figures; names are those of bpf/am_maps.h."""
        return self._maps[name]

    # ---- events

    def missing(self) -> list[str]:
        """See ebpf.spec.Bpf."""
        return self._pins.missing(cgroup.cgroup_id(str(self._parent)), self.features())

    def differing(self, policy: BottlePolicy) -> list[str]:
        """See ebpf.spec.Bpf."""
        state = self._state(policy.slot)
        encoded = encode.encode(replace(policy, policy_id=state.policy_id), _now_ns())
        return compare.differing(self._maps, state, encoded.tables)

    def fileno(self) -> int:
        return self._open_collector().fileno()

    def read(self) -> list[Event]:
        return self._open_collector().read()

    def lost(self) -> int:
        return self._open_collector().lost()

    def lost_origins(self) -> int:
        return self._open_collector().lost("AM_LOST_ORIGIN")

    def lost_guarded(self) -> int:
        """See ebpf.spec.Bpf."""
        return self._open_collector().lost("AM_LOST_GUARDED")

    # ---- inside

    def _all_flags(self) -> int:
        return self._flags | (abi.C["AM_CONFIG_ATTACHED"] if self._pins.attached() else 0)

    def _is_current(self, cgroup_id: int, bottle_level: int) -> bool:
        """Whether the programs in force are these, on this cgroup; if so, only the flags may need writing."""
        path = self._pins.maps / "am_config"
        if not path.exists():
            return False
        text = sources.program_text(abi.SOURCES, SOURCE)
        with Map(str(path)) as config:
            in_force, level, flags, features = encode.CONFIG.unpack(config.lookup(_ZERO) or bytes(encode.CONFIG.size))
            if in_force != sources.program_hash(text, self._sizes) or level != bottle_level:
                return False
            if not self._pins.in_force(cgroup_id, abi.feature_names(features)):
                return False
            if flags != self._all_flags():
                config.update(_ZERO, encode.CONFIG.pack(in_force, level, self._all_flags(), features))
        return True

    def _adopt(self) -> None:
        for name in abi.MAPS:
            table = self._maps[name] = Map(str(self._pins.maps / name))
            abi.check(name, table.key_bytes, table.value_bytes)
        for _, value in self._maps["am_bottle"].items():
            state = encode.BottleState.unpack(value)
            self._bottles[state.slot] = state
        self._entries = Entries(self._maps)
        self._entries.adopt({s.policy_id for s in self._bottles.values()})
        self._collector = Collector(self._maps, self._sizes.ring_bytes, self._sizes.origin_bytes, self._flush_ns)

    def _forget(self) -> None:
        if self._collector is not None:
            self._collector.close()
        for table in self._maps.values():
            table.close()
        self._maps.clear()
        self._bottles.clear()
        self._entries = None
        self._collector = None

    def _next_policy_id(self) -> int:
        """A key that no element in the maps has: the maps outlive callers, who may count from one again."""
        self._policy_id = max(self._policy_id, *(s.policy_id for s in self._bottles.values()), 0) + 1
        return self._policy_id

    def _state(self, slot: int) -> encode.BottleState:
        state = self._bottles.get(slot)
        if state is None:
            raise UnknownSlot(slot)
        return state

    def _open_entries(self) -> Entries:
        if self._entries is None:
            raise _not_open()
        return self._entries

    def _open_collector(self) -> Collector:
        if self._collector is None:
            raise _not_open()
        return self._collector


def _not_open() -> Missing:
    return Missing("open BPF programs", "call open(cgroup) before anything else")


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
