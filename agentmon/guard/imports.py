"""The names in a native module's dynamic symbol table. elf(5), by hand: the guard has the standard library only."""

from __future__ import annotations

import mmap
import struct

_DYNSYM = 11  # SHT_DYNSYM


class NotRead(ValueError):
    """Not an ELF file, or one without the tables that are looked for here."""


def dynamic_symbols(path: str) -> tuple[frozenset[str], frozenset[str]]:
    """(undefined: what it calls elsewhere, defined: what it offers).

    :raises NotRead: where that cannot be told.  :raises OSError: where the file cannot be opened.
    """
    with open(path, "rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _symbols(data)
        except (struct.error, IndexError, ValueError) as e:
            raise NotRead(f"{path}: {e}") from e


def _symbols(data: mmap.mmap) -> tuple[frozenset[str], frozenset[str]]:
    if data[:4] != b"\x7fELF":
        raise NotRead("not an ELF file")
    wide, order = data[4] == 2, "<" if data[5] == 1 else ">"
    (sections,) = struct.unpack_from(order + ("Q" if wide else "I"), data, 40 if wide else 32)
    size, count = struct.unpack_from(order + "HH", data, 58 if wide else 46)
    heads = [_section(data, sections + number * size, order, wide) for number in range(count)]
    symbol = struct.Struct(order + ("IBBHQQ" if wide else "IIIBBH"))
    place = 3 if wide else 5  # st_shndx
    for kind, offset, length, link in heads:
        if kind != _DYNSYM:
            continue
        _, names_at, names_length, _ = heads[link]
        names = data[names_at : names_at + names_length]
        undefined: set[str] = set()
        defined: set[str] = set()
        for each in symbol.iter_unpack(data[offset : offset + length // symbol.size * symbol.size]):
            end = names.index(b"\0", each[0])
            (defined if each[place] else undefined).add(names[each[0] : end].decode("utf-8", "replace"))
        return frozenset(undefined), frozenset(defined)
    raise NotRead("no dynamic symbols")


def _section(data: mmap.mmap, at: int, order: str, wide: bool) -> tuple[int, int, int, int]:
    """(sh_type, sh_offset, sh_size, sh_link)"""
    if wide:
        _, kind, _, _, offset, size, link = struct.unpack_from(order + "IIQQQQI", data, at)
    else:
        _, kind, _, _, offset, size, link = struct.unpack_from(order + "IIIIIII", data, at)
    return kind, offset, size, link
