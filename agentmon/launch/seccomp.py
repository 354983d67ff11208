"""The job's system call filter as BPF bytes: what no policy on packets could see or hold.

Socket families UNIX, INET, INET6 and NETLINK/ROUTE; native architecture; no new namespaces; no io_uring and no
clone3 (a filter sees neither the opcode in the ring nor flags in memory: ENOSYS makes libc fall back); no keyrings,
which are shared by all processes of a uid across bottles. Everything else is left to uid, capabilities and mounts.

Arguments are compared in 64 bits while the kernel reads ints in 32: a family with high bits set differs from
every family on the list, so it is refused, never admitted.
"""

from __future__ import annotations

import errno
import os
import socket
from functools import lru_cache
from typing import Any

from agentmon.errors import HostLacks

_NAMESPACES = {  # include/uapi/linux/sched.h
    "CLONE_NEWUSER": 0x10000000,
    "CLONE_NEWNET": 0x40000000,
    "CLONE_NEWNS": 0x00020000,
    "CLONE_NEWCGROUP": 0x02000000,
    "CLONE_NEWUTS": 0x04000000,
    "CLONE_NEWIPC": 0x08000000,
    "CLONE_NEWPID": 0x20000000,
    "CLONE_NEWTIME": 0x00000080,
}
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
_NOT_PERMITTED = (
    "keyctl", "add_key", "request_key",
    "setns", "bpf", "perf_event_open", "userfaultfd", "open_by_handle_at",
    "mount", "umount2", "pivot_root", "fsopen", "fsmount", "move_mount", "open_tree", "mount_setattr",
    "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module",
)  # fmt: skip
_NO_SUCH_CALL = ("clone3",)
_IO_URING = ("io_uring_setup", "io_uring_enter", "io_uring_register")


def _library() -> Any:
    try:
        import pyseccomp  # reads the linker's cache on import: not for those who never filter
    except (ImportError, RuntimeError) as e:
        raise HostLacks("libseccomp is not there, so no job can be filtered", "apt-get install libseccomp2") from e
    return pyseccomp


@lru_cache(maxsize=2)
def filter_bytes(io_uring: bool) -> bytes:
    """The filter as an array of struct sock_filter, for `bwrap --seccomp`; seccomp(2).

    :raises HostLacks: libseccomp is missing.
    """
    lib = _library()
    rules = lib.SyscallFilter(lib.ALLOW)
    rules.set_attr(lib.Attr.ACT_BADARCH, lib.KILL_PROCESS)

    def refuse(name: str, number: int, *args: object) -> None:
        # A call that this libseccomp does not know by name cannot be listed; 2.5.4 knows all of these.
        rules.add_rule(lib.ERRNO(number), name, *args)

    top = max(_FAMILIES)
    for name in ("socket", "socketpair"):
        for family in set(range(top)) - set(_FAMILIES):
            refuse(name, errno.EAFNOSUPPORT, lib.Arg(0, lib.EQ, family))
        refuse(name, errno.EAFNOSUPPORT, lib.Arg(0, lib.GT, top))
    netlink_route = 0
    refuse("socket", errno.EPROTONOSUPPORT, lib.Arg(0, lib.EQ, socket.AF_NETLINK), lib.Arg(2, lib.NE, netlink_route))

    for flag in _NAMESPACES.values():
        refuse("unshare", errno.EPERM, lib.Arg(0, lib.MASKED_EQ, flag, flag))
        if flag != _NAMESPACES["CLONE_NEWTIME"]:  # clone(2) reads that bit as part of the exit signal
            refuse("clone", errno.EPERM, lib.Arg(0, lib.MASKED_EQ, flag, flag))
    for name in _NOT_PERMITTED:
        refuse(name, errno.EPERM)
    for name in _NO_SUCH_CALL + (() if io_uring else _IO_URING):
        refuse(name, errno.ENOSYS)

    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as reader:
        with os.fdopen(write_end, "wb") as writer:
            rules.export_bpf(writer)
        return reader.read()
