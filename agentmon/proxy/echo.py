"""The credential that a route puts in, taken out of what the server says back: pure.

Each form of it is overwritten by as many asterisks, so that lengths, chunks and events stay as they are. Nothing is
held back but an end that may be the beginning of the credential.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable
from urllib.parse import quote

from agentmon.credentials.secret import Secret

_SHORTEST = 8  # a shorter one would be found in ordinary text
_SCHEME = re.compile(r"(?i)(?:basic|bearer|token) +(?=\S)")


class Echo:
    """For one route's credential; a Stream for each answer."""

    def __init__(self, secret: Secret) -> None:
        forms = sorted((f for f in _forms(secret.reveal()) if len(f) >= _SHORTEST), key=len, reverse=True)
        self.forms = tuple(forms)
        self._any = re.compile(b"|".join(re.escape(form) for form in forms)) if forms else None

    def without(self, data: bytes) -> bytes:
        """As long as `data`."""
        return self._any.sub(lambda found: b"*" * len(found[0]), data) if self._any is not None else data

    def without_in(self, fields: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
        """Of header fields."""
        return tuple((name, self.without(value)) for name, value in fields)

    def begins(self, data: bytes) -> int:
        """How many bytes at the end of `data` may be the beginning of a form."""
        longest = 0
        for form in self.forms:
            for size in range(min(len(form) - 1, len(data)), longest, -1):
                if data.endswith(form[:size]):
                    longest = size
                    break
        return longest


class Stream:
    """A stream callable before another, which never sees the credential: neither do events about what it finds."""

    def __init__(self, echo: Echo, then: Callable[[bytes], bytes | Iterable[bytes]]) -> None:
        self._echo = echo
        self._then = then
        self._back = b""

    def __call__(self, data: bytes) -> list[bytes]:
        text = self._echo.without(self._back + data)
        keep = self._echo.begins(text) if data else 0
        text, self._back = text[: len(text) - keep], text[len(text) - keep :]
        out: list[bytes] = []
        for piece in [text] * bool(text) + [b""] * (not data):
            given = self._then(piece)
            out += [given] if isinstance(given, bytes) else list(given)
        return [piece for piece in out if piece]


def _forms(value: str) -> set[bytes]:
    """As it is, as JSON and URLs write it; of a scheme's value the value alone, of Basic also the password."""
    bare = _SCHEME.sub("", value, count=1)
    found = {bare}
    if value.lower().startswith("basic "):
        try:
            pair = base64.b64decode(bare, validate=True).decode()
            found |= {pair, pair.partition(":")[2]}
        except ValueError:
            pass
    for text in tuple(found):
        found |= {json.dumps(text)[1:-1], text.replace("/", "\\/"), quote(text, safe=""), quote(text)}
    return {text.encode() for text in found}
