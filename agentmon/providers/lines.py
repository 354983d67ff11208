"""Lines out of a byte stream, each capped: for answers that are JSON lines."""

from __future__ import annotations

from collections.abc import Callable

from agentmon.providers.sse import EVENT_CAP


class Lines:
    """Calls `on_line(line)` for each line, without its end; a longer one than `cap` bytes is dropped and flagged."""

    def __init__(self, on_line: Callable[[bytes], None], cap: int = EVENT_CAP) -> None:
        self._on_line = on_line
        self._cap = cap
        self._part = bytearray()
        self._dropping = False
        self.overflowed = False

    def feed(self, data: bytes) -> None:
        *ended, rest = data.split(b"\n")
        for line in ended:
            self._extend(line)
            if not self._dropping:
                self._on_line(bytes(self._part))
            self._part.clear()
            self._dropping = False
        self._extend(rest)

    def close(self) -> None:
        """The stream has ended: what is there is a line."""
        if self._part and not self._dropping:
            self._on_line(bytes(self._part))
        self._part.clear()

    def _extend(self, data: bytes) -> None:
        if self._dropping or len(self._part) + len(data) > self._cap:
            self._dropping = self.overflowed = True
            self._part.clear()
        else:
            self._part += data
