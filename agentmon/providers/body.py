"""What the parsers of all providers share: a whole JSON body, bounded, and the choice between JSON and SSE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from agentmon import wire
from agentmon.providers.declaration import Parser

JSON_CAP = 16 << 20
Json = dict[str, Any]


def parse_object(data: bytes) -> Json | None:
    """The JSON object in `data`; None for anything else."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def count(value: object) -> int | None:
    """A token count as providers write it; None for what is absent, null, negative or no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != value:
        return None
    return int(min(value, 1 << 53))


def table(value: object) -> Json:
    """`value` if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def text(value: object) -> str:
    return value[:200] if isinstance(value, str) else ""


class JsonBody:
    """Parser of one JSON document: collects it, then lets `read` find the usage at the provider's own place."""

    def __init__(self, read: Callable[[Json], wire.Usage | None]) -> None:
        self._read = read
        self._body = bytearray()
        self._usage: wire.Usage | None = None
        self.overflowed = False

    def feed(self, data: bytes) -> None:
        if self.overflowed or len(self._body) + len(data) > JSON_CAP:
            self.overflowed = True
            self._body.clear()
        else:
            self._body += data

    def close(self) -> None:
        document = parse_object(bytes(self._body))
        if document is not None:
            self._usage = self._read(document)

    def usage(self) -> wire.Usage | None:
        return self._usage


class Choice:
    """Parser that is JSON or SSE: by the content type, or by the first byte where that is missing or wrong."""

    def __init__(self, headers: Mapping[str, str], json: Callable[[], Parser], sse: Callable[[], Parser]) -> None:
        self._json = json
        self._sse = sse
        self._parser: Parser | None = sse() if "text/event-stream" in headers.get("content-type", "").lower() else None
        self._blank = bytearray()

    def feed(self, data: bytes) -> None:
        if self._parser is None:
            self._blank += data
            start = bytes(self._blank[:64]).lstrip(b" \t\r\n\xef\xbb\xbf")
            if not start and len(self._blank) < 64:
                return
            self._parser = self._json() if start[:1] in (b"{", b"[") else self._sse()
            data = bytes(self._blank)
            self._blank.clear()
        self._parser.feed(data)

    def close(self) -> None:
        if self._parser is not None:
            self._parser.close()

    def usage(self) -> wire.Usage | None:
        return None if self._parser is None else self._parser.usage()

    @property
    def streams(self) -> bool:
        """Whether it turned out to be an event stream; False while nothing has come."""
        return self._parser is not None and not isinstance(self._parser, JsonBody)

    @property
    def output_seen(self) -> int:
        """Tokens of output that the text so far amounts to, by its length; see estimate.py."""
        return int(getattr(self._parser, "output_seen", 0))

    @property
    def overflowed(self) -> bool:
        return bool(getattr(self._parser, "overflowed", False))
