"""What the audit reads from native files: some built here with known content, and broken ones."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from agentmon.audit_native import elf
from agentmon.audit_native.judge import judge
from agentmon.audit_native.model import Image, NotElf, Owner, Unreadable, Way
from tests.support import native_files as native
from tests.support.bypass_clients import build as clients

X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the sources make x86_64 system calls")


def ways(path: Path) -> dict[Way, tuple[str, ...]]:
    return judge(str(path), elf.read(str(path)), Owner()).by


def test_a_library_that_connects_is_told_from_one_that_does_not(tmp_path: Path) -> None:
    assert ways(native.library(native.CONNECTS, tmp_path / "a.so")) == {Way.CONNECT: ("connect",)}
    assert ways(native.library(native.HARMLESS, tmp_path / "b.so")) == {}


@pytest.mark.parametrize("name", ["sendto", "sendmsg", "sendmmsg", "syscall", "getaddrinfo", "gethostbyname_r",
                                  "io_uring_queue_init", "ffi_call", "res_nsend", "dlsym", "posix_spawn"])  # fmt: skip
def test_each_function_by_its_name(name: str, tmp_path: Path) -> None:
    found = ways(native.library(f"extern int {name}(); int go(void) {{ return {name}(); }}", tmp_path / "a.so"))
    assert [names for names in found.values()] == [(name,)]


@pytest.mark.parametrize(("name", "library"), [("curl_easy_perform", "libcurl"), ("PQconnectStart", "libpq"),
                                               ("uv_tcp_connect", "libuv"), ("BIO_s_connect", "openssl")])  # fmt: skip
def test_a_call_into_a_library_that_connects(name: str, library: str, tmp_path: Path) -> None:
    path = native.library(f"extern int {name}(); int go(void) {{ return {name}(); }}", tmp_path / "a.so")
    assert ways(path) == {Way.THROUGH: (f"{library}: {name}",)}
    assert elf.read(str(path)).vendored == ()  # its name among the imports is no copy of the library


def test_what_it_exports_is_not_what_it_uses(tmp_path: Path) -> None:
    assert ways(native.library("int sendmmsg(void) { return 0; }", tmp_path / "a.so")) == {}


def test_section_headers_are_not_needed(tmp_path: Path) -> None:
    path = native.without_section_headers(native.library(native.CONNECTS, tmp_path / "a.so"))
    assert ways(path)[Way.CONNECT] == ("connect",)


def test_a_static_program_is_read_by_its_symbols(tmp_path: Path) -> None:
    image = elf.read(str(native.program(native.CONNECTS, tmp_path / "p")))
    assert image.static and image.program and "connect" in image.defines


@X86
def test_a_stripped_static_program_is_read_by_its_instructions(tmp_path: Path) -> None:
    path = native.program(native.CONNECTS, tmp_path / "p", "-s")
    assert elf.read(str(path)).calls == {"connect"} and ways(path)[Way.RAW] == ("connect",)
    quiet = native.program("int go(int a, int b) { return a + b; }", tmp_path / "q", "-s")
    assert Way.RAW not in ways(quiet)


@X86
def test_a_library_without_libc_is_read_by_its_instructions(tmp_path: Path) -> None:
    assert ways(native.library(native.RAW, tmp_path / "a.so", "-nostdlib")) == {Way.RAW: ("connect",)}


@X86
def test_computed_system_calls_of_a_static_program_may_be_any(tmp_path: Path) -> None:
    path = native.build(native.COMPUTED, tmp_path / "p", "-static", "-nostdlib", "-s")
    image = elf.read(str(path))
    assert image.static and image.computed >= 1
    assert ways(path)[Way.SYSCALL][0].endswith("their numbers are computed")


def test_a_static_program_of_an_unknown_machine_is_not_taken_for_harmless(tmp_path: Path) -> None:
    found = judge("p", Image(machine="riscv", static=True, program=True, scanned=False), Owner())
    assert found.past_the_guard and "riscv" in found.by[Way.SYSCALL][0]


@X86
def test_the_bypass_clients_are_all_found(tmp_path: Path) -> None:
    native.compiler()
    built = clients.build(tmp_path)
    for path in filter(None, built):
        assert judge(str(path), elf.read(str(path)), Owner()).past_the_guard, path


@pytest.mark.parametrize(
    ("text", "name", "version"),
    [
        (r"libcurl/8.5.0", "libcurl", "8.5.0"),
        (r"OpenSSL 3.0.2 15 Mar 2022", "openssl", "3.0.2"),
        (r"/registry/src/index-1/reqwest-0.12.4/src/lib.rs", "rust reqwest", "0.12.4"),
        (r"a\0uv_tcp_connect\0b", "libuv", ""),
        (r"could not translate host name \"%s\" to address: %s", "libpq", ""),
    ],
)
def test_a_vendored_library_is_recognised_by_its_text(text: str, name: str, version: str, tmp_path: Path) -> None:
    source = f'const char text[] = "{text}"; const char *go(void) {{ return text; }}'
    vendored = elf.read(str(native.library(source, tmp_path / "a.so"))).vendored
    assert [(v.name, v.version) for v in vendored] == [(name, version)]


def test_a_trace_across_two_pieces_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = native.library('const char text[] = "libcurl/8.5.0";', tmp_path / "a.so")
    at = path.read_bytes().index(b"libcurl/8.5.0")
    monkeypatch.setattr("agentmon.audit_native.traces._PIECE_BYTES", at + 5)
    assert [v.version for v in elf.read(str(path)).vendored] == ["8.5.0"]


@pytest.mark.parametrize(
    ("content", "kind", "why"),
    [
        (b"", NotElf, "is empty"),
        (b"\x7fE", NotElf, "too short"),
        (b"#!/bin/sh\n", NotElf, "is no ELF file"),
        (b"\x7fELF", Unreadable, "broken"),
        (b"\x7fELF" + b"\xff" * 100, Unreadable, "broken"),
    ],
)
def test_other_files_are_refused_with_their_reason(
    content: bytes, kind: type[Unreadable], why: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.so"
    path.write_bytes(content)
    with pytest.raises(kind, match=why):
        elf.read(str(path))


def test_a_file_cut_short_anywhere_is_refused_or_read_never_a_crash(tmp_path: Path) -> None:
    whole = native.library(native.CONNECTS, tmp_path / "a.so").read_bytes()
    cut = tmp_path / "cut.so"
    refused = []
    for length in range(0, len(whole), 97):
        cut.write_bytes(whole[:length])
        try:
            elf.read(str(cut))
        except Unreadable as e:
            refused.append((length, e.why))
    assert any("is truncated" in why for length, why in refused if length > 1000)
    # Only section headers lie behind the last loaded byte, and these are not needed.
    assert {length for length, _ in refused} >= set(range(0, len(whole) // 2, 97))


def test_a_damaged_file_is_refused_or_read_never_a_crash(tmp_path: Path) -> None:
    whole = native.library(native.CONNECTS, tmp_path / "a.so").read_bytes()
    path = tmp_path / "damaged.so"
    for at in range(0, 1024, 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            elf.read(str(path))
        except Unreadable as e:
            assert e.why
    dynamic = whole.index((1).to_bytes(8, "little"))  # somewhere in the tables: every byte of the rest, coarsely
    for at in range(dynamic, len(whole), 127):
        path.write_bytes(whole[:at] + b"\xff\xff\xff\xff" + whole[at + 4 :])
        try:
            elf.read(str(path))
        except Unreadable as e:
            assert e.why


def test_what_is_no_regular_file_is_not_opened_for_long(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.so"
    os.mkfifo(pipe)
    for path in (str(pipe), "/dev/zero", str(tmp_path)):
        with pytest.raises(NotElf, match="no regular file"):
            elf.read(path)
    with pytest.raises(Unreadable, match="No such file"):
        elf.read(str(tmp_path / "none.so"))


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_no_permission_is_said(tmp_path: Path) -> None:
    path = native.library(native.HARMLESS, tmp_path / "a.so")
    path.chmod(0)
    child = os.fork()
    if child == 0:  # root may read everything: as nobody
        status = 1
        try:
            os.chmod(tmp_path, 0o755)
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresuid(65534, 65534, 65534)
            elf.read(str(path))
        except Unreadable as e:
            status = 0 if "Permission denied" in e.why else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
