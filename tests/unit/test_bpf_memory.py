"""/proc/PID/maps → mappings, and an address among them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ebpf.memory import Mapping, Memory

PATHS = st.one_of(
    st.sampled_from(["", "[heap]", "[stack]", "[vdso]", "[anon:v8]", "/dev/zero (deleted)", "/memfd:a b (deleted)"]),
    st.text(st.characters(blacklist_characters="\n", blacklist_categories=("Cs",)), min_size=1).map(lambda t: "/" + t),
)
PERMS = st.tuples(st.sampled_from("r-"), st.sampled_from("w-"), st.sampled_from("x-"), st.sampled_from("ps")).map(
    "".join
)


@st.composite
def layouts(draw: st.DrawFn) -> list[Mapping]:
    borders = sorted(draw(st.sets(st.integers(0, 2**52 - 1), max_size=16)))
    pairs = zip(borders[::2], borders[1::2], strict=False)
    return [
        Mapping(
            lo << 12, hi << 12, draw(PERMS), draw(st.integers(0, 2**40)), draw(st.sampled_from(["fe:00", "00:3f"])),
            draw(st.integers(0, 2**63)), draw(PATHS),
        )
        for lo, hi in pairs
    ]  # fmt: skip


def written(m: Mapping) -> bytes:
    """As show_map_vma() of fs/proc/task_mmu.c does."""
    head = f"{m.start:08x}-{m.end:08x} {m.perms} {m.offset:08x} {m.device} {m.inode} "
    return ((head.ljust(73) + m.path) if m.path else head).encode() + b"\n"


@given(layouts())
def test_bpf_memory_reads_what_the_kernel_writes(layout: list[Mapping]) -> None:
    assert Memory(b"".join(map(written, layout))).mappings == layout


@given(layouts(), st.integers(0, 2**64 - 1), st.data())
def test_bpf_memory_finds_addresses(layout: list[Mapping], anywhere: int, data: st.DataObject) -> None:
    edges = [a for m in layout for a in (m.start - 1, m.start, m.end - 1, m.end)]
    address = data.draw(st.sampled_from([anywhere, *edges]))
    expected = next((m for m in layout if m.start <= address < m.end), None)
    memory = Memory(b"".join(map(written, layout)))
    assert memory.at(address) == expected
    assert memory.code(address) == (expected if expected and "x" in expected.perms else None)


@given(st.binary(max_size=500))
def test_bpf_memory_other_text_is_no_mapping(text: bytes) -> None:
    assert all(m.start >= 0 for m in Memory(text).mappings)


def one(path: bytes) -> Mapping:
    (found,) = Memory(b"1000-2000 r-xp 00003000 fe:00 12                  " + path + b"\n").mappings
    return found


def test_bpf_memory_names() -> None:
    assert one(b"").name == "anonymous"
    assert one(b"[anon:v8 code]").name == "anonymous"
    assert one(b"/dev/zero (deleted)").name == "anonymous"
    assert one(b"/memfd:jit x (deleted)").name == "memfd:jit x"
    assert one(b"/tmp/a b.so (deleted)").name == "/tmp/a b.so (deleted)"
    assert one(b"/tmp/a b.so (deleted)").file == "a b.so"
    assert one(b"[vdso]").name == "[vdso]"
    assert one(rb"/tmp/new\012line").name == r"/tmp/new\012line"
    assert one(b"/tmp/\xff.so").name == r"/tmp/\xff.so"


def test_bpf_memory_offset_is_that_in_the_file() -> None:
    assert one(b"/lib/x.so").at(0x1234) == 0x3234


def test_bpf_memory_of_a_32_bit_process() -> None:
    assert Memory(b"f7e00000-ffffe000 rw-p 00000000 00:00 0\n").narrow
    assert not Memory(b"7ffd3a000000-7ffd3a021000 rw-p 00000000 00:00 0\n").narrow
    assert not Memory(b"").narrow
