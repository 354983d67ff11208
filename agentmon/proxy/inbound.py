"""What an answer says to the agent, read as it comes: told (warn), or kept from it (block). Pure.

warn   a copy is read, the bytes pass unchanged and undelayed; of one answer the first WARN_BYTES
block  events of a stream one by one; anything else whole, and from HOLD_BYTES on with its last bytes held back
"""

from __future__ import annotations

from collections.abc import Callable

from agentmon.injection.watch import OVERLAP, BatchedEventWatch, EventWatch, Finding, Watch
from agentmon.providers.decoding import Decoder, decode_all
from agentmon.providers.sse import EventGate, SseReader

WARN_BYTES = 8 << 20
HOLD_BYTES = 1 << 20
_DECODED_BYTES = 64 << 20
_SNIFFED = 1024
_EVENTS = (b"event:", b"data:", b"id:", b"retry:", b":")

Stream = Callable[[bytes], bytes | list[bytes]]
TOO_LONG = Finding("unexamined", "is too long or too strangely encoded to be examined", "")


def is_binary(data: bytes) -> bool:
    """Whether this beginning is of no text that a model is given."""
    return b"\0" in data[:_SNIFFED]


def passed(data: bytes) -> bytes | list[bytes]:
    """The stream that changes nothing."""
    return data or []


class Reader:
    """Decoded text of one answer → findings; an event stream is known by its type or its first bytes."""

    def __init__(self, coding: str, event_stream: bool) -> None:
        self._decoder = Decoder(coding, self._text)
        self._watch = Watch()
        self._events = SseReader(self._event) if event_stream else None
        self._event_watch = BatchedEventWatch()
        self._begun = self._binary = False
        self._found: list[Finding] = []

    def feed(self, data: bytes) -> list[Finding]:
        """Never raises."""
        self._decoder.feed(data)
        found, self._found = self._found, []
        return found

    def close(self) -> list[Finding]:
        self._decoder.close()
        if self._events is not None:
            self._events.close()
            self._found += self._event_watch.close()
        found, self._found = self._found, []
        return found

    def _text(self, data: bytes) -> None:
        if not self._begun:
            self._begun, self._binary = True, is_binary(data)
            if self._events is None and data.lstrip(b"\xef\xbb\xbf \r\n").startswith(_EVENTS):
                self._events = SseReader(self._event)
        if self._binary:
            return
        if self._events is not None:
            self._events.feed(data)
        else:
            self._found += self._watch.feed(data)

    def _event(self, name: str, data: bytes) -> None:
        self._found += self._event_watch.feed(data)


class Copy:
    """A stream callable around another: what it is given is read besides."""

    def __init__(self, reader: Reader, inner: Stream, on_find: Callable[[Finding], None]) -> None:
        self._reader = reader
        self._inner = inner
        self._on_find = on_find
        self._left = WARN_BYTES

    def __call__(self, data: bytes) -> bytes | list[bytes]:
        out = self._inner(data)
        if self._left > 0:
            self._left -= len(data)
            for finding in self._reader.feed(data) if data else self._reader.close():
                self._on_find(finding)
        return out


class Events:
    """Passes an event stream on event by event, until one is found: then nothing more. `on_find` ends the stream."""

    def __init__(self, inner: Stream, on_find: Callable[[Finding], None]) -> None:
        self._inner = inner
        self._on_find = on_find
        self._gate = EventGate(self._examined, hold=1 << 62)
        self._watch = EventWatch()
        self._around = Watch()  # what is no data: names, comments, ids
        self._over = False

    def __call__(self, data: bytes) -> bytes | list[bytes]:
        given = self._inner(data)
        out = b""
        for piece in [given] if isinstance(given, bytes) else given:
            out += self._gate.feed(piece)
        if not data:
            out += self._gate.flush()
        if self._gate.pending_bytes > HOLD_BYTES:
            self._find(TOO_LONG)
        return [out] if out else []

    def _examined(self, raw: bytes) -> bytes:
        if self._over:
            return b""
        found: list[Finding] = []
        reader = SseReader(lambda name, data: found.extend(self._watch.feed(data)))
        reader.feed(raw)
        reader.close()
        found += self._around.whole(raw)
        if found:
            self._find(found[0])
            return b""
        return raw

    def _find(self, finding: Finding) -> None:
        if not self._over:
            self._over = True
            self._on_find(finding)


class Held:
    """An answer that is no event stream: whole() while it is short, and a stream callable once it is not."""

    def __init__(self, coding: str, inner: Stream, on_find: Callable[[Finding], None]) -> None:
        self._coding = coding
        self._inner = inner
        self._on_find = on_find
        self._watch = Watch()
        self._back = b""
        self._begun = self._binary = self._over = False

    def whole(self, body: bytes) -> Finding | None:
        """What is found in a body that came to its end."""
        text = decode_all(self._coding, body, _DECODED_BYTES)
        if text is None:
            return TOO_LONG
        if text.lstrip(b"\xef\xbb\xbf \r\n").startswith(_EVENTS):
            found = Reader(self._coding, True)
            return next(iter(found.feed(body) + found.close()), None)
        return None if is_binary(text) else next(iter(self._watch.feed(text)), None)

    def __call__(self, data: bytes) -> bytes | list[bytes]:
        if self._over:
            return []
        if not self._begun and data:
            self._begun, self._binary = True, is_binary(self._first(data))
            if self._coding and not self._binary:
                return self._find(TOO_LONG)
        given = self._inner(data)
        text = given if isinstance(given, bytes) else b"".join(given)
        if self._binary:
            return given
        found = self._watch.feed(text)
        if found:
            return self._find(found[0])
        text = self._back + text
        keep = OVERLAP if data else 0
        self._back = text[len(text) - min(keep, len(text)) :]
        out = text[: len(text) - len(self._back)]
        return [out] if out else []

    def _first(self, data: bytes) -> bytes:
        """The beginning of what these bytes stand for."""
        pieces: list[bytes] = []
        Decoder(self._coding, pieces.append).feed(data[: 64 << 10])
        return b"".join(pieces[:1])

    def _find(self, finding: Finding) -> list[bytes]:
        self._over, self._back = True, b""
        self._on_find(finding)
        return []
