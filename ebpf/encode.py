"""BottlePolicy → the bytes of its map elements. Pure and deterministic: same policy and clock, same bytes.

Which map an entry goes to:

    services, single addresses with few ports   → am_exact
    single addresses with wide port ranges      → am_host
    networks                                    → am_prefix (a trie finds the longest only; `shorter` leads outwards)
    deny                                        → am_deny (single addresses too)
    ports to listen on                          → am_listen      paths of unix sockets → am_unix

Allow entries for IPv6 never open IPv4 addresses, although both stand in one map.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from ebpf import abi
from ebpf.errors import Unencodable
from ebpf.spec import Address, BottlePolicy, Entry, Guard, Listen, Mode, Network, Proto

EXACT_SPAN = 16  # a range of at most so many ports becomes single entries in the faster map
PROTO = {"tcp": 6, "udp": 17}

CONFIG = struct.Struct("=QIIQ")
BOTTLE = struct.Struct("=QQIIIBBH")
EXACT_KEY = struct.Struct("=IHBx16s")
EXACT_VALUE = struct.Struct("=QII")
HOST_KEY = struct.Struct("=IB3x16s")
PREFIX_KEY = struct.Struct("=IIB3x16s")
RANGE = struct.Struct("=HHIQ")
RANGES_HEAD = struct.Struct("=II")
LISTEN_KEY = struct.Struct("=IB3x")
UNIX_KEY = struct.Struct(f"=II{abi.C['AM_PATH_LEN']}s")
UNIX_VALUE = struct.Struct("=IHBB")
_NEVER = 0xFFFF  # `bytes` of a closed directory
GUARDED = struct.Struct("=QQI4x")
RANGES_BYTES = RANGES_HEAD.size + abi.RANGES * RANGE.size

_MAPPED = b"\0" * 10 + b"\xff\xff"
_MAPPED_BITS = 96
_FOREVER = 1 << 64

PortRange = tuple[int, int, int, int]  # lo, hi, rule, expires_ns (0: for ever)
Prefix = tuple[int, bytes, int]  # protocol number, 16 address bytes, bits of them


@dataclass(frozen=True, slots=True)
class Table:
    """Elements of one map, sorted by key: keys end to end, values end to end."""

    keys: bytes = b""
    values: bytes = b""
    count: int = 0

    @classmethod
    def of(cls, elements: dict[bytes, bytes]) -> Table:
        ordered = sorted(elements)
        return cls(b"".join(ordered), b"".join(elements[k] for k in ordered), len(ordered))


@dataclass(frozen=True, slots=True)
class Encoded:
    """Everything one policy puts into the maps; `bottle` is the element that switches to it."""

    bottle: tuple[bytes, bytes]
    tables: dict[str, Table]  # am_exact, am_host, am_prefix, am_deny, am_listen, am_unix


@dataclass(frozen=True, slots=True)
class BottleState:
    """The value of one am_bottle element."""

    cgroup_id: int
    netns_cookie: int
    slot: int
    policy_id: int
    epoch: int
    mode: Mode
    flags: int

    def pack(self) -> bytes:
        return BOTTLE.pack(
            self.cgroup_id, self.netns_cookie, self.slot, self.policy_id, self.epoch, self.mode, self.flags, 0
        )

    @classmethod
    def unpack(cls, raw: bytes) -> BottleState:
        cgroup_id, cookie, slot, policy_id, epoch, mode, flags, _ = BOTTLE.unpack(raw)
        return cls(cgroup_id, cookie, slot, policy_id, epoch, Mode(mode), flags)


def bottle_key(cgroup_id: int) -> bytes:
    return struct.pack("=Q", cgroup_id)


def address_bytes(address: Address) -> bytes:
    """16 bytes in network order, IPv4 as ::ffff:a.b.c.d."""
    return _MAPPED + address.packed if address.version == 4 else address.packed


def exact_key(policy_id: int, proto: Proto, port: int, address: Address) -> bytes:
    return EXACT_KEY.pack(policy_id, port, PROTO[proto], address_bytes(address))


def host_key(policy_id: int, proto: Proto, address: Address) -> bytes:
    return HOST_KEY.pack(policy_id, PROTO[proto], address_bytes(address))


def expiry(entry: Entry, now_ns: int) -> int:
    return now_ns + entry.timeout_s * 1_000_000_000 if entry.timeout_s > 0 else 0


def is_host(network: Network) -> bool:
    return network.prefixlen == network.max_prefixlen


def split(entry: Entry) -> tuple[list[int], list[tuple[int, int]]]:
    """A single address's ports: those that become exact entries, and the ranges that stay ranges.

    :raises Unencodable: a port range that is none.
    """
    ports: list[int] = []
    ranges: list[tuple[int, int]] = []
    for lo, hi in _checked(entry):
        if hi - lo < EXACT_SPAN:
            ports.extend(range(lo, hi + 1))
        else:
            ranges.append((lo, hi))
    return ports, ranges


def longest(a: int, b: int) -> int:
    """The later of two expiries, where 0 is never."""
    return 0 if 0 in (a, b) else max(a, b)


def encode(policy: BottlePolicy, now_ns: int) -> Encoded:
    """All elements of `policy`; timeouts count from `now_ns` (CLOCK_BOOTTIME).

    :raises Unencodable: more ranges or nested prefixes than an element holds, or a bad port.
    """
    exact: dict[bytes, tuple[int, int, int]] = {}
    hosts: dict[Prefix, list[PortRange]] = {}
    prefixes: dict[Prefix, list[PortRange]] = {}
    denied: dict[Prefix, list[PortRange]] = {}
    for entry in policy.allow:
        _add_allow(policy.policy_id, entry, expiry(entry, now_ns), exact, hosts, prefixes)
    for entry in policy.deny:
        denied.setdefault(_prefix(entry), []).extend((lo, hi, entry.rule, 0) for lo, hi in _checked(entry))
    for service in policy.services:
        flags = abi.C["AM_EXACT_SERVICE"]
        flags |= abi.C["AM_EXACT_SURVIVES_CUT"] if service.survives_cut else 0
        flags |= abi.C["AM_EXACT_UNVOUCHED"] if service.unvouched else 0
        exact[exact_key(policy.policy_id, service.proto, service.port, service.address)] = (0, 0, flags)
    flags = (abi.C["AM_BOTTLE_DENY"] if denied else 0) | (abi.C["AM_BOTTLE_PREFIX"] if prefixes else 0)
    flags |= 0 if hosts else abi.C["AM_BOTTLE_NO_HOST"]
    flags |= abi.C["AM_BOTTLE_GUARD"] if policy.guard is not Guard.OFF else 0
    flags |= abi.C["AM_BOTTLE_STRICT"] if policy.guard is Guard.STRICT else 0
    flags |= abi.C["AM_BOTTLE_LISTEN"] if policy.listen is not None else 0
    flags |= abi.C["AM_BOTTLE_UNIX"] if policy.unix is not None else 0
    state = BottleState(
        policy.cgroup_id, policy.netns_cookie, policy.slot, policy.policy_id, policy.epoch, policy.mode, flags
    )
    return Encoded(
        (bottle_key(policy.cgroup_id), state.pack()),
        {
            "am_exact": Table.of({k: EXACT_VALUE.pack(*v) for k, v in exact.items()}),
            "am_host": Table.of(
                {HOST_KEY.pack(policy.policy_id, p[0], p[1]): ranges_bytes(r, 0, _name(p)) for p, r in hosts.items()}
            ),
            "am_prefix": _trie(policy.policy_id, prefixes),
            "am_deny": _trie(policy.policy_id, denied),
            "am_listen": _listen(policy.policy_id, policy.listen or ()),
            "am_unix": _unix(policy),
        },
    )


def ranges_bytes(ranges: Iterable[PortRange], shorter: int, name: str) -> bytes:
    """struct am_ranges: overlapping ranges of one rule merged, the longest-lived first.

    :raises Unencodable: more than AM_RANGES remain.
    """
    merged = _merge(ranges)
    if len(merged) > abi.RANGES:
        raise Unencodable(
            f"{name}: {len(merged)} port ranges, {abi.RANGES} fit", "write fewer or wider port ranges for this address"
        )
    body = b"".join(RANGE.pack(*r) for r in merged)
    return (RANGES_HEAD.pack(len(merged), shorter) + body).ljust(RANGES_BYTES, b"\0")


def unpack_ranges(raw: bytes) -> list[PortRange]:
    count, _ = RANGES_HEAD.unpack_from(raw)
    return [RANGE.unpack_from(raw, RANGES_HEAD.size + i * RANGE.size) for i in range(count)]


def _listen(policy_id: int, listen: Iterable[Listen]) -> Table:
    ranges: dict[Proto, list[PortRange]] = {}
    for port in listen:
        if not 1 <= port.lo <= port.hi <= 65535:
            raise Unencodable(f"listen: ports {port.lo}-{port.hi}", "ports are 1 to 65535, the lower one first")
        ranges.setdefault(port.proto, []).append((port.lo, port.hi, 0, 0))
    return Table.of(
        {LISTEN_KEY.pack(policy_id, PROTO[p]): ranges_bytes(r, 0, f"listen: {p}") for p, r in ranges.items()}
    )


def _unix(policy: BottlePolicy) -> Table:
    """The longest prefix answers: a path that the directory around it says the same of needs no element of its own, and
    would hide the directory. No path is as long as what a closed one asks for."""
    given = {_unix_path(path) for path in policy.unix_given}
    raw = {p: (False, p not in given) for p in map(_unix_path, policy.unix or ())}
    raw |= {_unix_path(path): (True, False) for path in policy.unix_closed}
    table = {}
    for path, (shut, own) in raw.items():
        around = (path[:end] for end in range(len(path) - 1, 0, -1) if path[end - 1 : end] == b"/")
        if (shut, own) == next((raw[d] for d in around if d in raw), (True, False)):
            continue
        value = UNIX_VALUE.pack(0, _NEVER if shut else len(path), int(not path.endswith(b"/")), int(own))
        table[UNIX_KEY.pack(32 + 8 * len(path), policy.policy_id, path)] = value
    return Table.of(table)


def _unix_path(text: str) -> bytes:
    path = os.fsencode(text)
    parts = path.split(b"/")[1:-1] + [p for p in path.split(b"/")[-1:] if p]
    if not path.startswith(b"/") or b"\0" in path or any(p in (b"", b".") or p.startswith(b"..") for p in parts):
        raise Unencodable(
            f"unix: {os.fsdecode(path)!r}", "write an absolute path without //, . and ..; a directory ends in /"
        )
    if len(path) > abi.C["AM_PATH_LEN"] - 1:
        raise Unencodable(
            f"unix: {os.fsdecode(path)!r} is longer than a socket's path can be",
            f"at most {abi.C['AM_PATH_LEN'] - 1} bytes; name a directory above it",
        )
    return path


def _add_allow(
    policy_id: int,
    entry: Entry,
    expires_ns: int,
    exact: dict[bytes, tuple[int, int, int]],
    hosts: dict[Prefix, list[PortRange]],
    prefixes: dict[Prefix, list[PortRange]],
) -> None:
    if not is_host(entry.network):
        if expires_ns:
            raise Unencodable(
                f"{entry.network}: a network with a timeout", "only single addresses are learned for a time"
            )
        prefixes.setdefault(_prefix(entry), []).extend((lo, hi, entry.rule, 0) for lo, hi in _checked(entry))
        return
    ports, ranges = split(entry)
    for port in ports:
        key = exact_key(policy_id, entry.proto, port, entry.network.network_address)
        before = exact.get(key)
        if before is None:
            exact[key] = (expires_ns, entry.rule, 0)
        else:
            exact[key] = (longest(before[0], expires_ns), min(before[1], entry.rule), 0)
    if ranges:
        hosts.setdefault(_prefix(entry), []).extend((lo, hi, entry.rule, expires_ns) for lo, hi in ranges)


def _checked(entry: Entry) -> tuple[tuple[int, int], ...]:
    for lo, hi in entry.ports:
        if not 1 <= lo <= hi <= 65535:
            raise Unencodable(f"{entry.network}: ports {lo}-{hi}", "ports are 1 to 65535, the lower one first")
    return entry.ports


def _prefix(entry: Entry) -> Prefix:
    network = entry.network
    bits = network.prefixlen + (_MAPPED_BITS if network.version == 4 else 0)
    return PROTO[entry.proto], address_bytes(network.network_address), bits


def _name(prefix: Prefix) -> str:
    proto, raw, bits = prefix
    text = "tcp" if proto == PROTO["tcp"] else "udp"
    if raw.startswith(_MAPPED) and bits >= _MAPPED_BITS:
        return f"{'.'.join(str(b) for b in raw[12:])}/{bits - _MAPPED_BITS} {text}"
    return f"{raw.hex(':', 2)}/{bits} {text}"


def _merge(ranges: Iterable[PortRange]) -> list[PortRange]:
    """Overlapping and adjacent ranges of one rule and expiry become one; never-ending first, then the latest expiry."""
    merged: list[PortRange] = []
    for lo, hi, rule, expires_ns in sorted(set(ranges), key=lambda r: (-(r[3] or _FOREVER), r[2], r[0], r[1])):
        if merged and merged[-1][2:] == (rule, expires_ns) and lo <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(hi, merged[-1][1]), rule, expires_ns)
        else:
            merged.append((lo, hi, rule, expires_ns))
    return merged


def _trie(policy_id: int, prefixes: dict[Prefix, list[PortRange]]) -> Table:
    """Elements of a trie. An IPv6 prefix around ::ffff:0:0/96 would cover all of IPv4: an empty element stops it."""
    if not prefixes:
        return Table()
    wall = _MAPPED.ljust(16, b"\0")
    walled = dict(prefixes)
    for proto in sorted({p for p, raw, bits in prefixes if bits < _MAPPED_BITS and _covers(raw, bits, wall)}):
        walled.setdefault((proto, wall, _MAPPED_BITS), [])
    elements: dict[bytes, bytes] = {}
    around: list[tuple[int, int, int]] = []  # protocol, first address, bits: the prefixes that enclose the current one
    for proto, raw, bits in sorted(walled):
        first = int.from_bytes(raw, "big")
        while around and not (around[-1][0] == proto and _within(first, bits, around[-1])):
            around.pop()
        outermost = not around or (raw == wall and bits == _MAPPED_BITS)
        if len(around) >= abi.NESTING:
            raise Unencodable(
                f"{_name((proto, raw, bits))}: {len(around) + 1} networks inside each other, at most {abi.NESTING}",
                "write fewer networks that contain each other",
            )
        shorter = 0 if outermost else abi.PREFIX_BASE + around[-1][2]
        value = ranges_bytes(walled[(proto, raw, bits)], shorter, _name((proto, raw, bits)))
        elements[PREFIX_KEY.pack(abi.PREFIX_BASE + bits, policy_id, proto, raw)] = value
        around.append((proto, first, bits))
    return Table.of(elements)


def _covers(raw: bytes, bits: int, inner: bytes) -> bool:
    return _within(int.from_bytes(inner, "big"), _MAPPED_BITS, (0, int.from_bytes(raw, "big"), bits))


def _within(first: int, bits: int, outer: tuple[int, int, int]) -> bool:
    return bits >= outer[2] and (first ^ outer[1]) >> (128 - outer[2]) == 0
