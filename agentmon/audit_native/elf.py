"""The edge to pyelftools: one ELF file → Image. Headers and tables by pyelftools, symbols and bytes by hand: a symbol
object each would take seconds for a large library.

The dynamic table is found by the program headers, as the loader does, so a file without section headers is read too.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from collections.abc import Iterator
from typing import IO, Any, cast

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile

from agentmon.audit_native import signs, traces
from agentmon.audit_native.model import Image, NotElf, Unreadable, Way

MAGIC = b"\x7fELF"
_MACHINES = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64", "EM_386": "i386"}
_CLASS_32 = 1
_DF_1_PIE = 0x08000000
_SYMBOLS_MAX = 4_000_000
_OF_INTEREST = frozenset[str]().union(*(signs.LIBC[w] for w in (Way.CONNECT, Way.SYSCALL, Way.CALL, Way.RESOLVE)))
_BROKEN = (
    ELFError, ConstructError, struct.error, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    ArithmeticError, RecursionError, MemoryError,
)  # fmt: skip  # what pyelftools raises for files that lie about themselves


def is_elf(path: str) -> bool:
    """Whether a regular file begins as an ELF file does.

    :raises Unreadable: it cannot be opened.
    """
    with _opened(path) as file:
        return file.read(len(MAGIC)) == MAGIC


def read(path: str) -> Image:
    """:raises NotElf: another kind of file. :raises Unreadable: no permission, no such file, truncated, broken."""
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(len(MAGIC))
        if not size:
            raise NotElf("is empty")
        if start != MAGIC:
            raise NotElf("is no ELF file" if size >= len(MAGIC) else f"is too short to be an ELF file ({size} bytes)")
        try:
            try:
                return _image(ELFFile(file), file, size)
            except _BROKEN:
                return _image(_without_sections(file), file, size)
        except OSError as e:
            raise Unreadable(f"cannot be read: {e.strerror}") from e
        except _BROKEN as e:
            raise Unreadable(f"is a broken ELF file: {str(e) or type(e).__name__}") from e


def _opened(path: str) -> IO[bytes]:
    """A regular file; a pipe or device would block or have effects."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        raise Unreadable(f"cannot be opened: {e.strerror}") from e
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotElf("is no regular file")
    return os.fdopen(fd, "rb")


def _without_sections(file: IO[bytes]) -> ELFFile:
    """The same file, its section headers left out: they are missing or damaged, and the loader needs none."""
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    offset, numbers = (slice(32, 36), slice(48, 52)) if data[4] == _CLASS_32 else (slice(40, 48), slice(60, 64))
    data[offset] = bytes(offset.stop - offset.start)  # e_shoff
    data[numbers] = bytes(numbers.stop - numbers.start)  # e_shnum, e_shstrndx
    return ELFFile(cast(IO[bytes], data))


def _check_whole(elf: ELFFile, size: int) -> None:
    """:raises Unreadable: what its headers place in the file ends beyond it."""
    ends = [elf["e_phoff"] + elf["e_phnum"] * elf["e_phentsize"], elf["e_ehsize"]]
    if max(ends) <= size:
        ends += [s["p_offset"] + s["p_filesz"] for s in elf.iter_segments()]
    if max(ends) > size:
        raise Unreadable(f"is truncated: {size} bytes of {max(ends)}")


def _image(elf: ELFFile, file: IO[bytes], size: int) -> Image:
    _check_whole(elf, size)
    machine = _MACHINES.get(elf["e_machine"], str(elf["e_machine"]).removeprefix("EM_").lower())
    dynamic = next((s for s in elf.iter_segments() if isinstance(s, DynamicSegment)), None)
    interpreter = any(s["p_type"] == "PT_INTERP" for s in elf.iter_segments())
    needed, soname = _names(dynamic)
    imports, exports = _dynamic_symbols(elf, file, dynamic)
    alone = not interpreter and not needed and not imports
    static = alone and _is_program(elf, dynamic)
    defines = exports & {signs.INTERPRETER}
    if static:
        own = exports | _own_symbols(elf, file)
        defines |= {name for name in own if name in _OF_INTEREST or name.startswith(signs.IO_URING)}
    found = traces.scan(file, _executable(elf), machine, freestanding=alone)
    return Image(
        machine=machine,
        static=static,
        program=static or (interpreter and not soname),  # libc.so.6 can be started, too
        soname=soname,
        needed=needed,
        imports=imports,
        defines=defines,
        vendored=tuple(v for v in found.vendored if v.version or not _imported(v.name, imports)),
        calls=found.calls,
        computed=found.computed,
        scanned=machine in signs.CALLS,
    )


