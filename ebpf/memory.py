"""What a process has mapped: the text of /proc/PID/maps, parsed, and found by address. Pure; proc_pid_maps(5)."""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import NamedTuple, Protocol

_LINE = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-][ps]) ([0-9a-f]+) ([0-9a-f]+:[0-9a-f]+) (\d+)(?: +(.*))?$", re.MULTILINE
)
_DELETED = " (deleted)"
_MEMFD = "/memfd:"
_WIDE = 1 << 32
_NAMELESS = ("", "/dev/zero (deleted)")  # the second: shared, made by mmap(MAP_ANONYMOUS | MAP_SHARED)


class Mapping(NamedTuple):
    """Addresses `start` up to, not including, `end`. `path` is as the kernel writes it, odd bytes escaped."""

    start: int
    end: int
    perms: str  # rwxp, rwxs
    offset: int  # in the file, of `start`; bytes
    device: str  # major:minor, hexadecimal
    inode: int
    path: str

    @property
    def executable(self) -> bool:
        return self.perms[2] == "x"

    @property
    def anonymous(self) -> bool:
        """Backed by no file: what a JIT compiler writes."""
        return self.path in _NAMELESS or self.path.startswith("[anon")

    @property
    def name(self) -> str:
        """As events have it: a path (with ` (deleted)` where it is), `memfd:NAME`, `anonymous`, `[vdso]`."""
        if self.anonymous:
            return "anonymous"
        if self.path.startswith(_MEMFD):
            return self.path.removesuffix(_DELETED)[1:]
        return self.path

    @property
    def file(self) -> str:
        """The last part of the path, whether deleted or not."""
        return self.path.removesuffix(_DELETED).rpartition("/")[2]

    def at(self, address: int) -> int:
        """The offset in the file, in bytes, of an address."""
        return address - self.start + self.offset


class Range(NamedTuple):
    """Offsets in a file, in bytes, `start` up to, not including, `end`."""

    start: int
    end: int


class Lookup(Protocol):
    """What a process has mapped, by address. `narrow`: a 32-bit process, everything is below 4 GiB."""

    @property
    def narrow(self) -> bool: ...

    def at(self, address: int) -> Mapping | None: ...

    def code(self, address: int) -> Mapping | None:
        """What is mapped there, if it may be executed."""


class Memory:
    """All mappings of a process, in the kernel's order, by address. `text` is the content of its maps file; lines of
    another form are none. Most are never looked at, so they are parsed when they are."""

    def __init__(self, text: bytes) -> None:
        self._lines = _LINE.findall(text)
        self._starts = [int(line[0], 16) for line in self._lines]
        self._parsed: dict[int, Mapping] = {}

    @property
    def mappings(self) -> list[Mapping]:
        return [self._mapping(index) for index in range(len(self._lines))]

    def at(self, address: int) -> Mapping | None:
        """What is mapped there."""
        index = bisect_right(self._starts, address) - 1
        return self._mapping(index) if index >= 0 and address < self._mapping(index).end else None

    def code(self, address: int) -> Mapping | None:
        """What is mapped there, if it may be executed."""
        found = self.at(address)
        return found if found and found.executable else None

    @property
    def narrow(self) -> bool:
        """Whether this is a 32-bit process: everything is below 4 GiB."""
        return bool(self._lines) and self._mapping(len(self._lines) - 1).end <= _WIDE

    def _mapping(self, index: int) -> Mapping:
        if index not in self._parsed:
            start, end, perms, offset, device, inode, path = self._lines[index]
            self._parsed[index] = Mapping(
                int(start, 16),
                int(end, 16),
                perms.decode(),
                int(offset, 16),
                device.decode(),
                int(inode),
                printed_path(path),
            )
        return self._parsed[index]


def printed_path(raw: bytes) -> str:
    """As text; a newline is an escape, as in the maps file."""
    return raw.replace(b"\n", rb"\012").decode("utf-8", "backslashreplace")
