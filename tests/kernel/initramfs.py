"""The initial ram disk: a static shell and the modules without which the host's files are out of reach. Pure.

Format: "newc" of cpio (Documentation/driver-api/early-userspace/buffer-format.rst), uncompressed.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping

WANTED = ("virtio_pci", "9pnet_virtio", "9p", "overlay")  # built in or a module: both are fine


def archive(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """A cpio archive of `files` (path → permissions, contents); their directories are made."""
    directories = sorted({parent for path in files for parent in _parents(path)})
    entries = [_entry(n, path, stat.S_IFDIR | 0o755, b"") for n, path in enumerate(directories, 1)]
    entries += [
        _entry(n, path, stat.S_IFREG | mode, data)
        for n, (path, (mode, data)) in enumerate(files.items(), 1 + len(directories))
    ]
    return b"".join([*entries, _entry(0, "TRAILER!!!", 0, b"")])


def closure(modules_dep: str, wanted: Iterable[str]) -> list[str]:
    """Paths of the modules `wanted` and of what they need, in the order of insertion (modules.dep(5)).

    What is not listed is taken to be built in.
    """
    needs = {}
    for line in modules_dep.splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    by_name = {module_name(path): path for path in needs}
    order: list[str] = []

    def add(path: str) -> None:
        for before in reversed(needs[path]):  # the last named is the deepest
            if before not in order:
                add(before)
        if path not in order:
            order.append(path)

    for name in wanted:
        if name in by_name:
            add(by_name[name])
    return order


def module_name(path: str) -> str:
    """kernel/fs/9p/9p.ko.xz → 9p; dashes and underscores are one."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]


def _entry(inode: int, name: str, mode: int, data: bytes) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return head + _pad(head) + data + _pad(data)


def _pad(data: bytes) -> bytes:
    return b"\0" * (-len(data) % 4)
