"""The elements of all policies in the deciding maps: written before a switch, removed after it, learned in between.

Keys begin with the policy's id (after prefixlen in tries), so that a new policy stands beside the old one and a reader
sees one of them whole.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ebpf import encode
from ebpf.encode import Table
from ebpf.errors import Unencodable
from ebpf.maps import Map
from ebpf.spec import Entry

TABLES = ("am_exact", "am_host", "am_prefix", "am_deny", "am_listen", "am_unix")
_POLICY_AT = {"am_exact": 0, "am_host": 0, "am_prefix": 4, "am_deny": 4, "am_listen": 0, "am_unix": 4}
SWEEP_NS = 60_000_000_000  # expired entries stay a while, so that a refusal can say "expired"


class Entries:
    """Writer of am_exact, am_host, am_prefix and am_deny."""

    def __init__(self, maps: dict[str, Map]) -> None:
        self._maps = maps
        self._keys: dict[int, dict[str, set[bytes]]] = {}  # policy → table → keys
        self._expiring: dict[tuple[str, bytes], int] = {}
        self._swept_ns = 0

    def adopt(self, policies: set[int]) -> None:
        """Learn from the maps which keys belong to `policies`; remove all others (a switch that was never made)."""
        for table in TABLES:
            orphans = []
            for key, value in self._maps[table].items():
                (policy_id,) = struct.unpack_from("=I", key, _POLICY_AT[table])
                if policy_id in policies:
                    self._keys_of(policy_id, table).add(key)
                    self._note_expiry(table, key, _expires_ns(table, value))
                else:
                    orphans.append(key)
            self._maps[table].delete_batch(b"".join(orphans))

    def write(self, policy_id: int, tables: dict[str, Table]) -> None:
        """Write all elements of a policy whose id is new.

        :raises MapFull: what was added is removed again.
        """
        keys = {name: set(_pieces(t.keys, self._maps[name].key_bytes)) for name, t in tables.items()}
        tried: list[str] = []
        try:
            for name, table in tables.items():
                tried.append(name)
                self._maps[name].update_batch(table.keys, table.values)
        except OSError:
            for name in tried:
                self._maps[name].delete_batch(b"".join(keys[name]))
            raise
        self._keys[policy_id] = keys
        for name in ("am_exact", "am_host"):
            table, of = tables[name], self._maps[name]
            for key, value in zip(
                _pieces(table.keys, of.key_bytes), _pieces(table.values, of.value_bytes), strict=True
            ):
                self._note_expiry(name, key, _expires_ns(name, value))

    def remove(self, policy_id: int) -> None:
        """Every element of a policy; nobody may be switched to it."""
        for name, keys in self._keys.pop(policy_id, {}).items():
            self._maps[name].delete_batch(b"".join(keys))
            for key in keys:
                self._expiring.pop((name, key), None)

    def learn(self, policy_id: int, entries: Sequence[Entry], now_ns: int) -> None:
        for entry in entries:
            if not encode.is_host(entry.network):
                raise Unencodable(f"{entry.network}: a network cannot be learned", "learn single addresses")
            expires_ns = encode.expiry(entry, now_ns)
            ports, ranges = encode.split(entry)
            for port in ports:
                self._learn_port(policy_id, entry, port, expires_ns)
            if ranges:
                self._learn_ranges(policy_id, entry, ranges, expires_ns, now_ns)
        if now_ns - self._swept_ns > SWEEP_NS:
            self._sweep(now_ns)

    def _learn_port(self, policy_id: int, entry: Entry, port: int, expires_ns: int) -> None:
        table = self._maps["am_exact"]
        key = encode.exact_key(policy_id, entry.proto, port, entry.network.network_address)
        rule, flags = entry.rule, 0
        before = table.lookup(key)
        if before is not None:
            old_ns, rule, flags = encode.EXACT_VALUE.unpack(before)
            expires_ns = encode.longest(old_ns, expires_ns)
        table.update(key, encode.EXACT_VALUE.pack(expires_ns, rule, flags))
        self._note("am_exact", policy_id, key, expires_ns)

    def _learn_ranges(
        self, policy_id: int, entry: Entry, ranges: list[tuple[int, int]], expires_ns: int, now_ns: int
    ) -> None:
        table = self._maps["am_host"]
        key = encode.host_key(policy_id, entry.proto, entry.network.network_address)
        before = table.lookup(key)
        merged = {r[:3]: r[3] for r in encode.unpack_ranges(before)} if before is not None else {}
        merged = {r: ns for r, ns in merged.items() if not 0 < ns <= now_ns}
        for lo, hi in ranges:
            old_ns = merged.get((lo, hi, entry.rule))
            merged[(lo, hi, entry.rule)] = expires_ns if old_ns is None else encode.longest(old_ns, expires_ns)
        all_ranges = [(*r, ns) for r, ns in merged.items()]
        table.update(key, encode.ranges_bytes(all_ranges, 0, f"{entry.network} {entry.proto}"))
        last_ns = 0
        if all(r[3] for r in all_ranges):
            last_ns = max(r[3] for r in all_ranges)
        self._note("am_host", policy_id, key, last_ns)

    def _note(self, table: str, policy_id: int, key: bytes, expires_ns: int) -> None:
        self._keys_of(policy_id, table).add(key)
        self._note_expiry(table, key, expires_ns)

    def _note_expiry(self, table: str, key: bytes, expires_ns: int) -> None:
        if expires_ns:
            self._expiring[(table, key)] = expires_ns
        else:
            self._expiring.pop((table, key), None)

    def _sweep(self, now_ns: int) -> None:
        """Remove what expired a while ago."""
        self._swept_ns = now_ns
        gone = [at for at, expires_ns in self._expiring.items() if expires_ns + SWEEP_NS < now_ns]
        for table, key in gone:
            self._maps[table].delete(key)
            del self._expiring[(table, key)]
            (policy_id,) = struct.unpack_from("=I", key, _POLICY_AT[table])
            self._keys_of(policy_id, table).discard(key)

    def _keys_of(self, policy_id: int, table: str) -> set[bytes]:
        return self._keys.setdefault(policy_id, {}).setdefault(table, set())


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


def _expires_ns(table: str, value: bytes) -> int:
    """When the element may be removed; 0: never."""
    if table == "am_exact":
        return int(encode.EXACT_VALUE.unpack(value)[0])
    if table == "am_host":
        ends = [r[3] for r in encode.unpack_ranges(value)]
        return max(ends) if ends and all(ends) else 0
    return 0
