"""Offsets out of BTF: the running kernel's, against a walk of every record; hand-made, cut short and damaged bytes."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpf import btf
from ebpf.btf import Types, definitions
from ebpf.errors import Missing

needs_btf = pytest.mark.skipif(not btf.VMLINUX.exists(), reason="this kernel has no BTF (CONFIG_DEBUG_INFO_BTF)")

INT, ARRAY, STRUCT, ENUM, FUNC_PROTO, VAR, DATASEC, DECL_TAG, ENUM64 = 1, 3, 4, 6, 13, 14, 15, 17, 19
UNION = 5


def records(raw: bytes) -> list[tuple[str, int, bool, list[tuple[str, int]]]]:
    """Name, kind, kind_flag and members (name, bits) of every type, as Documentation/bpf/btf.rst lays them out."""
    _, _, _, header, type_at, type_bytes, text_at, _ = struct.unpack_from("=HBBIIIII", raw)
    at, end, text = header + type_at, header + type_at + type_bytes, header + text_at

    def name_of(number: int) -> str:
        return raw[text + number : raw.index(b"\0", text + number)].decode()

    found = []
    while at < end:
        name, info, _ = struct.unpack_from("=III", raw, at)
        kind, count, flag = info >> 24 & 0x1F, info & 0xFFFF, bool(info >> 31)
        at += 12
        members = []
        if kind in (STRUCT, UNION):
            members = [struct.unpack_from("=III", raw, at + 12 * n)[::2] for n in range(count)]
            members = [(name_of(m), bits) for m, bits in members]
        found.append((name_of(name), kind, flag, members))
        more = {INT: 4, ARRAY: 12, VAR: 4, DECL_TAG: 4}.get(kind, 0)
        each = {STRUCT: 12, UNION: 12, ENUM: 8, FUNC_PROTO: 8, DATASEC: 12, ENUM64: 12}.get(kind, 0)
        at += more + each * count
    return found


@needs_btf
def test_bpf_btf_of_this_kernel_as_a_walk_of_every_record_finds_it() -> None:
    raw = btf.VMLINUX.read_bytes()
    walked: dict[tuple[str, str], set[int]] = {}
    for structure, kind, flag, members in records(raw):
        if kind == STRUCT:
            for member, bits in members:
                walked.setdefault((structure, member), set()).add((bits & 0xFFFFFF if flag else bits) // 8)
    types = Types(raw)
    for structure, member in (*btf.MEMBERS.values(), ("task_struct", "thread_info"), ("thread_info", "status")):
        if (structure, member) in walked:
            assert {types.offset(structure, member)} == walked[structure, member], (structure, member)


@needs_btf
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_bpf_btf_definitions_are_what_the_sources_ask_for(machine: str) -> None:
    if machine == "aarch64" and b"\0bpf_sock_addr_kern\0" not in btf.VMLINUX.read_bytes():
        pytest.skip("this kernel's BTF lacks socket address programs")
    found = definitions(machine)
    assert {*btf.MEMBERS, "AM_REGS_NR", "AM_REGS_IP", "AM_REGS_SP"} <= set(found)
    assert ("AM_TASK_STATUS" in found) == (machine == "x86_64")
    assert all(0 <= value < 1 << 16 for value in found.values())
    assert found["AM_TASK_TGID"] == Types(btf.VMLINUX.read_bytes()).offset("task_struct", "pid") + 4  # sched.h


def made(order: str = "=", flag: int = 0, bits: int = 96) -> bytes:
    """BTF with `struct first { … wanted at bit 96 … }`, and an int that is named like a member."""
    text = b"\0first\0wanted\0int\0"
    types = struct.pack(order + "IIII", 14, 1 << 24, 4, 32)  # int, with its encoding
    types += struct.pack(order + "III", 1, flag << 31 | STRUCT << 24 | 2, 16)
    types += struct.pack(order + "III", 14, 1, 0) + struct.pack(order + "III", 7, 1, bits)
    return struct.pack(order + "HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(text)) + types + text


def test_bpf_btf_hand_made() -> None:
    assert Types(made()).offset("first", "wanted") == 12
    assert Types(made(flag=1, bits=3 << 24 | 96)).offset("first", "wanted") == 12  # a bit field's width is no offset
    for structure, member in (("first", "no such"), ("no such", "wanted"), ("int", "wanted"), ("first", "")):
        with pytest.raises(Missing, match=f"struct {structure}.{member} in the kernel's BTF") as error:
            Types(made()).offset(structure, member)
        assert error.value.hint


@pytest.mark.parametrize(
    "raw",
    [b"", b"\x9f", b"\x9f\xeb" + bytes(10), bytes(64), b"\x7fELF" + bytes(60), made(">"), made()[:-1], made()[:40]],
    ids=["empty", "one byte", "half a header", "zeros", "another file", "foreign byte order", "cut text", "cut types"],
)
def test_bpf_btf_that_is_none_says_so(raw: bytes, tmp_path: Path) -> None:
    with pytest.raises(Missing, match="readable kernel BTF") as error:
        Types(raw)
    assert "CONFIG_DEBUG_INFO_BTF" in error.value.hint
    (tmp_path / "vmlinux").write_bytes(raw)
    with pytest.raises(Missing, match="readable kernel BTF"):
        definitions("x86_64", tmp_path / "vmlinux")


def test_bpf_btf_missing_or_unreadable_file_says_which(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"kernel BTF \(/nowhere/vmlinux: No such file or directory\)"):
        definitions("x86_64", Path("/nowhere/vmlinux"))
    with pytest.raises(Missing, match="Is a directory"):
        definitions("x86_64", tmp_path)


@pytest.mark.parametrize("machine", ["riscv64", "s390x", "vax"])
def test_bpf_btf_unknown_machine_says_which_are_known(machine: str) -> None:
    with pytest.raises(Missing, match=f"attribution on {machine}") as error:
        definitions(machine)
    assert "x86_64, aarch64" in error.value.hint


@given(st.binary(max_size=200), st.integers(0, 200), st.integers(0, 255))
def test_bpf_btf_damaged_bytes_are_an_answer_or_missing(tail: bytes, at: int, value: int) -> None:
    whole = bytearray(made() + tail)
    whole[at % len(whole)] = value
    for raw in (bytes(whole), made()[: at % 60] + tail):
        try:
            assert Types(raw).offset("first", "wanted") >= 0
        except Missing:
            continue


@needs_btf
@settings(max_examples=20, deadline=None)
@given(st.floats(0, 1))
def test_bpf_btf_of_this_kernel_cut_anywhere_is_missing(share: float) -> None:
    raw = btf.VMLINUX.read_bytes()
    with pytest.raises(Missing, match="readable kernel BTF"):
        Types(raw[: int(share * (len(raw) - 1))])
