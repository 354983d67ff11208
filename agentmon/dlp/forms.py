"""How a known value may look when it leaves: as it is, base64 in each alignment, base64url, base32, hex, escaped. Pure.

What is escaped piece by piece (JSON's backslash-u, %XX) or encoded twice is found in the decoded views; what is listed
here is found also in the middle of other encoded data.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from urllib.parse import quote, quote_plus

from agentmon.dlp.rules import shannon

MIN_BYTES = 8  # a shorter value would be found everywhere
_SHORTEST = 8  # of an encoded form without the characters that depend on what stands beside it
_NAMES = re.compile(
    r"(?i)(?:^|_)(?:api_?key|\w*key|\w*token|\w*secret|\w*passw(?:or)?d|passphrase|pwd|credentials?|dsn|pat|private)(?:_|$)"
    r"|_(?:uri|url)$"
)
_PLAIN_ENTROPY = 2.5


def forms(value: bytes) -> frozenset[bytes]:
    """Every form to look for, none shorter than 8 bytes; empty for a value that is too short."""
    if len(value) < MIN_BYTES:
        return frozenset()
    found = {value, value.hex().encode(), value.hex().upper().encode(), base64.b32encode(value).rstrip(b"=")}
    for shift in range(3):
        found |= {_inner(value, shift, base64.b64encode), _inner(value, shift, base64.urlsafe_b64encode)}
    text = value.decode("utf-8", "replace")
    if text.encode() == value:
        found |= {json.dumps(text)[1:-1].encode(), text.replace("/", "\\/").encode()}
        found |= {quote(text, safe="").encode(), quote_plus(text).encode(), quote(text).encode()}
    return frozenset(form for form in found if len(form) >= _SHORTEST)


def name_forms(value: bytes) -> frozenset[bytes]:
    """As forms(), for host names: without dots and in lower case, as names are compared."""
    found = {form.lower().replace(b".", b"") for form in forms(value)} if len(value) >= MIN_BYTES else set()
    return frozenset(form for form in found if len(form) >= _SHORTEST and re.fullmatch(rb"[a-z0-9_-]+", form))


def secret_variables(env: Mapping[str, str]) -> dict[str, str]:
    """Those that hold a secret, by their names, and whose values can be told from ordinary words and paths."""
    return {name: value for name, value in env.items() if _NAMES.search(name) and _is_value(name, value)}


def _is_value(name: str, value: str) -> bool:
    if (
        len(value.encode()) < MIN_BYTES
        or value.startswith(("/", "./", "~"))
        or shannon(value.encode()) < _PLAIN_ENTROPY
    ):
        return False
    if re.search(r"(?i)(?:uri|url|dsn)$", name):
        return re.search(r"://[^/\s:@]*:[^/\s@]+@", value) is not None
    return not re.fullmatch(r"[a-z]+(?:[ _-][a-z]+)?", value) or len(value) >= 16


def _inner(value: bytes, shift: int, encode: object) -> bytes:
    """`value` in base64 behind `shift` other bytes, without the characters that other bytes have a part in."""
    assert callable(encode)
    text: bytes = encode(b"\0" * shift + value).rstrip(b"=")
    first = (0, 2, 3)[shift]
    last = len(text) - (1 if (shift + len(value)) % 3 else 0)
    return text[first:last]
