"""gzip files wherever they lie in what is sent, one inside the other, read as the bytes come: pure.

    bytes ─ header anywhere ─▶ inflate ─▶ text ─▶ the same again, DEPTH times        feed() returns each text

What begins like a file and is none is passed over; one that breaks after its beginning cannot be searched.
"""

from __future__ import annotations

import re
import zlib

DEPTH = 3
MOST_BYTES = 64 << 20  # unpacked of one feed
_ATTEMPTS = 4096  # beginnings in one feed
_HEADER = re.compile(rb"\x1f\x8b\x08[\x00-\x1f]")  # RFC 1952 section 2.3
_SURE = re.compile(rb"\x1f\x8b\x08[\x00-\x1f].{4}[\x00\x02\x04][\x00-\x0d\xff]", re.DOTALL)
_PIECE = 1 << 20
_PROBE = 512  # fed first: an error behind output would lose that output


class Unsearchable(Exception):
    """A packed file that is damaged, or expands too far."""


class Unpacker:
    """For one stream of bytes, or one body."""

    def __init__(self, depth: int = DEPTH) -> None:
        self._state: zlib._Decompress | None = None
        self._tail = b""  # may be the beginning of a header
        self._begun = self._sure = False  # something of this file was unpacked; its header is no accident
        self._inner = Unpacker(depth - 1) if depth > 1 else None

    @property
    def under_way(self) -> bool:
        """Whether the bytes that come next belong to a file."""
        return self._state is not None

    def feed(self, data: bytes) -> tuple[bytes, ...]:
        """What the files in these bytes hold, a line end between two; then what files in those hold, and so on, DEPTH
        texts. `data` goes on where the last one ended, and so does each text.

        :raises Unsearchable:
        """
        data, self._tail = self._tail + data, b""
        out = bytearray()
        at = attempts = 0
        while at < len(data):
            if self._state is None:
                found = _HEADER.search(data, at)
                if found is None:
                    self._tail = _unfinished(data[at:])
                    break
                attempts += 1
                if attempts > _ATTEMPTS:
                    raise Unsearchable("too many packed files")
                at, self._begun, self._sure = found.start(), False, _SURE.match(data, found.start()) is not None
                self._state = zlib.decompressobj(31)
                again = at + 1
            else:
                again = at  # it began in an earlier feed
            at = self._inflate(data, at, again, out)
        text = bytes(out)
        return (text,) if self._inner is None else (text, *self._inner.feed(text))

    def _inflate(self, data: bytes, at: int, again: int, out: bytearray) -> int:
        """Where to go on; `again`, where this is no file."""
        state, size = self._state, _PROBE
        assert state is not None
        while at < len(data) and not state.eof:
            piece = data[at : at + size]
            try:
                text = state.decompress(piece, MOST_BYTES - len(out) + 1)
            except zlib.error:
                if self._begun or self._sure:
                    raise Unsearchable("a packed file is damaged") from None
                self._state = None
                return again
            out += text
            if len(out) > MOST_BYTES:
                raise Unsearchable("a packed file expands too far")
            self._begun = self._begun or bool(text)
            at, size = at + len(piece), _PIECE
        if state.eof:
            at -= len(state.unused_data)
            out += b"\n"
            self._state = None
        return at


def _unfinished(data: bytes) -> bytes:
    """The end of these bytes, if a header may begin there."""
    last = data.rfind(b"\x1f", max(0, len(data) - 3))
    return data[last:] if last >= 0 else b""
