"""Decodes the records of the ring am_origins (struct am_origin, end to end): where in a process an operation came from.

Pure. What the addresses mean is found by culprit.py from the mappings that process.py reads.
"""

from __future__ import annotations

import platform
import struct
from typing import Any, NamedTuple

from ebpf import abi

ORIGIN = struct.Struct(f"=QIIQQQIBBH{abi.C['AM_PATH_LEN']}s4x{abi.C['AM_STACK_WORDS']}Q")
"""struct am_origin."""

NO_CALL = (1 << 64) - 1
"""`nr` of an operation outside any system call."""

_X32 = 1 << 30  # __X32_SYSCALL_BIT, arch/x86/include/uapi/asm/unistd.h

# arch/x86/entry/syscalls/syscall_64.tbl, syscall_32.tbl; include/uapi/asm-generic/unistd.h for arm64 and riscv
_GENERIC = {
    198: "socket", 199: "socketpair", 200: "bind", 201: "listen", 203: "connect", 206: "sendto", 208: "setsockopt",
    211: "sendmsg", 269: "sendmmsg", 426: "io_uring",
}  # fmt: skip
_NAMES: dict[str, dict[int, str]] = {
    "x86_64": {
        41: "socket", 42: "connect", 44: "sendto", 46: "sendmsg", 49: "bind", 50: "listen", 53: "socketpair",
        54: "setsockopt", 307: "sendmmsg", 426: "io_uring",
    },
    "i386": {
        102: "socketcall", 345: "sendmmsg", 359: "socket", 360: "socketpair", 361: "bind", 362: "connect",
        363: "listen", 366: "setsockopt", 369: "sendto", 370: "sendmsg", 426: "io_uring",
    },
    "x32": {
        41: "socket", 42: "connect", 44: "sendto", 49: "bind", 50: "listen", 53: "socketpair", 426: "io_uring",
        518: "sendmsg", 538: "sendmmsg", 541: "setsockopt",
    },
    "aarch64": _GENERIC,
    "riscv64": _GENERIC,
}  # fmt: skip


class Origin(NamedTuple):
    """One record. `ts_ns` (CLOCK_BOOTTIME) and `pid`, the thread's, are those of the event that it belongs to."""

    ts_ns: int
    pid: int
    tgid: int
    nr: int  # system call as the machine has it, NO_CALL: none
    ip: int  # user instruction pointer; 0: there is no user stack
    sp: int
    words: tuple[int, ...]  # the user stack from sp upwards, 8 bytes each
    task: int  # AM_TASK_*
    compat: int  # 1: a 32-bit system call
    path: bytes  # of a unix socket; an abstract one begins with NUL

    @property
    def worker(self) -> bool:
        """Made by a thread of io_uring: neither `ip` nor `words` say anything."""
        return self.task == abi.C["AM_TASK_IO_WORKER"]


def decode(records: bytes) -> list[Origin]:
    """Origins in the ring's order.

    :raises ValueError: not a whole number of records.
    """
    if len(records) % ORIGIN.size:
        raise ValueError(f"{len(records)} bytes of origins: records have {ORIGIN.size} bytes each")
    return [_origin(fields) for fields in ORIGIN.iter_unpack(records)]


def _origin(fields: tuple[Any, ...]) -> Origin:
    ts_ns, pid, tgid, nr, ip, sp, words, task, compat, path_len, path, *stack = fields
    return Origin(ts_ns, pid, tgid, nr, ip, sp, tuple(stack[:words]), task, compat, path[:path_len])


def syscall_name(origin: Origin, machine: str | None = None) -> str:
    """The name as events have it: `connect`, `i386:socketcall`, `io_uring`; an unknown call is its number.

    `machine` is that of uname(2), this one's by default. What a worker of io_uring does, or what runs outside any
    system call (the task work of io_uring, on the way back from an interrupt), is `io_uring`.
    """
    if origin.worker or origin.nr == NO_CALL:
        return "io_uring"
    table, nr = machine or platform.machine(), origin.nr
    prefix = ""
    if table == "x86_64" and origin.compat:
        table, prefix = "i386", "i386:"
    elif table == "x86_64" and nr & _X32:
        table, prefix, nr = "x32", "x32:", nr & ~_X32
    name = _NAMES.get(table, {}).get(nr, str(nr))
    return name if name == "io_uring" else prefix + name
