"""cgroup links: a program's attachment as a pinned object, replaced in place. Needs CAP_BPF and CAP_NET_ADMIN.

A link's update swaps the program between two calls of the hook, so that each call sees exactly one; a link that stays
pinned survives the process that made it. Links exist for cgroups since v5.7 ("bpf: Implement bpf_link-based cgroup BPF
program attachment").
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from ebpf import syscall
from ebpf.errors import BpfError


class Hook(NamedTuple):
    """One attach point: the C function, and include/uapi/linux/bpf.h's numbers for it."""

    function: str
    prog_type: int
    attach_type: int


SOCK, SOCK_ADDR = 9, 18  # BPF_PROG_TYPE_CGROUP_SOCK, BPF_PROG_TYPE_CGROUP_SOCK_ADDR

HOOKS = (
    Hook("am_connect4", SOCK_ADDR, 10),
    Hook("am_connect6", SOCK_ADDR, 11),
    Hook("am_sendmsg4", SOCK_ADDR, 14),
    Hook("am_sendmsg6", SOCK_ADDR, 15),
    Hook("am_sock_create", SOCK, 2),
)

_HINT = (
    "needs root; if another tool holds this hook exclusively in this cgroup or above it, "
    "`bpftool cgroup tree` shows it and that tool must attach with the multi flag"
)


class LinkInfo(NamedTuple):
    prog_id: int
    cgroup_id: int  # 0 once the cgroup is gone
    attach_type: int


def info(fd: int) -> LinkInfo:
    # struct bpf_link_info: type, id, prog_id, padding; then for cgroups: cgroup_id, attach_type
    raw = syscall.obj_info(fd, 32, "reading a link")
    _type, _id, prog_id, _pad, cgroup_id, attach_type = struct.unpack_from("=IIIIQI", raw)
    return LinkInfo(prog_id, cgroup_id, attach_type)


def pinned(path: str) -> LinkInfo | None:
    """The link pinned at `path`, or None where nothing is pinned."""
    if not os.path.lexists(path):
        return None
    fd = syscall.obj_get(path)
    try:
        return info(fd)
    finally:
        os.close(fd)


def attach(path: str, hook: Hook, prog_fd: int, cgroup: str, cgroup_id: int) -> None:
    """Put `prog_fd` into force on `cgroup` and pin the attachment at `path`: an update where a link is there already.

    :raises BpfError: what was in force before still is.
    """
    before = pinned(path)
    if before is not None and before.cgroup_id == cgroup_id and before.attach_type == hook.attach_type:
        fd = syscall.obj_get(path)
        try:
            attr = struct.pack("=IIII", fd, prog_fd, 0, 0)
            syscall.call(syscall.LINK_UPDATE, attr, f"replacing {hook.function} on {cgroup}")
        finally:
            os.close(fd)
        return
    try:
        directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BpfError(error.errno or 0, f"opening the cgroup {cgroup}", "create it first") from error
    try:
        attr = struct.pack("=IIII", prog_fd, directory, hook.attach_type, 0)
        fd = syscall.call(syscall.LINK_CREATE, attr, f"attaching {hook.function} to {cgroup}", _HINT)
    finally:
        os.close(directory)
    try:
        if before is not None:  # of a cgroup that is gone, or of another parent: not ours to keep
            os.unlink(path)
        syscall.obj_pin(fd, path)
    finally:
        os.close(fd)


def detach(path: str) -> None:
    """End the attachment pinned at `path`, whoever else holds it, and remove the pin; idempotent."""
    if not os.path.lexists(path):
        return
    fd = syscall.obj_get(path)
    try:
        if info(fd).cgroup_id:
            syscall.call(syscall.LINK_DETACH, struct.pack("=I", fd), f"detaching {path}")
    finally:
        os.close(fd)
    os.unlink(path)
