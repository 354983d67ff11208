"""What /proc says of real processes of our own, and who made a real call of theirs (under ptrace: no privilege)."""

from __future__ import annotations

import ctypes
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpf import process, symbols
from ebpf.culprit import Culprit, culprit
from ebpf.maker import facts_at, maker_of
from ebpf.memory import Mapping, Memory, Range
from ebpf.origin import Origin
from ebpf.process import Gone, Process, TooMany
from ebpf.procmap import QueriedMemory
from tests.support import traced
from tests.support.bypass_clients import client

CLIENT = Path(client.__file__)
SLEEP = "import sys; print('ready', flush=True); sys.stdin.read()"


CAP_SYS_ADMIN = 21


def may_open_mapped_files() -> bool:
    effective = next(
        line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff")
    )
    return bool(int(effective, 16) >> CAP_SYS_ADMIN & 1)


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", SLEEP, "a b", "\x1b[1m", ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as made:
        assert made.stdout is not None
        assert made.stdout.readline() == b"ready\n"
        yield made
        made.kill()


def test_bpf_process_facts(child: subprocess.Popen[bytes]) -> None:
    with Process(child.pid, now_ns()) as seen:
        facts = seen.facts()
    assert facts.ppid == os.getpid()
    assert facts.exe == os.path.realpath(sys.executable)
    assert facts.cmdline == f"{sys.executable} -c {SLEEP} a b \\x1b[1m"
    assert facts_at(child.pid, now_ns()) == facts


def test_bpf_process_that_started_after_the_event_is_another() -> None:
    before = now_ns() - 30_000_000  # two clock ticks: that is how exactly starts are known
    with subprocess.Popen(["sleep", "20"]) as later:
        with pytest.raises(Gone, match="a later one"):
            Process(later.pid, before)
        assert facts_at(later.pid, before) is None
        assert facts_at(later.pid, now_ns()) is not None
        later.kill()


def test_bpf_process_that_ends_between_two_looks_is_gone(child: subprocess.Popen[bytes]) -> None:
    with Process(child.pid, now_ns()) as seen:
        memory = seen.memory()
        text = next(m for m in mapped(child.pid).mappings if m.executable)
        assert memory.at(text.start) == text
        child.kill()
        child.wait()
        for look in (seen.facts, seen.memory, seen._text):
            with pytest.raises(Gone):
                look()
        with pytest.raises(ProcessLookupError):
            memory.at(1)


def test_bpf_process_unreaped_has_no_memory(child: subprocess.Popen[bytes]) -> None:
    with Process(child.pid, now_ns()) as seen:
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(Gone):
            seen.memory()


def test_bpf_process_never_was() -> None:
    limit = int(Path("/proc/sys/kernel/pid_max").read_text())
    assert facts_at(limit + 1, now_ns()) is None


def test_bpf_process_outlives_its_first_thread() -> None:
    """The first thread of a process may end alone: its own files are then empty, those of the others are not."""
    body = (
        "import ctypes, threading, sys\n"
        "def rest(): print(threading.get_native_id(), flush=True); sys.stdin.readline(); import os; os._exit(0)\n"
        "threading.Thread(target=rest).start()\n"
        "ctypes.CDLL(None).syscall(60, 0)\n"
    )
    if os.uname().machine != "x86_64":
        pytest.skip("exit(2) has another number here")
    with subprocess.Popen([sys.executable, "-c", body], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as made:
        assert made.stdout is not None
        tid = int(made.stdout.readline())
        wait_for(lambda: Path(f"/proc/{made.pid}/maps").read_bytes() == b"")
        with Process(made.pid, now_ns(), tid) as seen:
            text = next(m for m in mapped(f"{made.pid}/task/{tid}").mappings if m.executable)
            assert seen.memory().at(text.start) == seen._text().at(text.start) == text
            assert seen.facts().exe == os.path.realpath(sys.executable)
            assert seen.facts().cmdline.startswith(sys.executable)
        with pytest.raises(Gone), Process(made.pid, now_ns()) as seen:
            seen.memory()
        made.kill()


def test_bpf_process_long_command_line_is_cut(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "20", *["0"] * 5000]) as made:
        wait_for(lambda: Path(f"/proc/{made.pid}/cmdline").read_bytes().startswith(b"sleep"))
        facts = facts_at(made.pid, now_ns())
        made.kill()
    assert facts is not None
    assert facts.cmdline.startswith("sleep 20 0 0")
    assert len(facts.cmdline) == process.CMDLINE_BYTES + 1
    assert facts.cmdline.endswith("…")


def test_bpf_process_deleted_program_is_said_so(tmp_path: Path) -> None:
    program = tmp_path / "my) program"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    with subprocess.Popen([program, "20"]) as made:
        wait_for(lambda: re.search(rf"r-xp .*{re.escape(program.name)}$", maps_of(made.pid), re.MULTILINE))
        program.unlink()
        with Process(made.pid, now_ns()) as seen:
            assert seen.facts().exe == f"{program} (deleted)"
            (text,) = (m for m in mapped(made.pid).mappings if m.executable and m.file == program.name)
            assert text.name == f"{program} (deleted)"
            assert seen.memory().at(text.start) == text
            if may_open_mapped_files():
                assert seen.code(text, text.end) is not None
            got = culprit(Origin(0, made.pid, made.pid, 42, text.start + 8, 0, (), 0, 0, b""), seen.memory())
        made.kill()
    assert got[:3] == (f"{program} (deleted)", text.offset + 8, "ip")


def maps_of(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def mapped(process: object) -> Memory:
    return Memory(Path(f"/proc/{process}/maps").read_bytes())


def wait_for(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        select.select([], [], [], 0.005)


def test_bpf_process_one_mapping_is_asked_for_as_all_are_read(child: subprocess.Popen[bytes]) -> None:
    every = mapped(child.pid)
    with Process(child.pid, now_ns()) as seen:
        asked = seen.memory()
        if not isinstance(asked, QueriedMemory):
            pytest.skip("needs Linux 6.11: PROCMAP_QUERY")
        assert asked.narrow is every.narrow is False
        assert seen._text().mappings == every.mappings
        for mapping in every.mappings:
            if mapping.path == "[vsyscall]":
                continue  # the kernel's, of every process
            for address in (mapping.start, mapping.end - 1, mapping.end):
                assert asked.at(address) == every.at(address)
                assert asked.code(address) == every.code(address)
        for nowhere in (0, 1, 2**64 - 1, 2**64, -1):
            assert asked.at(nowhere) is None


def test_bpf_process_with_thousands_of_mappings_is_not_read_where_it_cannot_be_asked() -> None:
    body = (
        "import mmap, sys\n"
        "kept = [mmap.mmap(-1, 4096, mmap.MAP_PRIVATE, 1 + i % 2) for i in range(24000)]\n"
        "print('ready', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", body], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as made:
        assert made.stdout is not None
        assert made.stdout.readline() == b"ready\n"
        with Process(made.pid, now_ns()) as seen, pytest.raises(TooMany):
            seen._text()
        made.kill()


def test_bpf_process_code_is_that_of_the_file() -> None:
    with Process(os.getpid(), now_ns()) as seen:
        libc = next(m for m in mapped("self").mappings if m.executable and m.file.startswith("libc"))
        raw = Path(libc.path).read_bytes()
        at = libc.start + 4096
        assert seen.code(libc, at) == raw[libc.offset + 4088 : libc.offset + 4096]
        assert seen.code(libc, libc.start + 3) == raw[libc.offset : libc.offset + 3]
        vdso = next(m for m in mapped("self").mappings if m.path == "[vdso]")
        assert seen.code(vdso, vdso.start + 64) is None


def test_bpf_process_opens_no_device_and_no_other_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    other = tmp_path / "other"
    other.write_bytes(b"x" * 64)
    with Process(os.getpid(), now_ns()) as seen:
        for path, inode in ((pipe, pipe.stat().st_ino), (Path("/dev/null"), 5), (other, other.stat().st_ino + 1)):
            assert seen.code(Mapping(0x1000, 0x2000, "r-xp", 0, "fe:00", inode, str(path)), 0x1010) is None
        right = Mapping(0x1000, 0x2000, "r-xp", 0, "fe:00", other.stat().st_ino, str(other))
        assert seen.code(right, 0x1008) == b"x" * 8


def test_bpf_symbols_getaddrinfo_is_where_the_loader_put_it() -> None:
    address = ctypes.cast(ctypes.CDLL(None).getaddrinfo, ctypes.c_void_p).value
    assert address is not None
    with Process(os.getpid(), now_ns()) as seen:
        libc = seen.memory().code(address)
        assert libc is not None
        found = seen.getaddrinfo(libc)
        assert seen.getaddrinfo(libc) == found, "from the cache"
    assert found is not None
    assert found.start == libc.at(address)
    assert 100 < found.end - found.start < 100_000


def libc_file() -> BinaryIO:
    return open(next(m.path for m in mapped("self").mappings if m.executable and m.file.startswith("libc")), "rb")


def test_bpf_symbols_only_what_is_there() -> None:
    with libc_file() as libc:
        assert symbols.function_range(libc, "no_such_function") is None
        assert symbols.function_range(libc, "ddrinfo") is None, "the end of another name"
    with open("/etc/passwd", "rb") as text:
        assert symbols.function_range(text, "getaddrinfo") is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 20), st.lists(st.tuples(st.integers(0, 63) | st.integers(-4096, -1), st.integers(0, 255))))
def test_bpf_symbols_a_broken_file_has_none_or_some(
    tmp_path_factory: pytest.TempPathFactory, cut: int, spoil: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "broken.so"
    with libc_file() as libc:
        raw = bytearray(libc.read())
    for at, value in spoil:
        raw[at] = value
    path.write_bytes(raw if spoil else raw[:cut])
    with open(path, "rb") as broken:
        assert isinstance(symbols.function_range(broken, "getaddrinfo"), Range | None)


def test_bpf_maker_of_a_process_that_is_gone() -> None:
    with subprocess.Popen(["true"]) as made:
        pass
    got = maker_of(Origin(now_ns(), made.pid, made.pid, 42, 1, 1, (), 0, 0, b""))
    assert (got.syscall, got.facts, got.sorting) == ("connect", None, False)
    assert got.culprit[:3] == ("", 0, "gone")


def test_bpf_maker_of_a_process_that_has_run_another_program_since() -> None:
    body = (
        "import ctypes, os, sys\n"
        "ip = ctypes.cast(ctypes.CDLL(None).connect, ctypes.c_void_p).value\n"
        "sp = [int(l.split('-')[0], 16) for l in open('/proc/self/maps') if '[stack]' in l][0]\n"
        "print(ip, sp, flush=True); sys.stdin.readline(); os.execvp('sleep', ['sleep', '20'])\n"
    )
    with subprocess.Popen([sys.executable, "-c", body], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as made:
        assert made.stdin is not None
        assert made.stdout is not None
        ip, sp = map(int, made.stdout.readline().split())
        where = Origin(now_ns(), made.pid, made.pid, 42, ip, sp, (0,), 0, 0, b"")
        assert maker_of(where).culprit.evidence == "none"
        made.stdin.write(b"\n")
        made.stdin.flush()
        wait_for(lambda: Path(f"/proc/{made.pid}/comm").read_text() == "sleep\n")
        assert maker_of(where).culprit == Culprit("", 0, "changed")
        made.kill()


@given(st.binary(max_size=6000))
def test_bpf_process_command_lines_can_be_printed(raw: bytes) -> None:
    line = process.command_line(raw)
    assert line.isprintable()
    assert line.endswith("…") or len(raw) <= process.CMDLINE_BYTES
    line.encode()


def test_bpf_maker_of_a_ctypes_connect() -> None:
    status, calls = traced.trace([sys.executable, str(CLIENT), "ctypes", "127.0.0.1", "9"])
    (call,) = (c for c in calls if c["to"] == ["127.0.0.1", 9])
    assert status == 111
    assert call["syscall"] == "connect"
    assert "ffi" in call["library"] or "_ctypes" in call["library"]
    assert call["evidence"] == "stack"
    assert call["exe"] == os.path.realpath(sys.executable)
    assert call["cmdline"] == f"{sys.executable} {CLIENT} ctypes 127.0.0.1 9"
    assert not call["sorting"]


def test_bpf_maker_address_sorting_is_told_from_connecting() -> None:
    status, calls = traced.trace([sys.executable, str(CLIENT), "getaddrinfo", "::", "9"])
    assert status == 0
    sorting = [c["sorting"] for c in calls if c["to"] in (["127.0.0.1", 9], ["::1", 9])]
    assert sorting == [True, True]


def test_bpf_maker_address_sorting_for_a_native_module_is_sorting() -> None:
    _, calls = traced.trace([sys.executable, str(CLIENT), "getaddrinfo:ctypes", "::", "9"])
    found = [c["sorting"] for c in calls if c["to"] in (["127.0.0.1", 9], ["::1", 9])]
    assert found
    assert all(found)
