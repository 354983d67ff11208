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

from ebpf import btf, cgroup, links, pins, syscall
from ebpf.errors import BpfError, Missing


class Finding(NamedTuple):
    """One feature: `missing` is empty when it is there; `required` when the package cannot work without it."""

    feature: str
    required: bool
    missing: str
    hint: str


_GO = struct.pack("=BBhi", 0xB7, 0, 0, 1) + struct.pack("=BBhi", 0x95, 0, 0, 0)  # r0 = 1; exit


def probe() -> list[Finding]:
    """Every feature this package uses or could use on this host."""
    found = [
        attempt("cgroup v2", True, lambda: str(cgroup.find_v2())),
        attempt("bpffs", True, _bpffs),
        attempt("bcc", True, partial(package, "bcc")),
    ]
    found.append(attempt("kernel BTF", False, btf.definitions))
    # Programs for security hooks name their hook when they are loaded: CgroupPrograms.left_out tells of those.
    hooks = [h for h in links.HOOKS if h.prog_type != links.LSM]
    return found + [attempt(f"hook {h.function}", not h.feature, partial(load, h)) for h in hooks]


def attempt(feature: str, required: bool, trial: Callable[[], object]) -> Finding:
    """What came of `trial`, errors included."""
    try:
        trial()
    except Missing as error:
        return Finding(feature, required, error.what, error.hint)
    except BpfError as error:
        return Finding(feature, required, str(error), error.hint)
    return Finding(feature, required, "", "")


def load(hook: links.Hook) -> None:
    """:raises BpfError: the kernel does not take programs for this hook."""
    os.close(syscall.prog_load(_GO, hook.prog_type, hook.attach_type))


def _bpffs() -> None:
    """Mounted, or mountable: the type is known to the kernel."""
    if pins.mounted(pins.BPFFS):
        return
    with open("/proc/filesystems", encoding="ascii") as file:
        mountable(file.read())


def mountable(filesystems: str) -> None:
    """:raises BpfError: /proc/filesystems does not name bpf."""
    if not any(line.split()[-1:] == ["bpf"] for line in filesystems.splitlines()):
        raise BpfError(errno.ENODEV, "looking for the file system type bpf", "use a kernel with CONFIG_BPF_SYSCALL")


def package(name: str) -> None:
    """:raises Missing: there is no such module; it is not imported."""
    if importlib.util.find_spec(name) is None:
        raise Missing("bcc", "apt-get install python3-bpfcc (the PyPI package named bcc is another thing)")
