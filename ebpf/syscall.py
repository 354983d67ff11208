"""bpf(2) and mount(2) through libc, the only file of the package that makes system calls by number.

Attributes are packed by hand after `union bpf_attr` of include/uapi/linux/bpf.h; bytes past what a command uses are
zero, which every kernel accepts. Addresses point into objects that the caller keeps alive.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

from ebpf.errors import BpfError, Missing

MAP_LOOKUP_ELEM, MAP_UPDATE_ELEM, MAP_DELETE_ELEM = 1, 2, 3
PROG_LOAD, OBJ_PIN, OBJ_GET = 5, 6, 7
PROG_GET_FD_BY_ID = 13
OBJ_GET_INFO_BY_FD = 15
PROG_QUERY = 16
RAW_TRACEPOINT_OPEN = 17
MAP_LOOKUP_BATCH, MAP_LOOKUP_AND_DELETE_BATCH, MAP_UPDATE_BATCH, MAP_DELETE_BATCH = 24, 25, 26, 27
LINK_CREATE, LINK_UPDATE, LINK_DETACH = 28, 29, 34

_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_ATTR_BYTES = 128

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def bpf(command: int, attr: bytes | bytearray) -> tuple[int, int, bytes]:
    """(result, errno, attributes afterwards): some commands answer inside the attributes."""
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise Missing(f"bpf(2) on {platform.machine()}", f"supported machines: {', '.join(_NUMBERS)}")
    buffer = ctypes.create_string_buffer(bytes(attr), _ATTR_BYTES)
    result = _libc.syscall(
        ctypes.c_long(number), ctypes.c_long(command), ctypes.byref(buffer), ctypes.c_ulong(_ATTR_BYTES)
    )
    return result, (ctypes.get_errno() if result < 0 else 0), buffer.raw


def call(command: int, attr: bytes, operation: str, hint: str = "") -> int:
    """:raises BpfError: with `operation` in its text."""
    result, number, _ = bpf(command, attr)
    if result < 0:
        raise BpfError(number, operation, hint)
    return result


def address(data: bytes) -> int:
    """Where the bytes stand; valid while the caller holds `data`."""
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


def obj_get(path: str) -> int:
    """A descriptor of the map, program or link pinned at `path`; the caller closes it."""
    name = os.fsencode(path) + b"\0"
    return call(OBJ_GET, struct.pack("=QII", address(name), 0, 0), f"opening the pin {path}")


def obj_pin(fd: int, path: str) -> None:
    name = os.fsencode(path) + b"\0"
    call(OBJ_PIN, struct.pack("=QII", address(name), fd, 0), f"pinning at {path}")


def obj_info(fd: int, size: int, operation: str) -> bytes:
    """The first `size` bytes of struct bpf_{map,prog,link}_info of `fd`."""
    info = ctypes.create_string_buffer(size)
    call(OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, size, ctypes.addressof(info)), operation)
    return info.raw


def prog_fd(prog_id: int) -> int:
    """A descriptor of a loaded program; the caller closes it."""
    return call(PROG_GET_FD_BY_ID, struct.pack("=III", prog_id, 0, 0), f"opening the program {prog_id}")


def prog_load(instructions: bytes, prog_type: int, attach_type: int, attach_btf_id: int = 0) -> int:
    """A descriptor of a program made of raw `instructions` (8 bytes each). Used for probing.

    :raises BpfError: the kernel does not take this type.
    """
    gpl = b"GPL\0"
    attr = struct.pack("=IIQQ", prog_type, len(instructions) // 8, address(instructions), address(gpl))
    attr = attr.ljust(68, b"\0") + struct.pack("=I", attach_type)  # past the log, flags, name and ifindex
    attr = attr.ljust(108, b"\0") + struct.pack("=I", attach_btf_id)  # past BTF, function and line information
    return call(PROG_LOAD, attr, f"loading a program of type {prog_type}, attach type {attach_type}")


def mount(source: str, target: str, fstype: str) -> None:
    if _libc.mount(source.encode(), target.encode(), fstype.encode(), ctypes.c_ulong(0), None) != 0:
        number = ctypes.get_errno()
        raise Missing(
            f"{fstype} at {target}: {os.strerror(number)}",
            "use a kernel with CONFIG_BPF_SYSCALL"
            if number == errno.ENODEV
            else f"as root: mount -t {fstype} {source} {target}",
        )


def timerfd() -> int:
    """A disarmed, non-blocking CLOCK_MONOTONIC timer (os.timerfd_create exists only from Python 3.13)."""
    fd: int = _libc.timerfd_create(1, os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        raise BpfError(ctypes.get_errno(), "timerfd_create")
    return fd


def arm(fd: int, after_ns: int) -> None:
    """Make `fd` readable once, `after_ns` from now; 0 disarms."""
    spec = struct.pack("=qqqq", 0, 0, after_ns // 1_000_000_000, after_ns % 1_000_000_000)
    if _libc.timerfd_settime(fd, 0, spec, None) < 0:
        raise BpfError(ctypes.get_errno(), "timerfd_settime")
