"""Usage of responses over a WebSocket: OpenAI realtime (`response.done`), Codex (`response.completed` and its kin).

One socket carries many responses; each has one last event with its usage, and is one row. The parser takes whole
messages, decompressed (permessage-deflate is the edge's work); binary ones (sound) say nothing. Sockets are refused by
the proxy today, and Codex then takes SSE.
"""

from __future__ import annotations

from collections import deque

from agentmon import wire
from agentmon.providers.jsonread import parse_object, table, text
from agentmon.providers.openai_usage import usage_row
from agentmon.providers.sse import EVENT_CAP

_ENDS = {"response.done", "response.completed", "response.incomplete", "response.failed"}
_REMEMBERED = 512  # ids of responses that were told: one may be told again, but not that much later


class Responses:
    """message() gives the row of the response that this message ends, None for every other message."""

    def __init__(self, model: str = "") -> None:
        self._model = model  # of the session; realtime's events do not name it
        self._told: deque[str] = deque(maxlen=_REMEMBERED)
        self.open: set[str] = set()  # ids of responses that began and have not ended: lost if the socket ends now
        self.overflowed = False

    def message(self, data: bytes) -> wire.Usage | None:
        """One text message from the provider, in any bytes; never raises."""
        if len(data) > EVENT_CAP:
            self.overflowed = True
            return None
        if b'"response.' not in data and b'"session.' not in data:
            return None
        event = parse_object(data)
        if event is None:
            return None
        kind = event.get("type")
        if isinstance(kind, str) and kind.startswith("session."):
            self._model = text(table(event.get("session")).get("model")) or self._model
            return None
        response = table(event.get("response"))
        number = text(response.get("id"))
        if kind == "response.created" and len(self.open) < _REMEMBERED:
            self.open.add(number)
        if not isinstance(kind, str) or kind not in _ENDS or (number and number in self._told):
            return None
        self.open.discard(number)
        row = usage_row(response.get("usage"), text(response.get("model")) or self._model, number, complete=True)
        if row is not None:
            self._told.append(number)
        return row
