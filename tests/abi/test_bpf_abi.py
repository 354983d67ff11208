"""am_abi.h as the C compiler lays it out, against ebpf/abi.py, encode.py and events.py."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ebpf import abi, encode, events
from ebpf.errors import Missing

HEADER = abi.SOURCES / "am_abi.h"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """Struct → field → offset, "" → size, from a program that the C compiler built."""
    cc = shutil.which("cc") or shutil.which("gcc")
    if cc is None:
        pytest.skip("needs a C compiler: apt-get install gcc libc6-dev")
    where = tmp_path_factory.mktemp("abi")
    lines = ['printf("{");']
    for number, (name, struct_) in enumerate(abi.STRUCTS.items()):
        comma = "," if number else ""
        lines.append(f'printf("{comma}\\"{name}\\": {{\\"\\": %zu", sizeof(struct {name}));')
        for field, *_ in struct_._fields_:
            lines.append(f'printf(", \\"{field}\\": %zu", offsetof(struct {name}, {field}));')
        lines.append('printf("}");')
    lines.append('printf("}");')
    body = "\n".join(lines)
    source = where / "abi.c"
    source.write_text(f'#include <stddef.h>\n#include <stdio.h>\n#include "am_abi.h"\nint main(void)\n{{\n{body}\n}}\n')
    program = where / "abi"
    subprocess.run([cc, "-Wall", "-Wpadded", "-Werror", "-I", str(abi.SOURCES), "-o", program, source], check=True)
    answer = subprocess.run([program], check=True, capture_output=True, text=True)
    parsed: dict[str, dict[str, int]] = json.loads(answer.stdout)
    return parsed


def test_bpf_abi_offsets_and_sizes_agree(compiled: dict[str, dict[str, int]]) -> None:
    for name, struct_ in abi.STRUCTS.items():
        ours = {"": ctypes.sizeof(struct_)} | {f: getattr(struct_, f).offset for f, *_ in struct_._fields_}
        assert ours == compiled[name], name


def test_bpf_abi_every_struct_of_the_header_is_mirrored() -> None:
    declared = re.findall(r"^struct (am_\w+) \{", HEADER.read_text(), re.MULTILINE)
    assert declared == list(abi.STRUCTS)


def test_bpf_abi_struct_formats_are_as_long_as_the_structs() -> None:
    sizes = {
        "am_config": encode.CONFIG.size,
        "am_bottle": encode.BOTTLE.size,
        "am_exact_key": encode.EXACT_KEY.size,
        "am_exact_value": encode.EXACT_VALUE.size,
        "am_host_key": encode.HOST_KEY.size,
        "am_prefix_key": encode.PREFIX_KEY.size,
        "am_range": encode.RANGE.size,
        "am_ranges": encode.RANGES_BYTES,
        "am_event": events.RECORD.size,
    }
    assert {n: ctypes.sizeof(abi.STRUCTS[n]) for n in sizes} == sizes


def test_bpf_abi_formats_and_ctypes_read_the_same_fields() -> None:
    raw = bytes(range(1, events.RECORD.size + 1))
    record = abi.EventRecord.from_buffer_copy(raw)
    fields = [f for f, *_ in abi.EventRecord._fields_ if f != "pad0"]
    values = [bytes(v) if not isinstance(v := getattr(record, f), int) else v for f in fields]
    assert list(events.RECORD.unpack(raw)) == values
    raw = bytes(range(1, encode.BOTTLE.size + 1))
    bottle = abi.Bottle.from_buffer_copy(raw)
    assert list(encode.BOTTLE.unpack(raw)) == [getattr(bottle, f) for f, *_ in abi.Bottle._fields_]


def test_bpf_abi_documented_example_of_an_exact_key() -> None:
    """The bytes that the header's comment promises."""
    from ipaddress import ip_address

    key = encode.exact_key(9, "tcp", 443, ip_address("198.51.100.7"))
    assert key.hex() == "09000000bb010600" + "00" * 10 + "ffffc6336407"


def test_bpf_abi_sizes_of_maps_are_checked_at_start() -> None:
    abi.check("am_bottle", 8, 32)
    with pytest.raises(Missing, match="BPF map am_bottle") as error:
        abi.check("am_bottle", 8, 40)
    assert "remove its directory" in error.value.hint


def test_bpf_abi_no_struct_is_packed_and_files_name_their_license() -> None:
    for path in Path(abi.SOURCES).rglob("*.[hc]"):
        text = path.read_text()
        assert "packed" not in re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL), path
        assert "SPDX-License-Identifier: GPL-2.0" in text.splitlines()[0], path
