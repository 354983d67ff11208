"""What /proc says of the process that an event is about, without mistaking another one for it (edge: procfs).

A directory of /proc that is open stays that of one process: when its number is given to another, reads through it fail
with ESRCH (proc_pid(5)), as they would with a pidfd. So it is opened once, the process behind it must have started
before the event, and everything else is read through it. Reading others' maps and files needs CAP_SYS_PTRACE and
CAP_SYS_ADMIN (or CAP_CHECKPOINT_RESTORE); one's own processes need neither. The memory of a process is never read:
the process could make that wait for ever.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self

from ebpf import calls
from ebpf.memory import Lookup, Mapping, Memory, Range
from ebpf.procmap import QueriedMemory
from ebpf.symbols import Symbols

CMDLINE_BYTES = 4096
_MAPS_BYTES = 1 << 20  # some 11,000 mappings: 25 ms
_READ_BYTES = 1 << 16
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_STARTTIME = 19  # field 22 of proc_pid_stat(5), counted behind the command
_PPID = 1
_symbols = Symbols()


class Gone(LookupError):
    """The process has ended, or its number belongs to one that started after the event."""


class TooMany(Exception):
    """The process has more mappings than are read."""


class Facts(NamedTuple):
    """Of a whole process. Odd bytes and control characters are escaped."""

    ppid: int
    exe: str  # as its mount namespace names it, ` (deleted)` behind it where that is so; empty: not to be read
    cmdline: str  # arguments with a space between, at most CMDLINE_BYTES, then `…`


class Process:
    """The process `tgid` as it was when `ts_ns` (CLOCK_BOOTTIME) was taken; a context manager.

    `pid` is the thread's, for the case that the first thread has ended before the others.

    :raises Gone: here, or by every method once the process ends.
    """

    def __init__(self, tgid: int, ts_ns: int, pid: int = 0) -> None:
        self._open: dict[Mapping, int] = {}
        self._maps: list[int] = []
        try:
            self._fd = os.open(f"/proc/{tgid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise Gone(f"process {tgid}") from error
        self._tgid = tgid
        self._thread = f"task/{pid}/" if pid and pid != tgid else ""
        try:
            if started_ns(self._read("stat", CMDLINE_BYTES)) > ts_ns:
                raise Gone(f"process {tgid}: the number belongs to a later one")
        except Gone:
            self.close()
            raise

    def facts(self) -> Facts:
        about = _behind_command(self._read("stat", CMDLINE_BYTES))
        return Facts(int(about[_PPID]), self._exe(), command_line(self._either("cmdline", CMDLINE_BYTES + 1)))

    def memory(self) -> Lookup:
        """What is mapped at the moment of each question, from v6.11 on; else what is mapped now.

        :raises TooMany: an older kernel, and a process with thousands of mappings.
        :raises ProcessLookupError: by the answer's methods, once the process has ended or runs another program.
        """
        for name in dict.fromkeys(("maps", f"{self._thread}maps")):
            try:
                self._maps.append(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd))
                return QueriedMemory(self._maps[-1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            except OSError as error:
                if error.errno == errno.ENOTTY:
                    return self._text()
                raise
        raise Gone(f"process {self._tgid}: its memory is gone")

    def _text(self) -> Memory:
        text = self._either("maps", _MAPS_BYTES + 1)
        if not text:
            raise Gone(f"process {self._tgid}: its memory is gone")
        if len(text) > _MAPS_BYTES:
            raise TooMany(f"process {self._tgid} has more mappings than are read")
        return Memory(text)

    def code(self, mapping: Mapping, address: int) -> bytes | None:
        """Bytes of the mapped file in front of an address; None: there is no file, or it cannot be read."""
        fd = self._file(mapping)
        size = min(calls.BEFORE, address - mapping.start)
        if fd is None:
            return None
        with suppress(OSError):
            return os.pread(fd, size, mapping.at(address) - size) or None
        return None

    def getaddrinfo(self, mapping: Mapping) -> Range | None:
        """Where that function is in the file of a mapping."""
        fd = self._file(mapping)
        return None if fd is None else _symbols.find(fd, "getaddrinfo")

    def close(self) -> None:
        for fd in (self._fd, *self._open.values(), *self._maps):
            if fd >= 0:
                os.close(fd)
        self._fd = -1
        self._open.clear()
        self._maps.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _exe(self) -> str:
        for name in dict.fromkeys(("exe", f"{self._thread}exe")):
            with suppress(OSError):
                return printable(os.fsencode(os.readlink(name, dir_fd=self._fd)))
        return ""

    def _either(self, name: str, limit: int) -> bytes:
        """Of the process, or where its first thread has ended, of the thread of the event."""
        return self._read(name, limit) or (self._read(self._thread + name, limit) if self._thread else b"")

    def _read(self, name: str, limit: int) -> bytes:
        parts = []
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)
            try:
                while limit > 0 and (part := os.read(fd, min(limit, _READ_BYTES))):
                    parts.append(part)
                    limit -= len(part)
            finally:
                os.close(fd)
        except PermissionError:
            return b""
        except (FileNotFoundError, ProcessLookupError) as error:
            raise Gone(f"process {self._tgid}") from error
        return b"".join(parts)

    def _file(self, mapping: Mapping) -> int | None:
        """The mapped file itself, also one that is deleted or of another mount namespace; kept open until close()."""
        if mapping not in self._open and mapping.inode:
            fd = self._regular(f"map_files/{mapping.start:x}-{mapping.end:x}")
            self._open[mapping] = self._regular(f"root{mapping.path}", mapping.inode) if fd < 0 else fd
        fd = self._open.get(mapping, -1)
        return fd if fd >= 0 else None

    def _regular(self, name: str, inode: int = 0) -> int:
        """Opens a regular file for reading, or returns -1: never a device or a pipe, whose opening acts or waits."""
        with suppress(OSError):
            path = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=self._fd)
            try:
                about = os.fstat(path)
                if stat.S_ISREG(about.st_mode) and inode in (0, about.st_ino):
                    return os.open(f"/proc/self/fd/{path}", os.O_RDONLY | os.O_CLOEXEC)
            finally:
                os.close(path)
        return -1


def started_ns(stat_text: bytes) -> int:
    """When a process started, CLOCK_BOOTTIME, from its proc_pid_stat(5), rounded down to a clock tick.

    :raises Gone: the text is not one of a process.
    """
    return int(_behind_command(stat_text)[_STARTTIME]) * _TICK_NS


def command_line(raw: bytes) -> str:
    """proc_pid_cmdline(5) in one printable line."""
    line = printable(raw[:CMDLINE_BYTES].rstrip(b"\0").replace(b"\0", b" "))
    return line + "…" if len(raw) > CMDLINE_BYTES else line


def printable(raw: bytes) -> str:
    """UTF-8 text; what is not that, and what a terminal would obey, as an escape."""
    text = raw.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _behind_command(stat_text: bytes) -> list[bytes]:
    """The fields behind `pid (command)`; the command may hold spaces and parentheses."""
    fields = stat_text.rpartition(b")")[2].split()
    if len(fields) <= _STARTTIME:
        raise Gone("no such process")
    return fields
