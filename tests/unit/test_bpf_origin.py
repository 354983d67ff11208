"""struct am_origin → Origin, and the names of system calls on each machine."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpf import abi, origin

WORDS = abi.C["AM_STACK_WORDS"]
PATH = abi.C["AM_PATH_LEN"]
FIELDS = dict(ts_ns=5, pid=812, tgid=811, nr=42, ip=0x7F00_0000_1234, sp=0x7FFF_0000_0000, words=0, task=0, compat=0)


def record(path: bytes = b"", words: tuple[int, ...] = (), **fields: int) -> bytes:
    """By the header's own order of fields, written out here a second time."""
    f = {**FIELDS, "words": len(words), **fields}
    head = struct.pack("=QIIQQQ", f["ts_ns"], f["pid"], f["tgid"], f["nr"], f["ip"], f["sp"])
    kind = struct.pack("=IBBH", f["words"], f["task"], f["compat"], len(path))
    stack = struct.pack(f"={WORDS}Q", *words, *[0xDEAD] * (WORDS - len(words)))
    return head + kind + path.ljust(PATH, b"\0") + b"\0" * 4 + stack


def one(**fields: int) -> origin.Origin:
    (found,) = origin.decode(record(**fields))  # type: ignore[arg-type]
    return found


def test_bpf_origin_every_field() -> None:
    (found,) = origin.decode(record(path=b"\0app", words=(7, 8, 9), task=0, compat=1))
    assert found == origin.Origin(5, 812, 811, 42, 0x7F00_0000_1234, 0x7FFF_0000_0000, (7, 8, 9), 0, 1, b"\0app")


def test_bpf_origin_words_that_were_not_read_are_not_there() -> None:
    assert one().words == ()


def test_bpf_origin_record_is_as_long_as_the_header_says() -> None:
    text = (Path(abi.SOURCES) / "am_abi.h").read_text()
    said = re.search(r"Record of the ring am_origins[^.]*\. (\d+) bytes", text)
    assert said is not None
    assert int(said[1]) == origin.ORIGIN.size


def test_bpf_origin_half_a_record_is_an_error() -> None:
    with pytest.raises(ValueError, match="928 bytes each"):
        origin.decode(record()[:-1])


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 2**64 - 1), max_size=WORDS).map(tuple),
            st.binary(max_size=PATH),
            st.integers(0, 2**64 - 1),
        ),
        max_size=4,
    )
)
def test_bpf_origin_keeps_order_words_and_paths(made: list[tuple[tuple[int, ...], bytes, int]]) -> None:
    found = origin.decode(b"".join(record(path, words, ts_ns=ts) for words, path, ts in made))
    assert [(o.words, o.path, o.ts_ns) for o in found] == made


@given(st.binary(min_size=origin.ORIGIN.size, max_size=origin.ORIGIN.size))
def test_bpf_origin_any_bytes_are_a_record(raw: bytes) -> None:
    (found,) = origin.decode(raw)
    assert len(found.words) <= WORDS
    assert len(found.path) <= PATH
    assert origin.syscall_name(found, "x86_64")


@pytest.mark.parametrize(
    ("machine", "fields", "name"),
    [
        ("x86_64", {"nr": 42}, "connect"),
        ("x86_64", {"nr": 41}, "socket"),
        ("x86_64", {"nr": 44}, "sendto"),
        ("x86_64", {"nr": 46}, "sendmsg"),
        ("x86_64", {"nr": 49}, "bind"),
        ("x86_64", {"nr": 307}, "sendmmsg"),
        ("x86_64", {"nr": 426}, "io_uring"),
        ("x86_64", {"nr": 1}, "1"),
        ("x86_64", {"nr": 102, "compat": 1}, "i386:socketcall"),
        ("x86_64", {"nr": 362, "compat": 1}, "i386:connect"),
        ("x86_64", {"nr": 9999, "compat": 1}, "i386:9999"),
        ("x86_64", {"nr": 426, "compat": 1}, "io_uring"),
        ("x86_64", {"nr": 1 << 30 | 42}, "x32:connect"),
        ("aarch64", {"nr": 203}, "connect"),
        ("aarch64", {"nr": 206}, "sendto"),
        ("aarch64", {"nr": 211}, "sendmsg"),
        ("aarch64", {"nr": 42}, "42"),
        ("sparc64", {"nr": 42}, "42"),
        ("x86_64", {"nr": 42, "task": 1}, "io_uring"),
        ("x86_64", {"nr": origin.NO_CALL}, "io_uring"),
    ],
)
def test_bpf_origin_system_calls(machine: str, fields: dict[str, int], name: str) -> None:
    assert origin.syscall_name(one(**fields), machine) == name


def test_bpf_origin_names_agree_with_the_headers_of_this_machine() -> None:
    headers = [p for p in Path("/usr/include").glob("**/asm/unistd_64.h") if "x86_64" in str(p)]
    if not headers:
        pytest.skip("install linux-libc-dev for x86_64")
    numbers = dict(re.findall(r"#define __NR_(\w+) (\d+)", headers[0].read_text()))
    for nr in range(500):
        name = origin.syscall_name(one(nr=nr), "x86_64")
        if not name.isdigit():
            assert numbers["io_uring_enter" if name == "io_uring" else name] == str(nr)
