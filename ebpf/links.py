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
    """One attach point: the C function, and include/uapi/linux/bpf.h's numbers for it.

    `feature` names the group of optional programs it belongs to ("" for what must be there); a raw tracepoint has its
    name in `tracepoint`. `code` is the C function where several hooks load the same one."""

    function: str
    prog_type: int
    attach_type: int
    feature: str = ""
    tracepoint: str = ""
    code: str = ""

    @property
    def everywhere(self) -> bool:
        """Attached to the kernel, not to a cgroup."""
        return self.prog_type in {RAW_TRACEPOINT, LSM}


SOCK, SOCK_ADDR, RAW_TRACEPOINT, SOCKOPT, LSM = 9, 18, 17, 25, 29  # BPF_PROG_TYPE_CGROUP_SOCK, …
LSM_MAC = 27  # BPF_LSM_MAC
CGROUP_LINK = 3  # BPF_LINK_TYPE_CGROUP

# Decisions before the attribution of the same hook: programs of one hook run in the order in which they were attached.
HOOKS = (
    Hook("am_connect4", SOCK_ADDR, 10),
    Hook("am_connect6", SOCK_ADDR, 11),
    Hook("am_sendmsg4", SOCK_ADDR, 14),
    Hook("am_sendmsg6", SOCK_ADDR, 15),
    Hook("am_sock_create", SOCK, 2),
    Hook("am_bind4", SOCK_ADDR, 8),
    Hook("am_bind6", SOCK_ADDR, 9),
    Hook("am_post_bind4", SOCK, 12),
    Hook("am_post_bind6", SOCK, 13),
    Hook("am_fork", RAW_TRACEPOINT, 0, "vouch", "sched_process_fork"),
    Hook("am_exec", RAW_TRACEPOINT, 0, "vouch", "sched_process_exec"),
    Hook("am_exit", RAW_TRACEPOINT, 0, "vouch", "sched_process_exit"),
    Hook("am_setsockopt", SOCKOPT, 22, "vouch"),
    Hook("am_unix_connect", SOCK_ADDR, 49, "unix"),
    Hook("am_unix_sendmsg", SOCK_ADDR, 50, "unix"),
    Hook("am_by_connect4", SOCK_ADDR, 10, "origin", code="am_by_address"),
    Hook("am_by_connect6", SOCK_ADDR, 11, "origin", code="am_by_address"),
    Hook("am_by_sendmsg4", SOCK_ADDR, 14, "origin", code="am_by_address"),
    Hook("am_by_sendmsg6", SOCK_ADDR, 15, "origin", code="am_by_address"),
    Hook("am_by_create", SOCK, 2, "origin"),
    Hook("am_by_bind4", SOCK_ADDR, 8, "origin", code="am_by_address"),
    Hook("am_by_bind6", SOCK_ADDR, 9, "origin", code="am_by_address"),
    Hook("am_by_unix_c", SOCK_ADDR, 49, "origin unix", code="am_by_address"),
    Hook("am_by_unix_s", SOCK_ADDR, 50, "origin unix", code="am_by_address"),
    Hook("lsm__socket_connect", LSM, LSM_MAC, "lsm"),  # bcc finds the security hook by the name behind lsm__
    Hook("lsm__socket_sendmsg", LSM, LSM_MAC, "lsm"),
    Hook("lsm__socket_create", LSM, LSM_MAC, "lsm"),
)
REQUIRED = tuple(h for h in HOOKS if not h.feature)
FEATURES = ("vouch", "origin", "unix", "origin unix", "lsm")
"""Groups of optional programs; each is in force whole or not at all."""

_HINT = (
    "needs root; if another tool holds this hook exclusively in this cgroup or above it, "
    "`bpftool cgroup tree` shows it and that tool must attach with the multi flag"
)


class LinkInfo(NamedTuple):
    prog_id: int
    cgroup_id: int  # 0 once the cgroup is gone, and for a tracepoint
    attach_type: int


def info(fd: int) -> LinkInfo:
    # struct bpf_link_info: type, id, prog_id, padding; then for cgroups: cgroup_id, attach_type
    raw = syscall.obj_info(fd, 32, "reading a link")
    kind, _id, prog_id, _pad, cgroup_id, attach_type = struct.unpack_from("=IIIIQI", raw)
    return LinkInfo(prog_id, cgroup_id, attach_type) if kind == CGROUP_LINK else LinkInfo(prog_id, 0, 0)


def pinned(path: str) -> LinkInfo | None:
    """The link pinned at `path`, or None where nothing is pinned."""
    if not os.path.lexists(path):
        return None
    fd = syscall.obj_get(path)
    try:
        return info(fd)
    finally:
        os.close(fd)


def is_in_force(path: str, hook: Hook, cgroup_id: int) -> bool:
    link = pinned(path)
    if link is None:
        return False
    return hook.everywhere or (link.cgroup_id == cgroup_id and link.attach_type == hook.attach_type)


def attach(path: str, hook: Hook, prog_fd: int, cgroup: str, cgroup_id: int) -> None:
    """Put `prog_fd` into force on `cgroup` and pin the attachment at `path`: an update where a link is there already.

    :raises BpfError: what was in force before still is.
    """
    if hook.everywhere:
        _attach_everywhere(path, hook, prog_fd)
    elif is_in_force(path, hook, cgroup_id):
        update(path, hook, prog_fd)
    else:
        _attach_cgroup(path, hook, prog_fd, cgroup)


def update(path: str, hook: Hook, prog_fd: int) -> None:
    """Swap the program of the cgroup link pinned at `path`; each call of the hook meets exactly one of the two."""
    fd = syscall.obj_get(path)
    try:
        attr = struct.pack("=IIII", fd, prog_fd, 0, 0)
        syscall.call(syscall.LINK_UPDATE, attr, f"replacing {hook.function} at {path}")
    finally:
        os.close(fd)


def _attach_cgroup(path: str, hook: Hook, prog_fd: int, cgroup: str) -> None:
    try:
        directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BpfError(error.errno or 0, f"opening the cgroup {cgroup}", "create it first") from error
    try:
        attr = struct.pack("=IIII", prog_fd, directory, hook.attach_type, 0)
        fd = syscall.call(syscall.LINK_CREATE, attr, f"attaching {hook.function} to {cgroup}", _HINT)
    finally:
        os.close(directory)
    _pin(fd, path)


def _attach_everywhere(path: str, hook: Hook, prog_fd: int) -> None:
    """These links cannot be updated; old and new one run side by side for an instant, which changes nothing here:
    following a process twice is following it, and what one security hook refuses the other does not open."""
    name = hook.tracepoint.encode() + b"\0"
    attr = struct.pack("=QI", syscall.address(name) if hook.tracepoint else 0, prog_fd)
    where = hook.tracepoint or hook.function.removeprefix("lsm__")
    _pin(syscall.call(syscall.RAW_TRACEPOINT_OPEN, attr, f"attaching {hook.function} to {where}"), path)


def _pin(fd: int, path: str) -> None:
    """Pin `fd` at `path`, in place of what is pinned there (of a cgroup that is gone, or an older version)."""
    fresh = f"{path}-new"
    try:
        if os.path.lexists(fresh):
            os.unlink(fresh)
        syscall.obj_pin(fd, fresh)
        os.rename(fresh, path)
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
