"""Server-sent events, cut incrementally out of a byte stream (WHATWG HTML, "Interpreting an event stream").

Lines end at LF, CR or CRLF, also when a chunk ends between CR and LF. A BOM at the very start, comments and unknown
fields are ignored; several data lines are joined with LF; the last event counts without its blank line. An event of
more than `cap` bytes is dropped and flagged, never collected.
"""

from __future__ import annotations

import re
from collections.abc import Callable

EVENT_CAP = 16 << 20
_BOM = b"\xef\xbb\xbf"
_LINE = re.compile(rb"\r\n|\r|\n")


class SseReader:
    """Calls `on_event(name, data)` for each event; `name` is "" where the stream gave none.

    feed() never raises for bad input; `overflowed` tells that an event was larger than the cap.
    """

    def __init__(self, on_event: Callable[[str, bytes], None], cap: int = EVENT_CAP) -> None:
        self._on_event = on_event
        self._cap = cap
        self._line = bytearray()
        self._after_cr = False
        self._first = True
        self._long_line = False  # the unfinished line was dropped because it passed the cap
        self._name = ""
        self._data: list[bytes] = []
        self._size = 0  # bytes of the event so far, its unfinished line excluded
        self._dropping = False
        self.overflowed = False

    @property
    def mid_line(self) -> bool:
        """Whether the last byte seen was inside a line."""
        return bool(self._line) or self._long_line

    @property
    def mid_event(self) -> bool:
        """Whether the event that began last still lacks its blank line."""
        return self.mid_line or self._size > 0 or bool(self._name)

    def feed(self, data: bytes) -> None:
        if self._after_cr and data:
            self._after_cr = False
            if data[:1] == b"\n":
                data = data[1:]
        if not data:
            return
        self._after_cr = data.endswith(b"\r")
        *lines, rest = _LINE.split(data)
        for line in lines:
            self._end_line(line)
        if rest:
            self._extend(rest)

    def close(self) -> None:
        """The stream has ended: what is there counts as an event."""
        if self.mid_line:
            self._end_line(b"")
        self._dispatch()

    def _extend(self, rest: bytes) -> None:
        if self._dropping or self._size + len(self._line) + len(rest) > self._cap:
            self._drop()
            self._long_line = True
        else:
            self._line += rest

    def _drop(self) -> None:
        self.overflowed = self._dropping = True
        self._line.clear()
        self._data.clear()

    def _end_line(self, tail: bytes) -> None:
        if self._line or self._long_line:
            self._extend(tail)
            line = bytes(self._line)
            self._line.clear()
        else:
            line = tail
        was_long, self._long_line = self._long_line, False
        if self._first:
            self._first = False
            line = line.removeprefix(_BOM)
        if not line and not was_long:
            self._dispatch()
        elif not was_long:
            self._field(line)

    def _field(self, line: bytes) -> None:
        self._size += len(line)
        if self._size > self._cap:
            self._drop()
        if self._dropping or line[:1] == b":":
            return
        field, _, value = line.partition(b":")
        if value[:1] == b" ":
            value = value[1:]
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value.decode("utf-8", "replace")

    def _dispatch(self) -> None:
        name, data, dropped = self._name, self._data, self._dropping
        self._name, self._data, self._size, self._dropping = "", [], 0, False
        if data and not dropped:
            self._on_event(name, b"\n".join(data))


class EventGate:
    """Passes a stream on event by event, as `change(raw)` gives each back (b"": left out); else byte-identical.

    What is incomplete waits for its end, but at most `hold` bytes: a longer event passes undivided and unexamined.
    """

    _END = re.compile(rb"(?:\r\n|\r(?!\n)|\n){2}")

    def __init__(self, change: Callable[[bytes], bytes], hold: int = 1 << 20) -> None:
        self._change = change
        self._hold = hold
        self._pending = bytearray()
        self._searched = 0  # of `_pending`: no terminator begins there
        self._passing = False  # inside an event that outgrew `hold`

    @property
    def pending_bytes(self) -> int:
        """Of the event that has begun."""
        return len(self._pending)

    @property
    def inside(self) -> bool:
        """Whether part of an event has left."""
        return self._passing

    def feed(self, data: bytes) -> bytes:
        """The bytes that may leave now."""
        self._pending += data
        out = bytearray()
        while (end := self._end()) is not None:
            raw = bytes(self._pending[:end])
            del self._pending[:end]
            out += raw if self._passing else self._change(raw)
            self._passing = False
        if len(self._pending) > self._hold:
            keep = 3  # a divided terminator still has to be recognised
            out += self._pending[:-keep]
            del self._pending[:-keep]
            self._searched = 0
            self._passing = True
        return bytes(out)

    def flush(self) -> bytes:
        """What is left when the stream ends, or a pause in it that cannot be told from the end."""
        raw = bytes(self._pending)
        self._pending.clear()
        self._searched = 0
        if raw and not self._passing and (changed := self._change(raw)) != raw:
            return changed
        self._passing = bool(raw)
        return raw

    def _end(self) -> int | None:
        """Just behind the first complete event. A CR that ends the data may be half a CRLF: that waits."""
        found = self._END.search(self._pending, self._searched)
        if found is None or (found.end() == len(self._pending) and self._pending[-1] == 0x0D):
            self._searched = max(0, len(self._pending) - 4)
            return None
        self._searched = 0
        return found.end()
