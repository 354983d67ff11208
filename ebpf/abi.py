"""The layouts of bpf/am_abi.h in ctypes, and the constants of that header by name.

A test compiles the header with the C compiler and compares every offset and size; :func:`check` compares the sizes
with the loaded maps at every start.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64
from pathlib import Path

from ebpf.errors import Missing

SOURCES = Path(__file__).parent / "bpf"


def _constants() -> dict[str, int]:
    text = (SOURCES / "am_abi.h").read_text(encoding="utf-8")
    return {m[1]: int(m[2]) for m in re.finditer(r"^#define (AM_[A-Z0-9_]+) (\d+)\b", text, re.MULTILINE)}


C = _constants()
"""Every numeric #define of the header: declared once, in C."""

RANGES = C["AM_RANGES"]
NESTING = C["AM_NESTING"]
PREFIX_BASE = C["AM_PREFIX_BASE"]


def _names(prefix: str) -> tuple[str, ...]:
    return tuple(n[len(prefix) :].lower() for n in sorted((n for n in C if n.startswith(prefix)), key=C.__getitem__))


KINDS = _names("AM_KIND_")
VERDICTS = _names("AM_VERDICT_")
REASONS = _names("AM_REASON_")


FEATURES = {name: C[f"AM_FEATURE_{name.upper()}"] for name in ("vouch", "origin", "unix", "lsm")}
"""Optional groups of programs that the programs themselves and callers ask about, as bits of am_config.features."""


def feature_bits(names: Iterable[str]) -> int:
    """The bits of those `names` that have one."""
    return sum(FEATURES.get(name, 0) for name in set(names))


def feature_names(bits: int) -> frozenset[str]:
    return frozenset(name for name, bit in FEATURES.items() if bits & bit)


class Config(ctypes.Structure):
    _fields_ = (
        ("program_hash", c_uint64),
        ("bottle_level", c_uint32),
        ("flags", c_uint32),
        ("features", c_uint64),
    )


class Bottle(ctypes.Structure):
    _fields_ = (
        ("cgroup_id", c_uint64),
        ("netns_cookie", c_uint64),
        ("slot", c_uint32),
        ("policy_id", c_uint32),
        ("epoch", c_uint32),
        ("mode", c_uint8),
        ("flags", c_uint8),
        ("pad0", c_uint16),
    )


class ExactKey(ctypes.Structure):
    _fields_ = (
        ("policy_id", c_uint32),
        ("port", c_uint16),
        ("proto", c_uint8),
        ("pad0", c_uint8),
        ("addr", c_uint8 * 16),
    )


class ExactValue(ctypes.Structure):
    _fields_ = (("expires_ns", c_uint64), ("rule", c_uint32), ("flags", c_uint32))


class HostKey(ctypes.Structure):
    _fields_ = (("policy_id", c_uint32), ("proto", c_uint8), ("pad0", c_uint8 * 3), ("addr", c_uint8 * 16))


class PrefixKey(ctypes.Structure):
    _fields_ = (
        ("prefixlen", c_uint32),
        ("policy_id", c_uint32),
        ("proto", c_uint8),
        ("pad0", c_uint8 * 3),
        ("addr", c_uint8 * 16),
    )


class Range(ctypes.Structure):
    _fields_ = (("lo", c_uint16), ("hi", c_uint16), ("rule", c_uint32), ("expires_ns", c_uint64))


class Ranges(ctypes.Structure):
    _fields_ = (("count", c_uint32), ("shorter", c_uint32), ("range", Range * RANGES))


class ListenKey(ctypes.Structure):
    _fields_ = (("policy_id", c_uint32), ("proto", c_uint8), ("pad0", c_uint8 * 3))


class UnixKey(ctypes.Structure):
    _fields_ = (("prefixlen", c_uint32), ("policy_id", c_uint32), ("path", c_uint8 * C["AM_PATH_LEN"]))


class UnixValue(ctypes.Structure):
    _fields_ = (("rule", c_uint32), ("bytes", c_uint16), ("exact", c_uint8), ("own", c_uint8))


class Register(ctypes.Structure):
    _fields_ = (("token", c_uint64),)


class Vouch(ctypes.Structure):
    _fields_ = (
        ("addr", c_uint8 * 16),
        ("port", c_uint16),
        ("proto", c_uint8),
        ("pad0", c_uint8),
        ("pad1", c_uint32),
    )


class Vouches(ctypes.Structure):
    _fields_ = (("next", c_uint32), ("pad0", c_uint32), ("vouch", Vouch * C["AM_VOUCHES"]))


