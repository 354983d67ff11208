"""What is known of one native file, and what follows from it: plain values, shared by reader, judge and report."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Unreadable(Exception):
    """A file that cannot be judged. `why` is a clause that follows the file's name: "is truncated: …"."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class NotElf(Unreadable):
    """A file of another kind: text, an archive, a picture."""


class Way(StrEnum):
    """How a file could get past the guard, strongest first."""

    CONNECT = "connect"  # opens connections, or sends to an address, through libc
    IO_URING = "io_uring"  # hands the kernel requests without a system call each
    RAW = "raw"  # network system calls by its own instructions
    THROUGH = "through"  # by a library that connects
    SYSCALL = "syscall"  # any system call, by number
    CALL = "call"  # any C function, from Python (libffi)
    RESOLVE = "resolve"  # name lookups of its own
    LOAD = "load"  # looks functions up at run time
    PROCESS = "process"  # starts other programs


PAST_THE_GUARD = (Way.CONNECT, Way.IO_URING, Way.RAW, Way.THROUGH, Way.SYSCALL, Way.CALL, Way.RESOLVE)


@dataclass(frozen=True)
class Vendored:
    """A network library inside a file. `version` is "" where the file does not say."""

    name: str
    version: str = ""


@dataclass(frozen=True)
class Image:
    """What an ELF file says of itself.

    `imports` are undefined dynamic symbols; `defines` those of its own functions that matter here (static code, and
    `PySys_AddAuditHook` of an interpreter); `calls` are system calls made by its own instructions; `computed` counts
    system call instructions whose number could not be told.
    """

    machine: str = ""
    static: bool = False
    program: bool = False
    soname: str = ""
    needed: tuple[str, ...] = ()
    imports: frozenset[str] = frozenset()
    defines: frozenset[str] = frozenset()
    vendored: tuple[Vendored, ...] = ()
    calls: frozenset[str] = frozenset()
    computed: int = 0
    scanned: bool = True  # False: system call instructions of this machine are not known here


@dataclass(frozen=True)
class Owner:
    """The distribution that installed a file; empty where none claims it. `modules` are its top-level import names."""

    package: str = ""
    version: str = ""
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """One file, judged. `by` holds what each way rests on: symbols, libraries, system calls."""

    path: str
    owner: Owner
    image: Image
    by: dict[Way, tuple[str, ...]]
    covered: str = ""  # why the guard sees this file's calls all the same

    @property
    def past_the_guard(self) -> bool:
        return not self.covered and any(way in self.by for way in PAST_THE_GUARD)
