"""The same bytes as others will read them: escapes, encodings and runs of base64 or hex undone, one inside the other.

    bytes ─┬─ JSON and C escapes (one level of backslashes) ─ …
           ├─ %XX, and + as a space where it is a form
           ├─ without NULs (UTF-16 of ASCII), quoted-printable
           └─ every run of base64, base64url or hex that decodes to text, in each alignment

Pure. Each View can say which bytes of its parent a span comes from; that is worked out only when something was found.
"""

from __future__ import annotations

import binascii
import bisect
import quopri
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes

from agentmon.dlp.rules import compiled

DEPTH = 5
_RUN = compiled(rb"[A-Za-z0-9+/_-]{20,}(?:\r?\n[A-Za-z0-9+/_-]+)+|[A-Za-z0-9+/_-]{20,}")
_PERCENT_WORD = compiled(rb"[^\s\"'<>\\]*%[0-9A-Fa-f]{2}[^\s\"'<>\\]*")
_ESCAPED_LINE = compiled(rb"[^\n]*\\[\"\\/bfnrtux0-7][^\n]*")
_ALL = re.compile(rb".+", re.DOTALL)
_PERCENT = re.compile(rb"%[0-9A-Fa-f]{2}")
_FORM = re.compile(rb"%[0-9A-Fa-f]{2}|\+")
_NUL = re.compile(rb"\0")
_QUOTES = compiled(rb"(?i)quoted-printable")
_QUOTED = re.compile(rb"=(?:[0-9A-Fa-f]{2}|\r?\n)")
_ESCAPES = re.compile(rb"\\(?:u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|[0-7]{1,3}|.)", re.DOTALL)
_OTHERS = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f"}
_HEX = re.compile(rb"[0-9A-Fa-f]+")
_BASE64URL = bytes.maketrans(b"-_", b"+/")
_TEXT = bytes([0, 9, 10, 13, *range(0x20, 0x7F)])

