"""The culprit of a call, from recorded mappings and stacks: which module is named, and what is not taken for one."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpf import abi, calls
from ebpf.culprit import Culprit, culprit, is_address_sorting, role
from ebpf.memory import Mapping, Memory, Range
from ebpf.origin import Origin

# A python with pycurl, shortened: the places are those of the record that the stacks below come from.
PYTHON = b"""\
55d0d1c00000-55d0d1c01000 r--p 00000000 fe:00 260131                     /usr/bin/python3.13
55d0d1c01000-55d0d1c02000 r-xp 00001000 fe:00 260131                     /usr/bin/python3.13
55d0d2a39000-55d0d2b3c000 rw-p 00000000 00:00 0                          [heap]
7f10a0026000-7f10a0080000 r-xp 00026000 fe:00 50012                      /venv/pycurl.libs/libcurl-330bcbb6.so.4.8.0
7f10a0100000-7f10a0140000 rwxp 00000000 00:00 0
7f10a0200000-7f10a0210000 r-xp 00000000 00:01 77                         /memfd:x y (deleted)
7f10a0300000-7f10a0310000 r-xp 00001000 fe:00 50013                      /opt/a b/gone.so (deleted)
7f10a0697000-7f10a06bd000 r--p 00000000 fe:00 339380                     /usr/lib/x86_64-linux-gnu/libc.so.6
7f10a06bd000-7f10a0813000 r-xp 00026000 fe:00 339380                     /usr/lib/x86_64-linux-gnu/libc.so.6
7f10a0813000-7f10a0866000 r--p 0017c000 fe:00 339380                     /usr/lib/x86_64-linux-gnu/libc.so.6
7f10a1000000-7f10a1400000 r-xp 00100000 fe:00 260140                     /usr/lib/libpython3.13.so.1.0
7ffd3a000000-7ffd3a021000 rw-p 00000000 00:00 0                          [stack]
7ffd3a1fe000-7ffd3a200000 r-xp 00000000 00:00 0                          [vdso]
"""
SP = 0x7FFD_3A01_0000
CONNECT = 0x7F10_A06B_D000 + 0xE47C0  # behind the syscall instruction in libc
CURL = 0x7F10_A002_6000 + 0x2B4E
JIT = 0x7F10_A010_0040
MEMFD = 0x7F10_A020_0100
DELETED = 0x7F10_A030_0010
LIBPYTHON = 0x7F10_A100_0200
SORTING = 0x7F10_A06B_D000 + 0xCA5D3
GETADDRINFO = Range(982128, 990752)
CALL = bytes.fromhex("e800000000")

CodeOf = Callable[[Mapping, int], bytes | None]


def origin(ip: int = CONNECT, *words: int, sp: int = SP, task: int = 0, compat: int = 0) -> Origin:
    return Origin(5, 812, 811, 42, ip, sp, words, task, compat, b"")


def everything_is_called(_mapping: Mapping, _address: int) -> bytes | None:
    return CALL


def found(where: Origin, code: CodeOf | None = everything_is_called, text: bytes = PYTHON) -> Culprit:
    return culprit(where, Memory(text), code, "x86_64")


def test_bpf_culprit_is_the_first_module_behind_libc() -> None:
    got = found(origin(CONNECT, 0x10, SP + 64, CURL, LIBPYTHON))
    assert got[:3] == ("/venv/pycurl.libs/libcurl-330bcbb6.so.4.8.0", 0x28B4E, "stack")
    assert [f.role for f in got.frames] == ["libc", "module"]
    assert str(got) == (
        "stack: /usr/lib/x86_64-linux-gnu/libc.so.6+0x10a7c0, /venv/pycurl.libs/libcurl-330bcbb6.so.4.8.0+0x28b4e"
    )


def test_bpf_culprit_that_makes_the_system_call_itself() -> None:
    assert found(origin(CURL, LIBPYTHON))[:3] == ("/venv/pycurl.libs/libcurl-330bcbb6.so.4.8.0", 0x28B4E, "ip")


def test_bpf_culprit_static_program_names_itself() -> None:
    text = b"401000-4a0000 r-xp 00001000 fe:00 9  /srv/agent\n7ffd3a000000-7ffd3a021000 rw-p 00000000 00:00 0 [stack]\n"
    assert found(origin(0x433540), text=text)[:3] == ("/srv/agent", 0x33540, "ip")


def test_bpf_culprit_words_not_behind_a_call_are_stale() -> None:
    def only_curl_calls(mapping: Mapping, _address: int) -> bytes | None:
        return CALL if "libcurl" in mapping.path else bytes(8)

    got = found(origin(CONNECT, DELETED, MEMFD, CURL), only_curl_calls)
    assert got.library.endswith("libcurl-330bcbb6.so.4.8.0")
    assert len(got.frames) == 2


def test_bpf_culprit_call_into_the_void_is_no_call() -> None:
    far = b"\xe8" + struct.pack("<i", 0x7000_0000)
    assert found(origin(CONNECT, CURL), lambda _m, _a: far).evidence == "none"


def test_bpf_culprit_code_that_cannot_be_read_is_said_so() -> None:
    got = found(origin(CONNECT, CURL), lambda _m, _a: None)
    assert got[1:3] == (0x28B4E, "stack-unchecked")
    assert found(origin(CONNECT, CURL), None).evidence == "stack-unchecked"


@pytest.mark.parametrize(
    ("word", "library", "offset"),
    [
        (MEMFD, "memfd:x y", 0x100),
        (DELETED, "/opt/a b/gone.so (deleted)", 0x1010),
        (JIT, "anonymous", 0x40),
    ],
)
def test_bpf_culprit_of_unusual_pages(word: int, library: str, offset: int) -> None:
    assert found(origin(CONNECT, word))[:3] == (library, offset, "stack")
    assert found(origin(word))[:3] == (library, offset, "ip")


def test_bpf_culprit_what_an_interpreter_compiled_is_the_interpreter() -> None:
    assert found(origin(CONNECT, LIBPYTHON, JIT)).evidence == "none"
    assert found(origin(CONNECT, LIBPYTHON, JIT, CURL)).library.endswith("libcurl-330bcbb6.so.4.8.0")
    assert found(origin(CONNECT, JIT, LIBPYTHON)).library == "anonymous"


def test_bpf_culprit_none() -> None:
    got = found(origin(CONNECT, 0, LIBPYTHON, 0x55D0_D1C0_1100, 0x7FFD_3A1F_E100))
    assert got[:3] == ("", 0, "none")
    assert [f.role for f in got.frames] == ["libc", "interpreter", "interpreter", "loader"]


def test_bpf_culprit_worker_of_io_uring_has_no_stack() -> None:
    assert found(origin(0, task=abi.C["AM_TASK_IO_WORKER"])) == Culprit("", 0, "no-stack")


def test_bpf_culprit_of_a_process_that_has_changed_since() -> None:
    assert found(origin(0x7F10_9999_0000, CURL)) == Culprit("", 0, "changed")
    fixed = b"401000-4a0000 r-xp 00001000 fe:00 9  /srv/agent\n"
    assert found(origin(0x433540, CURL), text=fixed) == Culprit("", 0, "changed")
    assert found(origin(0x7F10_A081_3000, CURL)) == Culprit("", 0, "changed"), "not executable"


def test_bpf_culprit_of_a_thread_that_has_ended_since() -> None:
    assert found(origin(CONNECT, CURL, sp=0x7F10_0000_1000)).library.endswith("libcurl-330bcbb6.so.4.8.0")


def test_bpf_culprit_unreadable_stack_leaves_the_instruction_pointer() -> None:
    assert found(origin(CURL, sp=0x1000)).evidence == "ip"


def test_bpf_culprit_of_a_32_bit_process_has_words_of_4_bytes() -> None:
    text = (
        b"08048000-08050000 r-xp 00000000 fe:00 9  /srv/old\n"
        b"f7c00000-f7d00000 r-xp 00000000 fe:00 10 /lib/i386-linux-gnu/libc.so.6\n"
        b"f7e00000-f7e10000 r-xp 00002000 fe:00 11 /srv/libold.so\n"
        b"fffdd000-ffffe000 rw-p 00000000 00:00 0  [stack]\n"
    )
    word = 0x0804_8123 << 32 | 0xF7E0_0123  # libold first: the lower address
    assert found(origin(0xF7C0_1000, word, sp=0xFFFD_E000, compat=1), text=text)[:2] == ("/srv/libold.so", 0x2123)
    assert found(origin(0xF7C0_1000, word, sp=0xFFFD_E000), text=text).evidence == "none"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/usr/lib/x86_64-linux-gnu/libc.so.6", "libc"),
        ("/usr/lib/x86_64-linux-gnu/libc.so.6 (deleted)", "libc"),
        ("/lib/libc-2.31.so", "libc"),
        ("/lib/libpthread-2.31.so", "libc"),
        ("/lib/libpthread.so.0", "libc"),
        ("/lib/libresolv.so.2", "libc"),
        ("/lib/libnss_dns.so.2", "libc"),
        ("/lib/ld-musl-x86_64.so.1", "libc"),
        ("/lib/libc.musl-x86_64.so.1", "libc"),
        ("/lib64/ld-linux-x86-64.so.2", "loader"),
        ("/lib/ld-linux-aarch64.so.1", "loader"),
        ("/lib/ld-2.31.so", "loader"),
        ("[vdso]", "loader"),
        ("/usr/bin/python3", "interpreter"),
        ("/usr/bin/python3.13", "interpreter"),
        ("/opt/python3.13t", "interpreter"),
        ("/usr/lib/libpython3.11.so.1.0", "interpreter"),
        ("/usr/lib/libpython3.13t.so.1.0", "interpreter"),
        ("/usr/bin/node", "interpreter"),
        ("/usr/bin/perl5.36.0", "interpreter"),
        ("/usr/lib/libperl.so.5.36", "interpreter"),
        ("/usr/bin/ruby3.1", "interpreter"),
        ("/usr/lib/libruby-3.1.so.3.1", "interpreter"),
        ("/usr/lib/jvm/lib/server/libjvm.so", "interpreter"),
        ("/usr/lib/jvm/lib/libnet.so", "module"),
        ("/usr/lib/libnss_ldap.so.2", "module"),
        ("/usr/lib/libcurl.so.4", "module"),
        ("/usr/lib/libcrypto.so.3", "module"),
        ("/usr/lib/libld.so", "module"),
        ("/usr/bin/node_exporter", "module"),
        ("/lib/python3.13/lib-dynload/_ctypes.cpython-313-x86_64-linux-gnu.so", "module"),
        ("/memfd:libc.so.6 (deleted)", "module"),
        ("", "module"),
    ],
)
def test_bpf_culprit_roles(path: str, expected: str) -> None:
    assert role(Mapping(0, 1, "r-xp", 0, "fe:00", 1, path)) == expected


def getaddrinfo(mapping: Mapping) -> Range | None:
    return GETADDRINFO if mapping.file == "libc.so.6" else None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((SORTING, LIBPYTHON), True),
        ((0, CONNECT - 0x80, SORTING), True),
        ((LIBPYTHON, SORTING), False),
        ((CURL, SORTING), False),
        ((CONNECT - 0x80, CURL), False),
        ((), False),
    ],
)
def test_bpf_culprit_address_sorting(words: tuple[int, ...], expected: bool) -> None:
    where = origin(CONNECT, *words)
    assert is_address_sorting(where, Memory(PYTHON), everything_is_called, getaddrinfo) is expected


def test_bpf_culprit_address_sorting_only_behind_a_call() -> None:
    where = origin(CONNECT, SORTING, LIBPYTHON)
    assert not is_address_sorting(where, Memory(PYTHON), lambda _m, _a: bytes(8), getaddrinfo)


def test_bpf_culprit_workers_and_strangers_sort_nothing() -> None:
    worker = origin(CONNECT, SORTING, task=1)
    assert not is_address_sorting(worker, Memory(PYTHON), everything_is_called, getaddrinfo)
    assert not is_address_sorting(origin(CURL, SORTING), Memory(PYTHON), everything_is_called, getaddrinfo)
    assert not is_address_sorting(origin(1, SORTING), Memory(PYTHON), everything_is_called, getaddrinfo)


@given(st.binary(max_size=300), st.lists(st.integers(0, 2**64 - 1), max_size=96), st.integers(0, 2**64 - 1))
def test_bpf_culprit_any_stack_has_an_answer(before: bytes, words: list[int], ip: int) -> None:
    got = found(origin(ip, *words), lambda _m, _a: before)
    assert bool(got.library) is (got.evidence in ("ip", "stack", "stack-unchecked"))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("e811223344", True),  # call rel32
        ("90ffd0", True),  # call rax
        ("9041ffd3", True),  # call r11
        ("90ff10", True),  # call [rax]
        ("ff1511223344", True),  # call [rip+d32]
        ("ff5008", True),  # call [rax+8]
        ("ff9011223344", True),  # call [rax+d32]
        ("ff14c8", True),  # call [rax+rcx*8]
        ("ff54c808", True),  # call [rax+rcx*8+8]
        ("ff94c811223344", True),  # call [rax+rcx*8+d32]
        ("ff14cd11223344", True),  # call [rcx*8+d32]
        ("ffe0", False),  # jmp rax
        ("ff30", False),  # push [rax]
        ("ff1590", False),  # too short for what it says
        ("e8112233", False),
        ("0f05", False),  # syscall
        ("", False),
    ],
)
def test_bpf_culprit_forms_of_a_call(code: str, expected: bool) -> None:
    before = bytes.fromhex(code)
    is_call = calls.direct(before, "x86_64") is not None or calls.indirect(before, "x86_64")
    assert is_call is expected


def test_bpf_culprit_calls_of_arm() -> None:
    assert calls.direct(struct.pack("<I", 0x9400_0004), "aarch64") == 12
    assert calls.direct(struct.pack("<I", 0x97FF_FFFF), "aarch64") == -8
    assert calls.direct(struct.pack("<I", 0x1400_0004), "aarch64") is None, "b"
    assert calls.indirect(struct.pack("<I", 0xD63F_0060), "aarch64"), "blr x3"
    assert calls.indirect(struct.pack("<I", 0xD73F_0864), "aarch64"), "blraa x3, x4"
    assert not calls.indirect(struct.pack("<I", 0xD65F_03C0), "aarch64"), "ret"


def test_bpf_culprit_distance_of_a_call() -> None:
    assert calls.direct(b"\xe8" + struct.pack("<i", -0x1234), "x86_64") == -0x1234
    assert calls.direct(b"\xe8\0\0\0\0", "riscv64") is None
    assert calls.indirect(b"", "riscv64"), "where calls are not known nothing is rejected"
