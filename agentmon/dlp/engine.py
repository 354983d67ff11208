"""Hyperscan's edge: which of many patterns are in these bytes at all. The answer is confirmed elsewhere (re2).

One pass finds what 200 regexes would; a database is bytes that each thread loads for itself, since scratch space cannot
be shared. Compiling the shipped rules takes half a second: the bytes are kept in a file where the caller has a place.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hyperscan

from agentmon.dlp.rules import Rules
from agentmon.errors import BadInput

_FORMAT = b"agentmon dlp 1"
_MOST = 1 << 20


class Database:
    """:param blob: of dumpb(); loaded once a thread."""

    def __init__(self, blob: bytes) -> None:
        self.blob = blob
        self._local = threading.local()

    def scan(self, data: bytes, most: int = _MOST) -> list[tuple[int, int]]:
        """(id, end) of what was found, `most` at most; with SINGLEMATCH patterns each id once, its first end."""
        found: list[tuple[int, int]] = []

        def note(id_: int, start: int, end: int, flags: int, context: object) -> bool:
            found.append((id_, end))
            return len(found) >= most

        if data:
            with contextlib.suppress(hyperscan.ScanTerminated):
                self._own().scan(data, match_event_handler=note)
        return found

    def _own(self) -> Any:
        own = getattr(self._local, "own", None)
        if own is None:
            own = self._local.own = _load(self.blob)
        return own


def of_rules(rules: Rules, keep: Path | None = None) -> Database:
    """Ids are places in `rules.rules`.

    :param keep: a directory of this process' own; what is in it was compiled by it before. None: nowhere.
    :raises BadInput: a regex is beyond what the engine takes.
    """
    file = keep / f"{_name(rules)}.hsdb" if keep is not None else None
    if file is not None:
        with contextlib.suppress(OSError, hyperscan.error):
            blob = file.read_bytes()
            _load(blob)
            return Database(blob)
    database = Database(_compiled(rules))
    if file is not None:
        _write(file, database.blob)
    return database


def of_literals(texts: Sequence[bytes]) -> Database | None:
    """Every occurrence of each, as it stands; ids are places in `texts`. None: there are none."""
    if not texts:
        return None
    database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    ids = list(range(len(texts)))
    database.compile(expressions=list(texts), ids=ids, elements=len(ids), flags=0, literal=True)
    return Database(hyperscan.dumpb(database))


def _compiled(rules: Rules) -> bytes:
    database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    regexes = [rule.regex for rule in rules.rules]
    flags = hyperscan.HS_FLAG_SINGLEMATCH | hyperscan.HS_FLAG_ALLOWEMPTY
    try:
        database.compile(expressions=regexes, ids=list(range(len(regexes))), elements=len(regexes), flags=flags)
    except hyperscan.error:
        raise BadInput(f"{rules.source}: {_guilty(rules, flags)}", "leave the rule out, or make it smaller") from None
    return hyperscan.dumpb(database)


def _guilty(rules: Rules, flags: int) -> str:
    for rule in rules.rules:
        try:
            hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK).compile(
                expressions=[rule.regex], ids=[0], elements=1, flags=flags
            )
        except hyperscan.error as e:
            return f"rule {rule.id!r}: regex: the pattern engine does not take it ({e})"
    return "the rules together are more than the pattern engine takes"


def _load(blob: bytes) -> Any:
    """:raises hyperscan.error: not of this version and processor, or damaged (it carries a checksum)."""
    database = hyperscan.loadb(blob, hyperscan.HS_MODE_BLOCK)
    database.scratch = hyperscan.Scratch(database)
    return database


def _name(rules: Rules) -> str:
    digest = hashlib.sha256(_FORMAT)
    for rule in rules.rules:
        digest.update(len(rule.regex).to_bytes(4, "big") + rule.regex)
    return digest.hexdigest()[:32]


def _write(file: Path, blob: bytes) -> None:
    """Whole or not at all; without it the next start compiles again."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
    with contextlib.suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.write_bytes(blob)
        temporary.replace(file)
    temporary.unlink(missing_ok=True)
