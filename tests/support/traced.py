"""Runs a program under ptrace(2) and tells of each of its socket calls who made it, as ebpf.maker sees it.

An origin is taken where the kernel's programs take it: at the system call, from the thread's registers and stack.
`python -m tests.support.traced PROGRAM …` prints one JSON object a call, on descriptor 3 when it is open, else on
standard output, and exits as the program did. Its own children only: no privilege.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from ebpf import abi
from ebpf.maker import maker_of
from ebpf.origin import Origin, syscall_name

TRACEME, CONT, SYSCALL, SETOPTIONS, GET_SYSCALL_INFO = 0, 7, 24, 0x4200, 0x420E
OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x100000  # SYSGOOD, FORK, VFORK, CLONE, EXEC, EXITKILL
WALL = 0x40000000
SYSCALL_STOP = 5 | 0x80
TRAP, STOP = 5, 19
INFO = struct.Struct("=B3xIQQQ6Q")  # struct ptrace_syscall_info at an entry: op, arch, ip, sp, nr, args
ENTRY = 1
AUDIT_ARCH_I386 = 0x40000003
CALLS = ("connect", "sendto", "sendmsg", "io_uring", "i386:socketcall", "i386:connect")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


def trace(argv: Sequence[str], env: dict[str, str] | None = None) -> tuple[int, list[dict[str, Any]]]:
    """Exit status and calls of a program, traced by a process of its own, so that this one's children are its own."""
    read, write = os.pipe()
    with os.fdopen(read) as answers:
        command = [sys.executable, "-m", "tests.support.traced", str(write), *argv]
        with subprocess.Popen(command, pass_fds=[write], env=env) as process:
            os.close(write)
            lines = answers.read().splitlines()
    return process.returncode, [json.loads(line) for line in lines]


def run(out: Any, argv: Sequence[str]) -> int:
    process = subprocess.Popen(argv, preexec_fn=_trace_me)  # ends with us: EXITKILL
    status = 0
    first = True
    while True:
        try:
            tid, state = os.waitpid(-1, WALL)
        except ChildProcessError:
            return status
        if os.WIFEXITED(state) or os.WIFSIGNALED(state):
            if tid == process.pid:
                status = os.waitstatus_to_exitcode(state)
            continue
        signal = os.WSTOPSIG(state)
        if first:
            _libc.ptrace(SETOPTIONS, tid, None, OPTIONS)
            first = False
        elif signal == SYSCALL_STOP:
            look(out, tid)
        inject = 0 if signal in (SYSCALL_STOP, TRAP, STOP) else signal
        _libc.ptrace(SYSCALL, tid, None, inject)


def _trace_me() -> None:
    _libc.ptrace(TRACEME, 0, None, None)


def look(out: Any, tid: int) -> None:
    raw = ctypes.create_string_buffer(INFO.size)
    got = _libc.ptrace(GET_SYSCALL_INFO, tid, INFO.size, ctypes.addressof(raw))
    if got < INFO.size or raw.raw[0] != ENTRY:
        return
    _, arch, ip, sp, nr, *arguments = INFO.unpack(raw.raw)
    compat = int(arch == AUDIT_ARCH_I386)
    with open(f"/proc/{tid}/mem", "rb", buffering=0) as memory:
        stack = read(memory, sp, abi.C["AM_STACK_WORDS"] * 8)
        with open(f"/proc/{tid}/status") as about:
            tgid = next(int(line.split()[1]) for line in about if line.startswith("Tgid:"))
        words = struct.unpack(f"={len(stack) // 8}Q", stack[: len(stack) // 8 * 8])
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        origin = Origin(now, tid, tgid, nr, ip, sp, words, 0, compat, b"")
        if syscall_name(origin) not in CALLS:
            return
        began = time.perf_counter_ns()
        maker = maker_of(origin)
        took = time.perf_counter_ns() - began
        found = {
            "syscall": maker.syscall, "library": maker.culprit.library, "offset": maker.culprit.offset,
            "evidence": maker.culprit.evidence, "line": str(maker.culprit), "sorting": maker.sorting,
            "exe": maker.facts.exe if maker.facts else "", "cmdline": maker.facts.cmdline if maker.facts else "",
            "to": destination(memory, maker.syscall, arguments), "took_ns": took,
            "raw": {"ip": ip, "sp": sp, "words": words},
        }  # fmt: skip
    out.write(json.dumps(found) + "\n")
    out.flush()


def destination(memory: Any, call: str, arguments: Sequence[int]) -> list[Any] | None:
    """Address and port of connect(2), None for what has none here."""
    at, size = arguments[1:3]
    if call == "i386:socketcall":
        _, at, size = struct.unpack("=3I", read(memory, arguments[1], 12))
    elif call != "connect":
        return None
    raw = read(memory, at, size)
    (family,) = struct.unpack_from("=H", raw)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    (port,) = struct.unpack_from("!H", raw, 2)
    address = raw[4:8] if family == socket.AF_INET else raw[8:24]
    return [socket.inet_ntop(family, address), port]


def read(memory: Any, at: int, size: int) -> bytes:
    try:
        memory.seek(at)
        return memory.read(size)
    except (OSError, ValueError):
        return b""


if __name__ == "__main__":
    with os.fdopen(int(sys.argv[1]), "w") as answers:
        sys.exit(run(answers, sys.argv[2:]))
