"""Whether a request's head can be read in one way only, by whatever server is behind us: pure.

RFC 9110 sections 5.1, 5.5, 5.6.2 and 9.1. What mitmproxy refuses by itself (two lengths, odd codings) is not asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MOST_HEADERS = 300
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_METHOD = re.compile(r"[A-Z][A-Z-]{0,23}")  # all that are registered with IANA, and nothing that could hold a key
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_FRAMING = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "upgrade", "expect", "trailer", "te"}
)


def fault(method: str, headers: Iterable[tuple[str, str]]) -> tuple[int, str] | None:
    """The status and the sentence that it is refused with."""
    listed = tuple(headers)
    if len(listed) > MOST_HEADERS:
        return 431, f"A request has at most {MOST_HEADERS} headers here."
    if not _METHOD.fullmatch(method):
        return 400, "The method is no word of HTTP."
    for name, value in listed:
        if not _TOKEN.fullmatch(name):
            return 400, "The name of a header has characters that it must not have."
        if _CONTROLS.search(value):
            return 400, f"The header {name[:40]} has control characters."
        if name.lower() == "transfer-encoding" and value.strip().lower() != "chunked":
            return (
                400,
                "A request's Transfer-Encoding is chunked or none here: say Content-Encoding for another coding.",
            )
        if "_" in name and name.lower().replace("_", "-") in _FRAMING:
            return 400, f"The header {name[:40]} is read by some servers as one that says where a request ends or goes."
    return None
