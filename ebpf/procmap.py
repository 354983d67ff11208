"""Asks the kernel what is mapped at an address, instead of reading all of /proc/PID/maps (edge: ioctl).

PROCMAP_QUERY, "fs/procfs: implement efficient VMA querying API for /proc/<pid>/maps", v6.11. A process may have 65,530
mappings and change them all the time; a question costs the same. The open maps file belongs to one address space: after
another program was executed there is nothing left in it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import struct

from ebpf.memory import Mapping, printed_path

_QUERY = struct.Struct("=9Q4I2Q")  # struct procmap_query, include/uapi/linux/fs.h
_IOCTL = 3 << 30 | _QUERY.size << 16 | ord("f") << 8 | 17  # _IOWR(PROCFS_IOCTL_MAGIC, 17, struct procmap_query)
_OR_NEXT = 0x10  # PROCMAP_QUERY_COVERING_OR_NEXT_VMA
_READ, _WRITE, _EXEC, _SHARED = 1, 2, 4, 8  # in vma_flags and query_flags
_NAME_BYTES = 4096
_WIDE = 1 << 32


class QueriedMemory:
    """The mappings of the process whose maps file is open as `fd`, which stays the caller's. See memory.Lookup.

    :raises OSError: ENOTTY where the kernel is older, ESRCH where there is nothing left.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._name = ctypes.create_string_buffer(_NAME_BYTES)
        self._seen: list[Mapping] = []
        self.narrow = self._ask(_WIDE, _OR_NEXT) is None
        """Whether this is a 32-bit process: everything is below 4 GiB."""

    def at(self, address: int) -> Mapping | None:
        """What is mapped there."""
        for mapping in self._seen:
            if mapping.start <= address < mapping.end:
                return mapping
        found = self._ask(address, 0)
        if found:
            self._seen.append(found)
        return found

    def code(self, address: int) -> Mapping | None:
        """What is mapped there, if it may be executed."""
        found = self.at(address)
        return found if found and found.executable else None

    def _ask(self, address: int, flags: int) -> Mapping | None:
        if not 0 <= address < 1 << 64:
            return None
        query = bytearray(
            _QUERY.pack(
                _QUERY.size, flags, address, 0, 0, 0, 0, 0, 0, 0, 0, _NAME_BYTES, 0, ctypes.addressof(self._name), 0
            )
        )
        try:
            fcntl.ioctl(self._fd, _IOCTL, query)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        _, _, _, start, end, may, _, offset, inode, major, minor, name_bytes, *_ = _QUERY.unpack(query)
        perms = "".join(letter if may & bit else "-" for letter, bit in (("r", _READ), ("w", _WRITE), ("x", _EXEC))) + (
            "s" if may & _SHARED else "p"
        )
        path = self._name.raw[: max(0, name_bytes - 1)]
        return Mapping(start, end, perms, offset, f"{major:02x}:{minor:02x}", inode, printed_path(path))