def _names(dynamic: DynamicSegment | None) -> tuple[tuple[str, ...], str]:
    """(libraries that are loaded with it, its own soname)"""
    if dynamic is None:
        return (), ""
    tags: list[Any] = list(dynamic.iter_tags())
    needed = tuple(str(t.needed) for t in tags if t.entry.d_tag == "DT_NEEDED")
    soname = next((str(t.soname) for t in tags if t.entry.d_tag == "DT_SONAME"), "")
    return needed, soname


def _is_program(elf: ELFFile, dynamic: DynamicSegment | None) -> bool:
    """A position-independent program is told from a library by its flag."""
    if elf["e_type"] == "ET_EXEC" or dynamic is None:
        return bool(elf["e_type"] == "ET_EXEC")
    return any(int(t["d_val"]) & _DF_1_PIE for t in dynamic.iter_tags("DT_FLAGS_1"))


def _imported(library: str, imports: frozenset[str]) -> bool:
    """Whether the trace of a library is only the name of its function in the list of imports."""
    if library == signs.FFI:
        return bool(signs.LIBC[Way.CALL] & imports)
    return any(signs.THROUGH.get(name) == library for name in imports)


def _dynamic_symbols(
    elf: ELFFile, file: IO[bytes], dynamic: DynamicSegment | None
) -> tuple[frozenset[str], frozenset[str]]:
    """(undefined, defined) names of the dynamic symbol table."""
    if dynamic is None:
        return frozenset(), frozenset()
    address, offset = dynamic.get_table_offset("DT_SYMTAB")
    strings, names_at = dynamic.get_table_offset("DT_STRTAB")
    length = next((int(t["d_val"]) for t in dynamic.iter_tags("DT_STRSZ")), 0)
    if address is None or offset is None or strings is None or names_at is None:
        return frozenset(), frozenset()
    size = elf.structs.Elf_Sym.sizeof()
    section = next((s for s in elf.iter_sections() if s["sh_addr"] == address and s["sh_type"] == "SHT_DYNSYM"), None)
    if section is not None:
        count = int(section["sh_size"]) // size
    else:  # no section headers: the names follow the symbols, or the hash table knows
        count = (strings - address) // size if strings > address else dynamic.num_symbols()
    return _split(elf, file, (offset, count), (names_at, length))


def _own_symbols(elf: ELFFile, file: IO[bytes]) -> frozenset[str]:
    """Defined functions of .symtab; empty for a stripped file."""
    for section in elf.iter_sections():
        if section["sh_type"] == "SHT_SYMTAB":
            names = elf.get_section(section["sh_link"])
            count = int(section["sh_size"]) // elf.structs.Elf_Sym.sizeof()
            where = int(names["sh_offset"]), int(names["sh_size"])
            return _split(elf, file, (int(section["sh_offset"]), count), where)[1]
    return frozenset()


def _split(
    elf: ELFFile, file: IO[bytes], table: tuple[int, int], strings: tuple[int, int]
) -> tuple[frozenset[str], frozenset[str]]:
    """(undefined, defined) of `count` symbols at an offset, with names at (offset, bytes). elf(5), Elf64_Sym."""
    offset, count = table
    if count > _SYMBOLS_MAX:
        raise Unreadable(f"is a broken ELF file: {count} symbols")
    order = "<" if elf.little_endian else ">"
    layout = struct.Struct(order + ("IBBHQQ" if elf.elfclass == 64 else "IIIBBH"))
    shndx = 3 if elf.elfclass == 64 else 5
    file.seek(offset)
    data = file.read(count * layout.size)
    file.seek(strings[0])
    names = file.read(strings[1])
    undefined: set[str] = set()
    defined: set[str] = set()
    for symbol in layout.iter_unpack(data[: len(data) // layout.size * layout.size]):
        if symbol[0]:
            (defined if symbol[shndx] else undefined).add(_name(names, symbol[0]))
    return frozenset(undefined), frozenset(defined)


def _name(names: bytes, at: int) -> str:
    end = names.find(b"\0", at)
    return names[at : end if end >= 0 else len(names)].decode("utf-8", "replace")


def _executable(elf: ELFFile) -> Iterator[tuple[int, int]]:
    """(offset, bytes) of what is mapped executable."""
    for segment in elf.iter_segments():
        if segment["p_type"] == "PT_LOAD" and segment["p_flags"] & 1:
            yield int(segment["p_offset"]), int(segment["p_filesz"])
