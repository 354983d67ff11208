"""What the kernel itself counts of BPF programs and maps (bpf(2)), and empty programs to compare with."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.process import Failed
from ebpf import links, syscall

_ENABLE_STATS, _RUN_TIME = 32, 0
_RUN_TIME_AT = 192  # struct bpf_prog_info: run_time_ns, run_cnt
_GO = struct.pack("=BBhi", 0xB7, 0, 0, 1) + struct.pack("=BBhi", 0x95, 0, 0, 0)  # r0 = 1; exit


@contextlib.contextmanager
def counting() -> Iterator[None]:
    """The kernel counts time and runs of every program, which costs each run some 20 to 40 ns."""
    fd = syscall.call(_ENABLE_STATS, struct.pack("=I", _RUN_TIME), "counting the time of BPF programs")
    try:
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def attached(path: Path) -> Iterator[int]:
    """A descriptor of the program behind the link pinned at `path`."""
    found = links.pinned(str(path))
    if found is None:
        raise Failed(f"{path.name} is not attached")
    fd = syscall.call(syscall.PROG_GET_FD_BY_ID, struct.pack("=III", found.prog_id, 0, 0), f"opening {path.name}")
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def empty(cgroup: Path, prog_type: int, attach_type: int) -> Iterator[int]:
    """A program of two instructions on `cgroup` that lets everything pass; its descriptor."""
    fd = syscall.prog_load(_GO, prog_type, attach_type)
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        link = syscall.call(
            syscall.LINK_CREATE, struct.pack("=IIII", fd, directory, attach_type, 0), f"attaching to {cgroup}"
        )
        try:
            yield fd
        finally:
            os.close(link)
    finally:
        os.close(directory)
        os.close(fd)


def ns_a_run(fd: int, work: Callable[[], object]) -> float:
    """Nanoseconds that the program took at each of its runs during `work`, by the kernel's count."""
    ns, runs = _counted(fd)
    work()
    after_ns, after_runs = _counted(fd)
    if after_runs == runs:
        raise Failed("the program did not run")
    return (after_ns - ns) / (after_runs - runs)


def map_bytes(fd: int) -> int:
    """Memory that the kernel accounts to a map, for the elements that it has room for or holds."""
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("memlock:"):
            return int(line.split()[1])
    raise Failed("this kernel does not tell the memory of maps")


def _counted(fd: int) -> tuple[int, int]:
    return struct.unpack_from("=QQ", syscall.obj_info(fd, _RUN_TIME_AT + 16, "reading a program"), _RUN_TIME_AT)
