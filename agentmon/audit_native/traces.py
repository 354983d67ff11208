"""What the bytes of a file give away: vendored libraries, and system calls by its own instructions.

Read in pieces with some overlap: memory stays the same for a file of half a gigabyte.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO

from agentmon.audit_native import signs
from agentmon.audit_native.model import Vendored

_PIECE_BYTES = 8 << 20
_OVERLAP_BYTES = 256

# A number put into the register for system calls, then, within a few instructions, the call. A syscall instruction
# alone says nothing in data or between instructions: 0f 05 occurs by chance.
_X86 = re.compile(rb"\xb8(?P<nr>..\0\0).{0,10}?\x0f\x05", re.DOTALL)
_I386 = re.compile(rb"\xb8(?P<nr>..\0\0).{0,10}?(?:\xcd\x80|\x0f\x34)", re.DOTALL)
_ARM = re.compile(
    rb"(?P<nr>[\x08\x28\x48\x68\x88\xa8\xc8\xe8].[\x80-\x9f][\x52\xd2])(?:....){0,4}?\x01\0\0\xd4", re.DOTALL
)
_ALONE = {"x86_64": b"\x0f\x05", "aarch64": b"\x01\0\0\xd4", "i386": b"\xcd\x80"}
_PATTERNS = {"x86_64": _X86, "i386": _I386, "aarch64": _ARM}


@dataclass(frozen=True)
class Traces:
    """`calls`: names of network system calls made directly; `computed`: system call instructions of a file
    without libc, when no network call was found among those whose number is a constant."""

    vendored: tuple[Vendored, ...]
    calls: frozenset[str]
    computed: int


def scan(file: IO[bytes], executable: Iterable[tuple[int, int]], machine: str, *, freestanding: bool) -> Traces:
    """:param executable: (offset, bytes) of the parts that can run. :param freestanding: it loads nothing, no libc."""
    vendored = _vendored(file)
    calls: set[str] = set()
    alone = 0
    for offset, length in executable:
        for piece in _pieces(file, offset, length):
            calls |= _calls(piece, machine)
            if freestanding and machine in _ALONE:
                alone += piece.count(_ALONE[machine])
    if any(v.name == "go" for v in vendored) and _contains(file, signs.GO_CONNECT):
        calls.add("connect")
    return Traces(vendored, frozenset(calls), 0 if calls else alone)


def _calls(piece: bytes, machine: str) -> set[str]:
    pattern, names = _PATTERNS.get(machine), signs.CALLS.get(machine, {})
    if pattern is None:
        return set()
    numbers = (_number(found["nr"], machine) for found in pattern.finditer(piece))
    return {names[number] for number in numbers if number in names}


def _number(raw: bytes, machine: str) -> int:
    word = int.from_bytes(raw, "little")
    return (word >> 5) & 0xFFFF if machine == "aarch64" else word  # MOVZ: imm16 in bits 5 to 20


def _vendored(file: IO[bytes]) -> tuple[Vendored, ...]:
    found: dict[str, str] = {}
    for piece in _pieces(file, 0, None):
        for name, needle, pattern in signs.TRACES:
            if found.get(name) or needle not in piece:
                continue
            match = pattern.search(piece)
            if match:
                found[name] = match[1].decode("ascii", "replace")
    return tuple(Vendored(name, version) for name, version in sorted(found.items()))


def _contains(file: IO[bytes], needle: bytes) -> bool:
    return any(needle in piece for piece in _pieces(file, 0, None))


def _pieces(file: IO[bytes], offset: int, length: int | None) -> Iterator[bytes]:
    left = length
    while left is None or left > 0:
        file.seek(offset)
        piece = file.read(_PIECE_BYTES if left is None else min(_PIECE_BYTES, left))
        yield piece
        if len(piece) < _PIECE_BYTES:
            return
        offset += len(piece) - _OVERLAP_BYTES
        left = None if left is None else left - len(piece) + _OVERLAP_BYTES
