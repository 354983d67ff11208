"""Which native module made a call: the first one on the stack that is neither libc, nor the loader, nor an interpreter.

Pure: the mappings and the code in front of an address are handed in (process.py reads them). Without frame pointers
the stack is scanned: a word counts as a return address if it points into executable memory right behind a call.
What lies deeper than the words of the record is not seen; native code that wants to hide can put words there.
"""

from __future__ import annotations

import platform
import re
import struct
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from ebpf import calls
from ebpf.memory import Lookup, Mapping, Range
from ebpf.origin import Origin

Code = Callable[[Mapping, int], bytes | None]
"""The bytes (at most calls.BEFORE) of a mapping in front of an address; None: they cannot be read."""

Evidence = Literal["ip", "stack", "stack-unchecked", "none", "no-stack", "changed", "gone", "busy"]
"""How a library was found: it made the system call itself (ip); one of its return addresses is the first on the stack,
behind a call (stack), or behind code that cannot be read (stack-unchecked). Or why there is none: only libc, loader
and interpreter on the stack (none); a worker of io_uring has no user stack (no-stack); the process has since
executed another program or unmapped the code (changed); or ended (gone); it was not
looked at (busy)."""

_FIXED = 1 << 32

Role = Literal["libc", "loader", "interpreter", "module"]

_LIBC = re.compile(  # glibc and the parts of it that were or are files of their own; musl, which is its loader too
    r"(libc|libpthread|libdl|librt|libresolv|libanl|libnss_(files|dns|compat|hesiod|db))(-[\d.]+)?\.so[\d.]*"
    r"|ld-musl-\w+\.so[\d.]*|libc\.musl-\w+\.so[\d.]*"
)
_LOADER = re.compile(r"ld(-linux[\w-]*|64|-[\d.]+)?\.so[\d.]*|\[(vdso|vsyscall|uprobes)\]")
_INTERPRETER = re.compile(
    r"((python|pypy|node|nodejs|ruby|perl|php|php-fpm|php-cgi|lua|luajit|tclsh|java|deno|bun|dotnet|julia)[\d.-]*[a-z]{0,3}"
    r"|lib(python|pypy|ruby|perl|php|lua|luajit|node|jvm|coreclr|tcl|julia)[\d.-]*[a-z]{0,2}\.so[\d.]*)"
)


class Frame(NamedTuple):
    """One address of the record that points into code."""

    name: str  # of the mapping, as in events
    offset: int  # in the file, bytes
    role: Role
    checked: bool  # a call was seen in front of it (the instruction pointer needs none)

    def __str__(self) -> str:
        return f"{self.name}+{self.offset:#x}"


class Culprit(NamedTuple):
    """`library` is empty where none was found; then `evidence` says why. `frames` lead to it, innermost first."""

    library: str
    offset: int
    evidence: Evidence
    frames: tuple[Frame, ...] = ()

    def __str__(self) -> str:
        """One line for `library_evidence`: the kind, then the way to the library."""
        return f"{self.evidence}: {', '.join(map(str, self.frames))}" if self.frames else self.evidence


def culprit(origin: Origin, memory: Lookup, code: Code | None = None, machine: str | None = None) -> Culprit:
    """Who made the call. `machine` as in uname(2), this one's by default."""
    if origin.worker or not origin.ip:
        return Culprit("", 0, "no-stack")
    if _changed(origin, memory):
        return Culprit("", 0, "changed")
    seen: list[Frame] = []
    for index, frame in enumerate(frames(origin, memory, code, machine)):
        seen.append(frame)
        if frame.role != "module" or _compiled(seen):
            continue
        evidence: Evidence = "ip" if index == 0 else "stack" if frame.checked else "stack-unchecked"
        return Culprit(frame.name, frame.offset, evidence, tuple(seen))
    return Culprit("", 0, "none", tuple(seen))


def is_address_sorting(
    origin: Origin, memory: Lookup, code: Code | None, getaddrinfo: Callable[[Mapping], Range | None]
) -> bool:
    """Whether libc's getaddrinfo itself made the call: it connects UDP sockets, which sends nothing, to learn in which
    order to return addresses (RFC 6724). `getaddrinfo` finds that function in the file of a mapping.

    Ask it of UDP connects only. The stack is the process's own to write: this excuses, it never permits.
    """
    if origin.worker or not memory.code(origin.ip):
        return False
    for mapping, address, _checked in _addresses(origin, memory, code, None):
        if role(mapping) != "libc":
            return False
        found = getaddrinfo(mapping)
        if found and found.start <= mapping.at(address) < found.end:
            return True
    return False


def frames(origin: Origin, memory: Lookup, code: Code | None, machine: str | None = None) -> Iterator[Frame]:
    """The instruction pointer, then every word of the stack that can be a return address, innermost first."""
    for mapping, address, checked in _addresses(origin, memory, code, machine):
        yield Frame(mapping.name, mapping.at(address), role(mapping), checked)


def role(mapping: Mapping) -> Role:
    """What a mapping is for, by the name of its file."""
    if mapping.name.startswith("memfd:"):
        return "module"
    for name, pattern in (("libc", _LIBC), ("loader", _LOADER), ("interpreter", _INTERPRETER)):
        if pattern.fullmatch(mapping.file):
            return name  # type: ignore[return-value]  # mypy widens the tuple's str
    return "module"


def _addresses(
    origin: Origin, memory: Lookup, code: Code | None, machine: str | None
) -> Iterator[tuple[Mapping, int, bool]]:
    here = memory.code(origin.ip)
    if here:
        yield here, origin.ip, True
    for word in _words(origin, memory):
        mapping = memory.code(word - 1)  # a call may be the last instruction there
        if not mapping:
            continue
        before = code(mapping, word) if code else None
        if before is None:
            yield mapping, word, False
        elif _returns(word, before, memory, machine or platform.machine()):
            yield mapping, word, True


def _returns(address: int, before: bytes, memory: Lookup, machine: str) -> bool:
    """Whether `address` follows a call; of one whose target is known, to code."""
    distance = calls.direct(before, machine)
    if distance is not None and memory.code(address + distance):
        return True
    return calls.indirect(before, machine)


def _words(origin: Origin, memory: Lookup) -> tuple[int, ...]:
    """The stack in the process's own words: those of a 32-bit process have 4 bytes."""
    if not (origin.compat and memory.narrow):
        return origin.words
    return struct.unpack(f"={len(origin.words) * 2}I", struct.pack(f"={len(origin.words)}Q", *origin.words))


def _changed(origin: Origin, memory: Lookup) -> bool:
    """Whether the code is gone. Another program is told by its addresses, which are random; where they are not
    (a program linked for a fixed place, below 4 GiB), the stack must be there too, else its thread may have ended."""
    here = memory.code(origin.ip)
    if here is None:
        return True
    return here.start < _FIXED and bool(origin.words) and memory.at(origin.sp) is None


def _compiled(seen: list[Frame]) -> bool:
    """Whether the last frame is code that an interpreter compiled: pages without a file, below its own frames."""
    return seen[-1].name == "anonymous" and any(frame.role == "interpreter" for frame in seen)
