"""What the kernel's maps hold beside what a policy was encoded to: for a report, in words. Reads, changes nothing.

Elements are looked up one by one: maps of all bottles are never listed for one of them. What others with CAP_BPF added
under a policy's id is therefore not found; only root on the host could.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping

from ebpf import encode
from ebpf.encode import BottleState, Table
from ebpf.maps import Map

_SHOWN = 4


def differing(maps: Mapping[str, Map], kept: BottleState, tables: Mapping[str, Table]) -> list[str]:
    """Of one bottle: its element of am_bottle as we left it, and every element of its policy; at most a few.

    :param tables: encoded under `kept.policy_id`.
    """
    there = maps["am_bottle"].lookup(encode.bottle_key(kept.cgroup_id))
    if there is None:
        return ["its element of am_bottle is gone: everything is refused"]
    return list(itertools.islice(itertools.chain(_state(kept, there), _elements(maps, tables)), _SHOWN))


def _state(kept: BottleState, there: bytes) -> Iterator[str]:
    found = BottleState.unpack(there)
    for field in dataclasses.fields(BottleState):
        ours, theirs = getattr(kept, field.name), getattr(found, field.name)
        if ours != theirs:
            yield f"am_bottle: {field.name} is {theirs}, not {ours}"


def _elements(maps: Mapping[str, Map], tables: Mapping[str, Table]) -> Iterator[str]:
    for name, table in tables.items():
        of = maps[name]
        wide, deep = of.key_bytes, of.value_bytes
        for i in range(len(table.keys) // wide):
            key, value = table.keys[i * wide : (i + 1) * wide], table.values[i * deep : (i + 1) * deep]
            there = of.lookup(key)
            if there is None:
                yield f"{name}: element {key.hex()} is gone"
            elif there != value and not (name == "am_host" and _within(value, there)):
                yield f"{name}: element {key.hex()} was changed"


def _within(ranges: bytes, there: bytes) -> bool:
    """An address of the policy's may have learned more ranges of ports."""
    return set(encode.unpack_ranges(ranges)) <= set(encode.unpack_ranges(there))