class Guarded(ctypes.Structure):
    _fields_ = (("token", c_uint64), ("since_ns", c_uint64), ("slot", c_uint32), ("pad0", c_uint32))


class Pending(ctypes.Structure):
    _fields_ = (
        ("ts_ns", c_uint64),
        ("pid_tgid", c_uint64),
        ("path", c_uint8 * C["AM_PATH_LEN"]),
        ("path_len", c_uint32),
    )


class OriginRecord(ctypes.Structure):
    _fields_ = (
        ("ts_ns", c_uint64),
        ("pid", c_uint32),
        ("tgid", c_uint32),
        ("nr", c_uint64),
        ("ip", c_uint64),
        ("sp", c_uint64),
        ("words", c_uint32),
        ("task", c_uint8),
        ("compat", c_uint8),
        ("path_len", c_uint16),
        ("path", c_uint8 * C["AM_PATH_LEN"]),
        ("pad0", c_uint32),
        ("word", c_uint64 * C["AM_STACK_WORDS"]),
    )


class SeenKey(ctypes.Structure):
    _fields_ = (
        ("slot", c_uint32),
        ("tgid", c_uint32),
        ("port", c_uint16),
        ("proto", c_uint8),
        ("kind", c_uint8),
        ("verdict", c_uint8),
        ("reason", c_uint8),
        ("pad0", c_uint16),
        ("addr", c_uint8 * 16),
    )


class EventRecord(ctypes.Structure):
    _fields_ = (
        ("ts_ns", c_uint64),
        ("cgroup_id", c_uint64),
        ("slot", c_uint32),
        ("epoch", c_uint32),
        ("pid", c_uint32),
        ("tgid", c_uint32),
        ("uid", c_uint32),
        ("rule", c_uint32),
        ("count", c_uint32),
        ("port", c_uint16),
        ("proto", c_uint8),
        ("kind", c_uint8),
        ("verdict", c_uint8),
        ("reason", c_uint8),
        ("family", c_uint8),
        ("socktype", c_uint8),
        ("origin", c_uint8),
        ("guarded", c_uint8),
        ("pad0", c_uint16),
        ("addr", c_uint8 * 16),
        ("comm", c_uint8 * C["AM_COMM_LEN"]),
    )


STRUCTS: dict[str, type[ctypes.Structure]] = {
    "am_config": Config,
    "am_bottle": Bottle,
    "am_exact_key": ExactKey,
    "am_exact_value": ExactValue,
    "am_host_key": HostKey,
    "am_prefix_key": PrefixKey,
    "am_range": Range,
    "am_ranges": Ranges,
    "am_listen_key": ListenKey,
    "am_unix_key": UnixKey,
    "am_unix_value": UnixValue,
    "am_register": Register,
    "am_vouch": Vouch,
    "am_vouches": Vouches,
    "am_guarded": Guarded,
    "am_pending": Pending,
    "am_origin": OriginRecord,
    "am_seen_key": SeenKey,
    "am_event": EventRecord,
}

MAPS: dict[str, tuple[int, int]] = {
    "am_config": (4, ctypes.sizeof(Config)),
    "am_bottle": (8, ctypes.sizeof(Bottle)),
    "am_exact": (ctypes.sizeof(ExactKey), ctypes.sizeof(ExactValue)),
    "am_host": (ctypes.sizeof(HostKey), ctypes.sizeof(Ranges)),
    "am_prefix": (ctypes.sizeof(PrefixKey), ctypes.sizeof(Ranges)),
    "am_deny": (ctypes.sizeof(PrefixKey), ctypes.sizeof(Ranges)),
    "am_seen": (ctypes.sizeof(SeenKey), ctypes.sizeof(EventRecord)),
    "am_listen": (ctypes.sizeof(ListenKey), ctypes.sizeof(Ranges)),
    "am_unix": (ctypes.sizeof(UnixKey), ctypes.sizeof(UnixValue)),
    "am_guarded": (4, ctypes.sizeof(Guarded)),
    "am_vouched": (4, ctypes.sizeof(Vouches)),
    "am_pending": (4, ctypes.sizeof(Pending)),
    "am_lost": (4, 8),
    "am_events": (0, 0),
    "am_origins": (0, 0),
}
"""Key and value bytes of every map."""


def check(name: str, key_bytes: int, value_bytes: int) -> None:
    """:raises Missing: a loaded map is not laid out as this code expects."""
    if MAPS[name] != (key_bytes, value_bytes):
        raise Missing(
            f"BPF map {name} with {MAPS[name]} bytes of key and value: the pinned one has {(key_bytes, value_bytes)}",
            "stop the daemon and remove its directory below /sys/fs/bpf; the next start makes new maps",
        )
