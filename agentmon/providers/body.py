"""What the parsers of all providers share: a whole JSON body, bounded, and the choice between JSON and SSE."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agentmon import wire
from agentmon.providers.declaration import Parser
from agentmon.providers.jsonread import Json, parse_object

JSON_CAP = 16 << 20


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
    """Parser that is JSON or SSE: by the content type, or by the first byte where that is missing or wrong.

    :param array: for protocols that also stream as one JSON array; without it an array is a JSON body.
    """

    def __init__(
        self,
        headers: Mapping[str, str],
        json: Callable[[], Parser],
        sse: Callable[[], Parser],
        array: Callable[[], Parser] | None = None,
    ) -> None:
        self._by_first = {b"{": json, b"[": array or json}
        self._sse = sse
        self._parser: Parser | None = sse() if "text/event-stream" in headers.get("content-type", "").lower() else None
        self._blank = bytearray()

    def feed(self, data: bytes) -> None:
        if self._parser is None:
            self._blank += data
            start = bytes(self._blank[:64]).lstrip(b" \t\r\n\xef\xbb\xbf")
            if not start and len(self._blank) < 64:
                return
            self._parser = self._by_first.get(start[:1], self._sse)()
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
        return getattr(self._parser, "streams", False)

    @property
    def output_seen(self) -> int:
        """Tokens of output that the text so far amounts to, by its length; see estimate.py."""
        return int(getattr(self._parser, "output_seen", 0))

    @property
    def overflowed(self) -> bool:
        return bool(getattr(self._parser, "overflowed", False))

    @property
    def ends_with_body(self) -> bool:
        return bool(getattr(self._parser, "ends_with_body", False))
