"""Responses over a WebSocket: OpenAI realtime (`response.done`), Codex (`response.completed` and its kin).

One socket carries many responses. Each is asked for by the client (`response.create`), or begun by the server that
heard somebody stop speaking; each has one last event with its usage, and is one row. The parser takes whole messages,
decompressed (permessage-deflate is the edge's work), whatever their opcode: a server may read JSON in binary
frames too.

Source: openai/openai-python, src/openai/types/realtime (realtime_server_event.py, realtime_client_event.py).
"""

from __future__ import annotations

from collections import deque

from agentmon.providers.counting import count_tokens, tokens_of
from agentmon.providers.declaration import Asked, Estimate, Said
from agentmon.providers.estimate import DEFAULT_OUTPUT, MAX_COUNT
from agentmon.providers.jsonread import Json, count, parse_object, table, text
from agentmon.providers.openai_usage import usage_row
from agentmon.providers.request import Request
from agentmon.providers.sse import EVENT_CAP

_ENDS = {"response.done", "response.completed", "response.incomplete", "response.failed"}
_SPOKEN = "conversation.item.input_audio_transcription.completed"
_REMEMBERED = 512  # ids of responses that were told: one may be told again, but not that much later
_FRAME_BYTES = 150  # of a delta around its text
_SOUND_BYTES_PER_TOKEN = 1000  # of base64: the densest format (8 kB of sound a second) at ten tokens a second
_SOUND = b'"input_audio_buffer.append"'
_MAY_ASK = (b"response.create", b"\\u")  # JSON may spell a letter by its number: what has one is parsed


class Responses:
    """What both sides of one socket say. No method raises, whatever the bytes; what is kept is bounded.

    :param model: of the session, if the handshake names it; realtime's events do not.
    """

    def __init__(self, model: str = "") -> None:
        self._model = model
        self._told: deque[str] = deque(maxlen=_REMEMBERED)
        self._context = 0  # tokens of the conversation as far as the last usage told them
        self._unread_bytes = self._sound_bytes = 0  # said by the client since
        self.overflowed = False

    def asked(self, data: bytes) -> Asked | None:
        """One message from the client; None where it asks for no response."""
        event = {} if not any(mark in data for mark in _MAY_ASK) else parse_object(data)
        if event is None:  # not to this reader; the server's may be more tolerant
            return Asked("", self._estimate({}, tokens_of(len(data))))
        if event.get("type") != "response.create":
            if _SOUND in data[:200]:
                self._sound_bytes += len(data)
            else:
                self._unread_bytes += len(data)
            return None
        fields = table(event.get("response")) or event
        return Asked(text(event.get("event_id")), self._estimate(fields, count_tokens(Request("", data, fields))))

    def begun(self) -> Estimate:
        """Of a response that the server begins by itself."""
        return self._estimate({}, 0)

    def said(self, data: bytes) -> Said | None:
        """One message from the provider; None where it says nothing that costs."""
        if len(data) > EVENT_CAP:
            self.overflowed = True
            return None
        if not any(mark in data for mark in (b'"response.', b'"session.', b'"error"', _SPOKEN.encode())):
            return None
        event = parse_object(data)
        if event is None:
            return None
        kind = str(event.get("type"))
        if kind.endswith(".delta"):
            number = text(event.get("response_id"))
            return Said("text", number, tokens=tokens_of(max(0, len(data) - _FRAME_BYTES)))
        return self._event(kind, event)

    def _event(self, kind: str, event: Json) -> Said | None:
        response = table(event.get("response"))
        number = text(response.get("id"))
        if kind.startswith("session."):
            self._model = text(table(event.get("session")).get("model")) or self._model
        elif kind == "error":
            return Said("error", event=text(table(event.get("error")).get("event_id")))
        elif kind == _SPOKEN:
            return self._spoken(event)
        elif kind == "response.created":
            return Said("begun", number)
        return self._ended(response, number) if kind in _ENDS else None

    def _ended(self, response: Json, number: str) -> Said | None:
        if number and number in self._told:
            return None
        row = usage_row(response.get("usage"), text(response.get("model")) or self._model, number, complete=True)
        if row is not None:
            self._told.append(number)
            self._context = row.input + row.cache_read + row.cache_write_5m + row.cache_write_1h + row.output
            self._unread_bytes = self._sound_bytes = 0
        return Said("ended", number, row)

    def _spoken(self, event: Json) -> Said | None:
        """Speech written down by a model of its own, which is billed apart."""
        number = f"{text(event.get('item_id'))}:{event.get('content_index')}"[:200]
        if number in self._told:
            return None
        row = usage_row(event.get("usage"), "transcription", number, complete=True)
        if row is not None:
            self._told.append(number)
        return Said("spoken", number, row)

    def _estimate(self, fields: Json, tokens: int) -> Estimate:
        """The whole conversation is read again for each response."""
        unread = tokens_of(self._unread_bytes) + -(-self._sound_bytes // _SOUND_BYTES_PER_TOKEN)
        most = (count(fields.get(name)) for name in ("max_output_tokens", "max_response_output_tokens"))
        output = next((value for value in most if value), DEFAULT_OUTPUT)
        total = self._context + unread + tokens
        return Estimate(text(fields.get("model")) or self._model, min(total, MAX_COUNT), min(output, MAX_COUNT))
