"""Known values in host names, told by digests: the resolver can recognise them and has none. Pure, stdlib only.

forms of a value ─ every run of 12 of their characters ─▶ keyed digests ─▶ resolver
name, in lower case, without its dots ─ every run of 12 ─▶ digest ─▶ one of them?
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

RUN = 12  # characters: a value that is asked for piece by piece is recognised by pieces that long
_DIGEST_BYTES = 8
MOST = 20_000  # digests of one bottle: the values that come first


def digests(forms: Iterable[bytes], key: bytes) -> tuple[bytes, ...]:
    """Of forms.name_forms(). A form that is shorter than RUN is not looked for."""
    found: dict[bytes, None] = {}
    for form in forms:
        for at in range(len(form) - RUN + 1):
            found[_digest(form[at : at + RUN], key)] = None
        if len(found) >= MOST:
            break
    return tuple(found)[:MOST]


class Known:
    """Those of one run. :param key: at most 64 bytes."""

    def __init__(self, key: bytes, found: Iterable[bytes]) -> None:
        self._key = key
        self._digests = frozenset(found)

    def __repr__(self) -> str:
        return f"Known({len(self._digests)} digests)"

    def is_in(self, name: str) -> bool:
        """Whether a piece of a known value is in this name."""
        if not self._digests:
            return False
        text = name.lower().replace(".", "").encode("utf-8", "replace")
        return any(_digest(text[at : at + RUN], self._key) in self._digests for at in range(len(text) - RUN + 1))


def _digest(piece: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(piece, key=key, digest_size=_DIGEST_BYTES).digest()