Undo = Callable[[bytes], Iterable[bytes]]
Back = Callable[[int, int], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class View:
    """`data` to be searched; `parent` None: as it came. `form`: + is a space."""

    data: bytes = field(repr=False)
    parent: View | None = None
    back: Back = field(default=lambda start, end: (start, end), repr=False)
    depth: int = 0
    form: bool = False

    def origin(self, start: int, end: int) -> tuple[int, int]:
        """The span of the bytes as they came."""
        view = self
        while view.parent is not None:
            start, end = view.back(start, end)
            view = view.parent
        return start, end


def children(view: View) -> Iterator[View]:
    """What else can be read in it; nothing below DEPTH."""
    if view.depth >= DEPTH:
        return
    data = view.data
    made = []
    if b"\\" in data:
        one_line = b"\n" not in data and not view.form
        plain = _pieced(view, _ALL if one_line else _ESCAPED_LINE, lambda piece: (unescaped(piece),), _ESCAPES)
        if (
            one_line and plain is not None and plain.data != data
        ):  # as JSON mostly is: its words stand in that view, too
            yield plain
            return
        made.append(None if one_line else plain)
    if view.form and (b"+" in data or b"%" in data):
        made.append(_pieced(view, _ALL, lambda piece: (_unform(piece),), _FORM))
    elif _PERCENT.search(data):
        made.append(_pieced(view, _PERCENT_WORD, lambda piece: (unquote_to_bytes(piece),), _PERCENT))
    if b"\0" in data:
        made.append(_pieced(view, _ALL, lambda piece: (piece.replace(b"\0", b""),), _NUL))
    if view.depth <= 1 and _QUOTES.search(data):
        made.append(_pieced(view, _ALL, lambda piece: (quopri.decodestring(piece),), _QUOTED))
    made.append(_pieced(view, _RUN, _decoded, None))
    yield from (child for child in made if child is not None)


def unescaped(data: bytes) -> bytes:
    r"""One level of backslashes undone: JSON's (RFC 8259 section 7), and \x and octal ones. Characters beyond Latin-1
    become "?"."""
    try:
        return data.replace(b"\\/", b"/").decode("unicode_escape", "replace").encode("latin-1", "replace")
    except Warning:  # where Python was told to raise them: it has one for escapes that it does not know
        return _ESCAPES.sub(_one, data)


def _one(found: re.Match[bytes]) -> bytes:
    text = found[0][1:]
    if text[:1] in b"ux" and len(text) > 1:
        return chr(int(text[1:], 16)).encode("latin-1", "replace")
    if text.isdigit():
        return chr(int(text, 8)).encode("latin-1", "replace") if _is_octal(text) else found[0]
    return _OTHERS.get(text, text)


def _is_octal(text: bytes) -> bool:
    return not set(text) - set(b"01234567")


def _unform(data: bytes) -> bytes:
    return unquote_to_bytes(data.replace(b"+", b" "))


def _pieced(view: View, where: Any, undo: Undo, token: re.Pattern[bytes] | None) -> View | None:
    """One view of all pieces that `where` finds, each undone, a line end between two; None: there are none.

    :param token: what `undo` changes: with it a span leads back to its very bytes, without to the whole piece.
    """
    spans: list[tuple[int, int]] = []
    texts: list[bytes] = []
    for match in where.finditer(view.data):
        start, end = match.span()
        if token is None and view.data[start - 1 : start] == b"\\":
            start += 1  # the letter of an escape
        for text in undo(view.data[start:end]):
            spans.append((start, end))
            texts.append(text)
    if not texts:
        return None

    def back(start: int, end: int) -> tuple[int, int]:
        begins = [0]
        for text in texts:
            begins.append(begins[-1] + len(text) + 1)
        first = bisect.bisect_right(begins, start) - 1
        last = max(first, bisect.bisect_left(begins, end) - 1)
        if token is None:
            found = spans[first : last + 1]
            return min(s for s, _ in found), max(e for _, e in found)
        head = _steps(view.data[slice(*spans[first])], token, undo)
        tail = head if first == last else _steps(view.data[slice(*spans[last])], token, undo)
        if head[-1][0] != len(texts[first]) or tail[-1][0] != len(texts[last]):  # the tokens do not add up: all of it
            return spans[first][0], spans[last][1]
        begin = _place(head, start - begins[first], False)
        return spans[first][0] + begin, spans[last][0] + _place(tail, end - begins[last], True)

    return View(b"\n".join(texts), view, back, view.depth + 1, view.form)


def _steps(data: bytes, token: re.Pattern[bytes], undo: Undo) -> list[tuple[int, int]]:
    return list(_pieces(data, token, lambda piece: next(iter(undo(piece)))))


def _pieces(data: bytes, token: re.Pattern[bytes], undo: Callable[[bytes], bytes]) -> Iterator[tuple[int, int]]:
    at = there = 0
    for found in token.finditer(data):
        yield there, at
        there += found.start() - at
        yield there, found.start()
        there += len(undo(found[0]))
        at = found.end()
    yield there, at
    yield there + len(data) - at, len(data)


def _place(starts: list[tuple[int, int]], position: int, is_end: bool) -> int:
    """Where in the parent a position of the view is: before a token that it cuts, or behind it."""
    if is_end:
        n = bisect.bisect_left(starts, (position, -1))
        (here, there), (before, before_there) = starts[n], starts[n - 1]
        return there if here == position else min(before_there + position - before, there)
    n = bisect.bisect_right(starts, (position, 1 << 62)) - 1
    here, there = starts[n]
    last = starts[n + 1][1] if n + 1 < len(starts) else there
    whole = n + 1 < len(starts) and starts[n + 1][0] - here != last - there  # a token
    return there if whole else there + position - here


def _decoded(run: bytes) -> Iterator[bytes]:
    """Texts that this run may stand for."""
    if b"\n" in run:
        for line in run.split(b"\n"):
            if len(line) >= 20:
                yield from _decoded(line.rstrip(b"\r"))
        run = run.replace(b"\r", b"").replace(b"\n", b"")
    if _HEX.fullmatch(run):
        for shift in (0, 1):
            digits = run[shift:]
            yield from _if_text(binascii.unhexlify(digits[: len(digits) // 2 * 2]))
    run = run.translate(_BASE64URL)
    for shift in range(4):
        digits = run[shift:]
        size = len(digits) - (len(digits) % 4 == 1)
        yield from _if_text(binascii.a2b_base64(digits[:size] + b"=" * (-size % 4)))


def _if_text(data: bytes) -> Iterator[bytes]:
    if len(data.translate(None, _TEXT)) * 16 <= len(data):
        yield data
