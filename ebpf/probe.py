"""What the running kernel takes, found by trying and undone at once; versions are never compared.

Needs root, changes nothing: programs of two instructions are loaded and closed again.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import struct
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ebpf import cgroup, links, pins, syscall
from ebpf.errors import BpfError, Missing


class Finding(NamedTuple):
    """One feature: `missing` is empty when it is there; `required` when the package cannot work without it."""

    feature: str
    required: bool
    missing: str
    hint: str


_GO = struct.pack("=BBhi", 0xB7, 0, 0, 1) + struct.pack("=BBhi", 0x95, 0, 0, 0)  # r0 = 1; exit

OPTIONAL = (
    links.Hook("setsockopt", 25, 22),  # for vouching
    links.Hook("unix connect", links.SOCK_ADDR, 49),  # v6.7, "bpf: Add cgroup hooks for unix sockets"
)


def probe() -> list[Finding]:
    """Every feature this package uses or could use on this host."""
    found = [
        _try("cgroup v2", True, lambda: str(cgroup.find_v2())),
        _try("bpffs", True, _bpffs),
        _try("bcc", True, _bcc),
    ]
    found += [_try(f"hook {h.function}", True, partial(_hook, h)) for h in links.HOOKS]
    found += [_try(f"hook {h.function}", False, partial(_hook, h)) for h in OPTIONAL]
    return found


def _try(feature: str, required: bool, attempt: Callable[[], object]) -> Finding:
    try:
        attempt()
    except Missing as error:
        return Finding(feature, required, error.what, error.hint)
    except BpfError as error:
        return Finding(feature, required, str(error), error.hint)
    return Finding(feature, required, "", "")


def _hook(hook: links.Hook) -> None:
    os.close(syscall.prog_load(_GO, hook.prog_type, hook.attach_type))


def _bpffs() -> None:
    """Mounted, or mountable: the type is known to the kernel."""
    if pins.mounted(pins.BPFFS):
        return
    with open("/proc/filesystems", encoding="ascii") as file:
        if not any(line.split()[-1] == "bpf" for line in file):
            raise BpfError(errno.ENODEV, "looking for the file system type bpf", "use a kernel with CONFIG_BPF_SYSCALL")


def _bcc() -> None:
    if importlib.util.find_spec("bcc") is None:
        raise Missing("bcc", "apt-get install python3-bpfcc (the PyPI package named bcc is another thing)")
