"""A request's head as one text to be searched, and what a finding in it means: which header, exempt or not. Pure.

/v1/items          path
x-note: …          header x-note       … and the query apart, since there "+" is a space
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from urllib.parse import unquote_to_bytes

from agentmon.dlp.scanner import Finding, Scanner, redacted
from agentmon.proxy import inject

# Values that protocols make up at random: what looks like no particular provider's token is none here.
_RANDOM = frozenset(
    (
        "sec-websocket-key", "idempotency-key", "x-idempotency-key", "if-match", "if-none-match", "traceparent",
        "tracestate", "x-request-id", "x-amz-content-sha256", "content-md5", "digest", "content-digest", "etag",
    )
)  # fmt: skip
_CREDENTIAL = "exact:credential "
_PROTOCOL = "sec-websocket-protocol"  # browsers can send a key no other way
_SPLIT = re.compile(rb"\r\n(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:|\r\n|HTTP/)|\n\n|\n[A-Za-z-]+: ")


@dataclass(frozen=True, slots=True)
class Head:
    """What leaves of a head. `own`: the bottle's own credentials pass to this host. `unscanned`: headers, in lower
    case."""

    target: str
    headers: Sequence[tuple[bytes, bytes]]
    own: bool = False
    unscanned: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Redacted:
    """The head with markers where values were; `headers` in their order."""

    target: str
    headers: tuple[tuple[bytes, bytes], ...]


def split_attempt(target: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Where something would end a line that others read as a new header or request; "" for nowhere.

    A line end in a query is text (a form's) unless what follows it is a header.
    """
    for name, value in headers:
        if any(c in name or c in value for c in (b"\r", b"\n", b"\0")):
            return "header " + _shown(name)
    path, _, query = target.partition("?")
    if any(c in text for text in _readings(path) for c in (b"\r", b"\n", b"\0")):
        return "path"
    return "query" if any(_SPLIT.search(text) for text in _readings(query)) else ""


def scan(scanner: Scanner, head: Head) -> tuple[Finding, ...]:
    """What is found in path, headers and query; `where` says which. Spans are of the path and header text, or of the
    query: see redact()."""
    text, starts, names = _text(head)
    query = head.target.partition("?")[2]
    found = []
    for f in scanner.scan(text, "path"):
        line = bisect.bisect_right(starts, f.start) - 1
        name = names[line]
        if name and _exempt(name, f, head.own):
            continue
        in_name = f.start < starts[line] + len(name)
        found.append(replace(f, where="name of a header" if in_name else f"header {name}") if name else f)
    for f in scanner.scan(query.encode("utf-8", "surrogateescape"), "query", form=True) if query else ():
        if not _exempt_key(query, f, head.own):
            found.append(f)
    return tuple(found)


def redact(head: Head, findings: Iterable[Finding]) -> Redacted | None:
    """:param findings: of scan(). None: one is in the host or path, or in what is no value of a header."""
    found = tuple(findings)
    text, starts, _ = _text(head)
    path, mark, query = head.target.partition("?")
    if any(f.where in {"host", "path"} for f in found):
        return None
    scrubbed = redacted(text, (f for f in found if f.where != "query"))
    lines = scrubbed.split(b"\n")
    if len(lines) != len(starts):
        return None
    headers = list(head.headers)
    indexes = [n for n, (name, _) in enumerate(head.headers) if _is_scanned(head, name)]
    for n, line in zip(indexes, lines[1:], strict=True):
        name, _, value = line.partition(b": ")
        if name != headers[n][0]:
            return None
        headers[n] = name, value
    scrubbed = redacted(query.encode("utf-8", "surrogateescape"), (f for f in found if f.where == "query"))
    return Redacted(path + mark + scrubbed.decode("utf-8", "surrogateescape"), tuple(headers))


def own_values(head: Head) -> frozenset[bytes]:
    """The credentials in its headers, with and without their scheme."""
    values: set[bytes] = set()
    for name, value in head.headers:
        if inject.is_own(_shown(name)):
            values |= {value, value.rpartition(b" ")[2]}
    return frozenset(value for value in values if value)


def _text(head: Head) -> tuple[bytes, list[int], list[str]]:
    """The text, where its lines start, and the header of each line ("" for the path's)."""
    lines = [head.target.partition("?")[0].encode("utf-8", "surrogateescape")]
    names = [""]
    for name, value in head.headers:
        if _is_scanned(head, name):
            lines.append(name + b": " + value)
            names.append(_shown(name))
    starts = [0]
    for line in lines[:-1]:
        starts.append(starts[-1] + len(line) + 1)
    return b"\n".join(lines), starts, names


def _is_scanned(head: Head, name: bytes) -> bool:
    return name.decode("latin-1").lower() not in head.unscanned


def _exempt(name: str, finding: Finding, own: bool) -> bool:
    if own and (inject.is_own(name) or name == _PROTOCOL) and not finding.detector.startswith(_CREDENTIAL):
        return True
    return name in _RANDOM and finding.detector.startswith("generic")


def _exempt_key(query: str, finding: Finding, own: bool) -> bool:
    """Whether the finding is the value of a parameter that carries the bottle's own credentials."""
    if not own or finding.detector.startswith(_CREDENTIAL):
        return False
    before = query.encode("utf-8", "surrogateescape")[: finding.start].decode("utf-8", "replace")
    parameter = re.split("[&;]", before)[-1]
    return "=" in parameter and inject.without_keys("?" + parameter) == ""


def _readings(text: str) -> tuple[bytes, bytes, bytes]:
    once = unquote_to_bytes(text)
    return text.encode("utf-8", "surrogateescape"), once, unquote_to_bytes(once)


def _shown(name: bytes) -> str:
    return "".join(c if c.isprintable() else "?" for c in name.decode("latin-1").lower())[:40]
