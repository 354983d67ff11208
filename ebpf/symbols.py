"""Where a function lies in a shared object, by its dynamic symbol table (edge: pyelftools). elf(5).

The files belong to bottles and may be made to hurt: what is read is bounded before it is read, and a file that makes
no sense has no functions.
"""

from __future__ import annotations

import os
import struct
from collections import OrderedDict
from typing import BinaryIO

from elftools.common.exceptions import ELFError
from elftools.common.utils import struct_parse
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile

from ebpf.memory import Range

FILES = 64
"""Answers that are kept, by file."""
_SECTIONS = 256
_SEGMENTS = 64
_TABLE_BYTES = 1 << 20  # glibc's .dynsym has 75 kB, its strings 35 kB
_SYMBOL = {64: (struct.Struct("=IBBHQQ"), 4, 5), 32: (struct.Struct("=IIIBBH"), 1, 2)}  # where value and size are


class Symbols:
    """Finds functions, and remembers the answers by device, inode and change time of the file."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, int, int, str], Range | None] = OrderedDict()

    def find(self, fd: int, function: str) -> Range | None:
        """Where `function` lies in the file that is open as `fd`; None: not there, or no readable ELF file."""
        about = os.fstat(fd)
        key = (about.st_dev, about.st_ino, about.st_ctime_ns, function)
        if key not in self._known:
            with os.fdopen(os.dup(fd), "rb") as file:
                self._known[key] = function_range(file, function)
            if len(self._known) > FILES:
                self._known.popitem(last=False)
        return self._known[key]


def function_range(file: BinaryIO, function: str) -> Range | None:
    """Where `function` lies in `file`; None: not there, or no readable ELF file of this machine's byte order."""
    try:
        elf = ELFFile(file)
        found = _symbol(elf, function.encode())
        return _in_file(elf, *found) if found else None
    except (ELFError, ConstructError, OSError, ValueError, LookupError, struct.error, OverflowError, AttributeError):
        return None


def _symbol(elf: ELFFile, function: bytes) -> tuple[int, int] | None:
    """Address and size of a function of the first SHT_DYNSYM that has it."""
    form, value_at, size_at = _SYMBOL[elf.elfclass]
    count = min(elf["e_shnum"], _SECTIONS)
    headers = [struct_parse(elf.structs.Elf_Shdr, elf.stream, _entry(elf, "e_sh", n)) for n in range(count)]
    for header in headers:
        if header["sh_type"] != "SHT_DYNSYM":
            continue
        names = _content(elf, headers[header["sh_link"]])
        symbols = _content(elf, header)
        for entry in form.iter_unpack(symbols[: len(symbols) // form.size * form.size]):
            at, size = entry[0], entry[size_at]
            if size and names.startswith(function + b"\0", at):
                return entry[value_at], size
    return None


def _in_file(elf: ELFFile, address: int, size: int) -> Range | None:
    for n in range(min(elf["e_phnum"], _SEGMENTS)):
        segment = struct_parse(elf.structs.Elf_Phdr, elf.stream, _entry(elf, "e_ph", n))
        first = segment["p_vaddr"]
        if segment["p_type"] == "PT_LOAD" and first <= address < first + segment["p_filesz"]:
            start = address - first + segment["p_offset"]
            return Range(start, start + size)
    return None


def _entry(elf: ELFFile, table: str, index: int) -> int:
    """Position of a header in the table of sections (e_sh) or of segments (e_ph)."""
    return int(elf[f"{table}off"] + index * elf[f"{table}entsize"])


def _content(elf: ELFFile, header: dict[str, int]) -> bytes:
    if header["sh_size"] > _TABLE_BYTES:
        raise ELFError("a table of symbols larger than any C library's")
    elf.stream.seek(header["sh_offset"])
    return elf.stream.read(header["sh_size"])
