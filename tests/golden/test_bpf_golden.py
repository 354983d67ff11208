"""Policies and the exact bytes they put into the maps. A change of these files is a change of the kernel interface.

NAME.json is the policy, NAME.txt the elements: table, key, value in hexadecimal, spaces between fields.
`UPDATE_GOLDEN=1 pytest tests/golden` writes the .txt files anew; read the difference before committing it.
"""

from __future__ import annotations

import json
import os
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from ebpf import encode
from ebpf.spec import BottlePolicy, Endpoint, Entry, Guard, Listen, Mode

DIRECTORY = Path(__file__).parent / "ebpf"
NOW_NS = 1_000_000_000
FIELDS = {  # bytes of each field, for reading
    "am_bottle": ((8,), (8, 8, 4, 4, 4, 1, 1, 2)),
    "am_exact": ((4, 2, 1, 1, 16), (8, 4, 4)),
    "am_host": ((4, 1, 3, 16), (4, 4)),
    "am_prefix": ((4, 4, 1, 3, 16), (4, 4)),
    "am_deny": ((4, 4, 1, 3, 16), (4, 4)),
    "am_listen": ((4, 1, 3), (4, 4)),
    "am_unix": ((4, 4, 108), (4, 2, 1, 1)),
}
RANGE = (2, 2, 4, 8)


def read(data: dict[str, Any]) -> BottlePolicy:
    def entries(rows: list[dict[str, Any]]) -> tuple[Entry, ...]:
        return tuple(
            Entry(
                ip_network(r["network"]),
                r["proto"],
                tuple((lo, hi) for lo, hi in r["ports"]),
                r.get("rule", 0),
                r.get("timeout_s", 0),
            )
            for r in rows
        )

    services = tuple(
        Endpoint(ip_address(s["address"]), s["proto"], s["port"], s["survives_cut"], s.get("unvouched", False))
        for s in data.get("services", [])
    )
    return BottlePolicy(
        data["slot"],
        data["cgroup_id"],
        data["policy_id"],
        data["epoch"],
        Mode[data["mode"]],
        services,
        entries(data.get("allow", [])),
        entries(data.get("deny", [])),
        data.get("netns_cookie", 0),
        Guard[data.get("guard", "OFF")],
        None if "listen" not in data else tuple(Listen(*row) for row in data["listen"]),
        None if "unix" not in data else tuple(data["unix"]),
    )


def spaced(raw: bytes, sizes: tuple[int, ...]) -> str:
    parts, at = [], 0
    for size in sizes:
        parts.append(raw[at : at + size].hex())
        at += size
    return " ".join(parts)


def text(made: encode.Encoded) -> str:
    key, value = made.bottle
    lines = [f"am_bottle {spaced(key, FIELDS['am_bottle'][0])} = {spaced(value, FIELDS['am_bottle'][1])}"]
    for name, table in made.tables.items():
        sizes_key, sizes_value = FIELDS[name]
        for i in range(table.count):
            key = table.keys[i * sum(sizes_key) :][: sum(sizes_key)]
            width = len(table.values) // table.count
            value = table.values[i * width :][:width]
            lines.append(f"{name} {spaced(key, sizes_key)} = {spaced(value, sizes_value)}")
            if width > sum(sizes_value):
                tail = value[sum(sizes_value) :]
                ranges = [tail[j : j + sum(RANGE)] for j in range(0, len(tail), sum(RANGE))]
                assert all(not any(r) for r in ranges[int.from_bytes(value[:4], "little") :])
                lines += [f"    {spaced(r, RANGE)}" for r in ranges if any(r)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", sorted(DIRECTORY.glob("*.json")), ids=lambda p: p.stem)
def test_bpf_golden(path: Path) -> None:
    found = text(encode.encode(read(json.loads(path.read_text())), NOW_NS))
    expected = path.with_suffix(".txt")
    if os.environ.get("UPDATE_GOLDEN"):
        expected.write_text(found)
    assert found == expected.read_text()


def test_bpf_golden_files_are_pairs() -> None:
    assert {p.stem for p in DIRECTORY.glob("*.json")} == {p.stem for p in DIRECTORY.glob("*.txt")} != set()
