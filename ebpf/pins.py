"""Where pins stand, and what is done with those of an earlier start.

    DIR/links/am_connect4 …      attachments, kept over upgrades; DIR/attached/SLOT/am_connect4 … on other cgroups
    DIR/layout-HASH/am_bottle …  maps; HASH names their layout and sizes, so another layout is another directory

An upgrade makes the new directory, replaces the attachments one by one, then removes the old directory.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from ebpf import cgroup, links, syscall
from ebpf.errors import BpfError

BPFFS = Path("/sys/fs/bpf")


class Pins:
    """The directory of one installation's pins, below a bpffs."""

    def __init__(self, directory: Path, layout: str) -> None:
        self.directory = directory
        self.links = directory / "links"
        self.maps = directory / f"layout-{layout}"

    def prepare(self) -> None:
        """Mount bpffs where it is not (left mounted), and make the directories, for root only.

        :raises Missing: bpffs cannot be mounted.
        """
        if BPFFS in self.directory.parents and not mounted(BPFFS):
            syscall.mount("bpf", str(BPFFS), "bpf")
        for path in (self.directory, self.links, self.maps):
            path.mkdir(mode=0o700, exist_ok=True)

    def in_force(self, cgroup_id: int, features: Iterable[str]) -> bool:
        """Whether the pinned link of every required hook, and of every hook of `features`, is attached there."""
        return not self.missing(cgroup_id, features)

    def missing(self, cgroup_id: int, features: Iterable[str]) -> list[str]:
        """Functions of those hooks whose link is not."""
        wanted = {"", *features}
        return [
            hook.function
            for hook in links.HOOKS
            if hook.feature in wanted and not links.is_in_force(str(self.links / hook.function), hook, cgroup_id)
        ]

    def attached(self) -> list[Path]:
        """A directory of links for each cgroup besides the parent; its name is the slot."""
        where = self.directory / "attached"
        return sorted(where.iterdir()) if where.is_dir() else []

    def attach(self, slot: int, cgroup_path: str, cgroup_id: int) -> None:
        """The programs that are in force on the parent, also on this cgroup; completes what is there already.

        :raises BpfError: what was attached before still is."""
        where = self.directory / "attached" / str(slot)
        for path in (where.parent, where):
            path.mkdir(mode=0o700, exist_ok=True)
        for hook in links.HOOKS:
            here, parent = str(where / hook.function), links.pinned(str(self.links / hook.function))
            if hook.everywhere or parent is None or links.is_in_force(here, hook, cgroup_id):
                continue
            fd = syscall.prog_fd(parent.prog_id)
            try:
                links.attach(here, hook, fd, cgroup_path, cgroup_id)
            finally:
                os.close(fd)

    def detach(self, slot: int) -> None:
        """Idempotent."""
        where = self.directory / "attached" / str(slot)
        if where.is_dir():
            for path in where.iterdir():
                links.detach(str(path))
            where.rmdir()

    def drop_stale(self) -> None:
        """Remove maps of other layouts, and links of hooks that this version does not have."""
        hooks = {h.function for h in links.HOOKS}
        for directory in (self.links, *self.attached()):
            for path in directory.iterdir():
                if path.name not in hooks:
                    links.detach(str(path))
        for path in self.directory.glob("layout-*"):
            if path != self.maps:
                shutil.rmtree(path)

    def remove(self) -> None:
        """Detach everything, then remove every pin; idempotent."""
        for directory in (self.links, *self.attached()):
            if directory.is_dir():
                for path in directory.iterdir():
                    links.detach(str(path))
        try:
            shutil.rmtree(self.directory)
        except FileNotFoundError:
            return
        except OSError as error:
            raise BpfError(error.errno or 0, f"removing the pins in {self.directory}") from error


def mounted(path: Path) -> bool:
    """Whether a bpf file system is mounted at `path`."""
    text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    return any(point == os.fspath(path) and fstype == "bpf" for _, point, fstype in cgroup.parse_mountinfo(text))
