"""Anthropic Messages: usage out of JSON and SSE answers.

Source: anthropics/anthropic-sdk-python, src/anthropic/types/usage.py and message_delta_usage.py, and for iterations
types/beta/beta_usage.py.

`input_tokens` excludes cached tokens. In a stream, `message_start` carries a first usage whose output is a placeholder
and every `message_delta` a cumulative one: field by field the last explicit value wins, zeros included; absent and null
keep the earlier one. Beta `usage.iterations[]`, when there, is summed and replaces the top level, which does not have
all of them (compaction).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from agentmon import wire
from agentmon.providers.body import Choice, JsonBody
from agentmon.providers.jsonread import Json, count, parse_object, rows, table, text
from agentmon.providers.stream import SseParser

_READ = {"message_start", "message_delta", "message_stop", "error"}
_FRAME_BYTES = 90  # of a delta around its text


class Merge:
    """The usage of one message, updated by each usage object in the order of the stream."""

    def __init__(self) -> None:
        self._values: Json = {}
        self.seen = False

    def update(self, usage: object) -> None:
        if not isinstance(usage, dict):
            return
        for key, value in usage.items():
            if value is None:
                continue
            if isinstance(value, dict):
                old = table(self._values.get(key))
                self._values[key] = old | {k: v for k, v in value.items() if v is not None}
            else:
                self._values[key] = value
            if key == "cache_creation_input_tokens" and not usage.get("cache_creation"):
                self._values.pop("cache_creation", None)  # a later total without its split makes the old split wrong
            self.seen = True

    def usage(self, model: str, request_id: str, *, complete: bool) -> wire.Usage:
        sums = [_split(part) for part in rows(self._values.get("iterations")) or [self._values]]
        read, write_5m, write_1h, fresh, output, reasoning = (sum(column) for column in zip(*sums, strict=True))
        return wire.Usage(
            provider="claude", model=model, request_id=request_id, input=fresh, cache_read=read,
            cache_write_5m=write_5m, cache_write_1h=write_1h, output=output, reasoning=reasoning,
            source="wire", complete=complete, raw=msgspec.json.encode(self._values),
        )  # fmt: skip


def _split(usage: Json) -> tuple[int, int, int, int, int, int]:
    """(cache_read, cache_write_5m, cache_write_1h, input, output, reasoning) of one usage object."""
    fresh, output, written, read = (
        count(usage.get(k)) or 0
        for k in ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    )
    creation = table(usage.get("cache_creation"))
    hour = count(creation.get("ephemeral_1h_input_tokens")) or 0
    five = count(creation.get("ephemeral_5m_input_tokens")) or 0
    if written:
        hour = min(hour, written)
        five = written - hour
    reasoning = count(table(usage.get("output_tokens_details")).get("thinking_tokens")) or 0
    return read, five, hour, fresh, output, min(reasoning, output)


def by_model(usage: wire.Usage) -> dict[str, tuple[int, int]]:
    """(input with cache, output) by model, out of the raw usage: more than one where iterations name their models."""
    raw = parse_object(usage.raw) or {}
    out: dict[str, tuple[int, int]] = {}
    for part in rows(raw.get("iterations")) or [raw]:
        read, five, hour, fresh, output, _ = _split(part)
        model = text(part.get("model")) or usage.model
        had = out.get(model, (0, 0))
        out[model] = (had[0] + read + five + hour + fresh, had[1] + output)
    return out


def read_message(document: Json) -> wire.Usage | None:
    """The usage of a whole message; None where it has none."""
    merge = Merge()
    merge.update(document.get("usage"))
    if not merge.seen:
        return None
    return merge.usage(text(document.get("model")), text(document.get("id")), complete=True)


class MessageEvents:
    """The merged usage of a message's events, wherever they come from (SSE; Bedrock's chunks)."""

    def __init__(self) -> None:
        self._merge = Merge()
        self._model = self._id = ""
        self._complete = self._failed = False
        self._row: wire.Usage | None = None
        self.text_bytes = 0

    def event(self, name: str, data: bytes) -> None:
        """One event; `name` "" where the framing has none."""
        event = parse_object(data) if not name or name in _READ else None
        kind = (event or {}).get("type") or name
        if kind == "content_block_delta":
            self.text_bytes += max(0, len(data) - _FRAME_BYTES)
        elif event is not None:
            self._read(str(kind), event)

    def _read(self, kind: str, event: Json) -> None:
        if kind == "message_start":
            message = table(event.get("message"))
            self._model, self._id = text(message.get("model")), text(message.get("id"))
            self._merge.update(message.get("usage"))
        elif kind == "message_delta":
            self._merge.update(event.get("usage"))
        elif kind == "message_stop":
            self._complete = True
        elif kind == "error":
            self._failed = True
        if self._merge.seen:
            complete = self._complete and not self._failed
            self._row = self._merge.usage(self._model, self._id, complete=complete)

    def usage(self) -> wire.Usage | None:
        """Asked for after every piece of the body; the same object until an event says more."""
        return self._row


class MessageStream(SseParser):
    """The SSE form."""

    def __init__(self) -> None:
        super().__init__()
        self._message = MessageEvents()

    def _event(self, name: str, data: bytes) -> None:
        self._message.event(name, data)
        self._text_bytes = self._message.text_bytes

    def usage(self) -> wire.Usage | None:
        return self._message.usage()


def parser(headers: Mapping[str, str]) -> Choice:
    return Choice(headers, lambda: JsonBody(read_message), MessageStream)
