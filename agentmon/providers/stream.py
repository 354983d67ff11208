"""What the parsers of event streams share: where events come from, and what is known of the answer so far."""

from __future__ import annotations

from agentmon import wire
from agentmon.providers.counting import tokens_of
from agentmon.providers.sse import SseReader


class SseParser:
    """Base of parsers that read SSE; a subclass reads each event and says the usage."""

    streams = True  # an event of ours may follow

    def __init__(self) -> None:
        self._reader = SseReader(self._event)
        self._model = self._id = ""
        self._complete = self._failed = False
        self._text_bytes = 0

    def feed(self, data: bytes) -> None:
        self._reader.feed(data)

    def close(self) -> None:
        self._reader.close()

    @property
    def overflowed(self) -> bool:
        return self._reader.overflowed

    @property
    def output_seen(self) -> int:
        return tokens_of(self._text_bytes)

    def usage(self) -> wire.Usage | None:
        raise NotImplementedError

    def _event(self, name: str, data: bytes) -> None:
        raise NotImplementedError

    def _text(self, data: bytes, frame_bytes: int) -> None:
        """Count the text of a delta without the JSON around it."""
        self._text_bytes += max(0, len(data) - frame_bytes)
