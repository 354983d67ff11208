"""Whether this kernel runs BPF LSM and fentry programs, found by attaching one and seeing it decide. Needs root.

For throwaway guests: while the LSM program is in force (microseconds), every listen(2) of the machine is refused.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path

from ebpf import syscall
from ebpf.errors import BpfError

BTF = Path("/sys/kernel/btf/vmlinux")
LSM, LSM_MAC = 29, 27  # BPF_PROG_TYPE_LSM, BPF_LSM_MAC
TRACING, FENTRY = 26, 24  # BPF_PROG_TYPE_TRACING, BPF_TRACE_FENTRY
RAW_TRACEPOINT_OPEN = 17
_FUNC = 12  # BTF_KIND_FUNC
# include/uapi/linux/btf.h: bytes that follow struct btf_type, by kind; the rest grow with their number of members
_TAIL = {1: 4, 3: 12, 14: 4, 17: 4}
_MEMBER = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}


def findings() -> dict[str, str]:
    """What came of each trial: "yes", or why not."""
    return {"LSM": lsm(), "fentry": fentry()}


def lsm() -> str:
    try:
        program = load("bpf_lsm_socket_listen", LSM, LSM_MAC, -errno.EPERM)
    except (OSError, LookupError) as error:
        return f"not loaded: {error}"
    try:
        link = attach(program)
    except BpfError as error:
        return f"not attached: {error}"
    finally:
        os.close(program)
    try:
        with socket.socket() as s:
            s.listen()
        return "attached, but never asked: bpf is not in /sys/kernel/security/lsm (boot with lsm=…,bpf)"
    except PermissionError:
        return "yes"
    finally:
        os.close(link)


def fentry() -> str:
    try:
        program = load("tcp_v4_connect", TRACING, FENTRY, 0)
    except (OSError, LookupError) as error:
        return f"not loaded: {error}"
    try:
        os.close(attach(program))
    except BpfError as error:
        return f"not attached: {error}"
    finally:
        os.close(program)
    return "yes"


def load(function: str, prog_type: int, attach_type: int, result: int) -> int:
    """A descriptor of a program at the entry of a kernel `function` that returns `result`.

    :raises LookupError: the kernel has no such function, or no BTF.
    :raises BpfError: the kernel does not take it.
    """
    if not BTF.exists():
        raise LookupError(f"{BTF} is not there (CONFIG_DEBUG_INFO_BTF)")
    target = function_id(BTF.read_bytes(), function)
    code = struct.pack("=BBhi", 0xB7, 0, 0, result) + struct.pack("=BBhi", 0x95, 0, 0, 0)  # r0 = result; exit
    gpl = b"GPL\0"
    attr = struct.pack("=IIQQ", prog_type, 2, syscall.address(code), syscall.address(gpl))
    attr = attr.ljust(68, b"\0") + struct.pack("=I", attach_type)
    attr = attr.ljust(108, b"\0") + struct.pack("=I", target)  # attach_btf_id
    return syscall.call(syscall.PROG_LOAD, attr, f"loading a program for {function}")


def attach(program: int) -> int:
    """A descriptor of the attachment, which ends with it."""
    return syscall.call(RAW_TRACEPOINT_OPEN, struct.pack("=QI", 0, program), "attaching by a trampoline")


def function_id(btf: bytes, function: str) -> int:
    """The BTF type id of a kernel function (Documentation/bpf/btf.rst). Pure.

    :raises LookupError: there is none.
    """
    _magic, _version, _flags, head, type_off, type_len, str_off, str_len = struct.unpack_from("=HBBIIIII", btf)
    strings = head + str_off
    name = btf.find(b"\0" + function.encode() + b"\0", strings, strings + str_len)
    if name < 0:
        raise LookupError(f"this kernel has no function {function}")
    wanted, position, number = name + 1 - strings, head + type_off, 0
    end = position + type_len
    while position < end:
        number += 1
        name_off, info, _size = struct.unpack_from("=III", btf, position)
        kind = info >> 24 & 0x1F
        if kind == _FUNC and name_off == wanted:
            return number
        position += 12 + _TAIL.get(kind, 0) + _MEMBER.get(kind, 0) * (info & 0xFFFF)
    raise LookupError(f"this kernel has no function {function}")
