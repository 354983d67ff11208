"""What the parsers of streamed answers share, whatever the framing: where events come from, what is known so far."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from agentmon import wire
from agentmon.providers.counting import tokens_of
from agentmon.providers.sse import SseReader


class Framing(Protocol):
    """Cuts a body into events and hands each on."""

    overflowed: bool  # an event was over the cap

    def feed(self, data: bytes) -> None:
        """Decoded body bytes, in any chunking."""


class StreamParser(ABC):
    """A declaration.Parser over the events of one framing; a subclass says the usage."""

    streams = False  # whether an SSE event of ours may follow

    def __init__(self, framing: Framing) -> None:
        self._framing = framing
        self._text_bytes = 0

    def feed(self, data: bytes) -> None:
        self._framing.feed(data)

    def close(self) -> None:  # noqa: B027  not abstract: most have nothing to do
        """The body has ended, or broke off: an event that has not ended is none."""

    @property
    def overflowed(self) -> bool:
        return self._framing.overflowed

    @property
    def damaged(self) -> bool:
        """Whether the framing is lost: nothing that follows can be read."""
        return bool(getattr(self._framing, "damaged", False))

    @property
    def output_seen(self) -> int:
        """Tokens of output that the text so far amounts to, on the high side."""
        return tokens_of(self._text_bytes)

    @abstractmethod
    def usage(self) -> wire.Usage | None:
        """The merged usage so far; see declaration.Parser."""

    def _text(self, data: bytes, frame_bytes: int) -> None:
        """Count the text of a delta without what is around it."""
        self._text_bytes += max(0, len(data) - frame_bytes)


class SseParser(StreamParser):
    """Reads SSE; a subclass reads each event."""

    streams = True

    def __init__(self) -> None:
        self._sse = SseReader(self._event)
        super().__init__(self._sse)
        self._model = self._id = ""
        self._complete = self._failed = False

    def close(self) -> None:
        """As above, but the last event counts without its blank line."""
        self._sse.close()

    @abstractmethod
    def _event(self, name: str, data: bytes) -> None:
        """One whole event."""
