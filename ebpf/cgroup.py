"""Where cgroup v2 is, and what names a cgroup in the kernel: its level and its id."""

from __future__ import annotations

import os
from pathlib import Path

from ebpf.errors import Missing

_ESCAPES = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\134": "\\"}


def parse_mountinfo(text: str) -> list[tuple[str, str, str]]:
    """(root, mount point, type) of every line of /proc/PID/mountinfo (proc_pid_mountinfo(5)). Pure."""
    mounts = []
    for line in text.splitlines():
        before, found, after = line.partition(" - ")
        fields = before.split(" ")
        if found and len(fields) > 4:
            mounts.append((_unescape(fields[3]), _unescape(fields[4]), after.split(" ")[0]))
    return mounts


def find_v2() -> Path:
    """The mount point of the cgroup v2 hierarchy; on a hybrid layout it is not /sys/fs/cgroup.

    :raises Missing: the host has cgroup v1 only.
    """
    return v2_of(parse_mountinfo(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")))


def v2_of(mounts: list[tuple[str, str, str]]) -> Path:
    """The same for a given list of mounts. Pure."""
    for root, point, fstype in mounts:
        if fstype == "cgroup2" and root == "/":
            return Path(point)
    raise Missing(
        "a cgroup v2 hierarchy",
        "boot with systemd.unified_cgroup_hierarchy=1, or: mkdir -p /sys/fs/cgroup/unified && "
        "mount -t cgroup2 none /sys/fs/cgroup/unified",
    )


def level(cgroup: str | Path) -> int:
    """How deep below the root of the v2 hierarchy a cgroup is (the root itself: 0), as the kernel counts ancestors.

    :raises Missing: `cgroup` is not a directory of the v2 hierarchy.
    """
    root = find_v2()
    path = Path(os.path.realpath(cgroup))
    if not path.is_dir() or not path.is_relative_to(root):
        raise Missing(f"a cgroup v2 directory at {cgroup}", f"create it below {root}")
    return len(path.relative_to(root).parts)


def cgroup_id(cgroup: str | Path) -> int:
    """The kernel's id of a cgroup: the inode of its directory."""
    return os.stat(cgroup).st_ino


def _unescape(text: str) -> str:
    for escape, char in _ESCAPES.items():
        text = text.replace(escape, char)
    return text
