"""The text of a BPF program with its headers put in, and the hashes that say which text is in force.

bcc rewrites map accesses only in its main file, so quoted includes are put in before it sees the text.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path

_INCLUDE = re.compile(r'^#include "([a-z0-9_.]+)"$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Limits of the maps, in elements, and of the ring in bytes (a power of two). Part of the layout."""

    bottles: int = 16_384
    exact: int = 524_288
    host: int = 65_536
    prefix: int = 262_144  # of each trie
    seen: int = 16_384
    listen: int = 16_384
    unix: int = 65_536
    guarded: int = 65_536  # processes
    ring_bytes: int = 1 << 20
    origin_bytes: int = 1 << 20

    def defines(self) -> list[str]:
        return [
            f"-DAM_{name.upper() if name.endswith('_bytes') else 'MAX_' + name.upper()}={value}"
            for name, value in asdict(self).items()
        ]


def program_text(directory: Path, name: str) -> str:
    """The file `name` of `directory`, every quoted include replaced by its text the first time it is named."""
    seen: set[str] = set()

    def read(file: str) -> str:
        if file in seen:
            return ""
        seen.add(file)
        return _INCLUDE.sub(lambda m: read(m[1]), (directory / file).read_text(encoding="utf-8"))

    return read(name)


def layout(directory: Path, sizes: Sizes) -> str:
    """16 hex digits that name the layout of the maps: pins of another layout are never opened."""
    texts = "".join((directory / f).read_text(encoding="utf-8") for f in ("am_abi.h", "am_maps.h"))
    return hashlib.sha256((texts + " ".join(sizes.defines())).encode()).hexdigest()[:16]


def program_hash(text: str, sizes: Sizes) -> int:
    """64 bits that name the programs; kept in am_config, 0 is never a hash."""
    digest = hashlib.sha256((text + " ".join(sizes.defines())).encode()).digest()
    return int.from_bytes(digest[:8], "little") or 1
