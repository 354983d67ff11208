"""Anthropic Messages: usage out of JSON and SSE answers.

Source: anthropics/anthropic-sdk-python, src/anthropic/types/usage.py and message_delta_usage.py.

`input_tokens` excludes cached tokens. In a stream, `message_start` carries a first usage whose output is a placeholder
and every `message_delta` a cumulative one: field by field the last explicit value wins, zeros included; absent and null
keep the earlier one. Beta `usage.iterations[]`, when there, is summed and replaces the top level.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from agentmon import wire
from agentmon.providers.body import Choice, Json, JsonBody, count, parse_object, table, text
from agentmon.providers.declaration import Client, Endpoint, Metering, Provider
from agentmon.providers.estimate import estimator, tokens_of
from agentmon.providers.match import BODYLESS
from agentmon.providers.sse import SseReader

_READ = {"message_start", "message_delta", "message_stop", "error"}


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
                old = self._values.get(key)
                self._values[key] = (old if isinstance(old, dict) else {}) | {
                    k: v for k, v in value.items() if v is not None
                }
            else:
                self._values[key] = value
            if key == "cache_creation_input_tokens" and not usage.get("cache_creation"):
                self._values.pop("cache_creation", None)  # a later total without its split makes the old split wrong
        self.seen = True

    def usage(self, model: str, request_id: str, *, complete: bool) -> wire.Usage:
        iterations = self._values.get("iterations")
        parts: list[Json] = [p for p in iterations if isinstance(p, dict)] if isinstance(iterations, list) else []
        sums = [_split(part) for part in parts or [self._values]]
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
    iterations = raw.get("iterations")
    parts = [p for p in iterations if isinstance(p, dict)] if isinstance(iterations, list) else []
    out: dict[str, tuple[int, int]] = {}
    for part in parts or [raw]:
        read, five, hour, fresh, output, _ = _split(part)
        model = text(part.get("model")) or usage.model
        had = out.get(model, (0, 0))
        out[model] = (had[0] + read + five + hour + fresh, had[1] + output)
    return out


def _read_json(document: Json) -> wire.Usage | None:
    merge = Merge()
    merge.update(document.get("usage"))
    if not merge.seen:
        return None
    return merge.usage(text(document.get("model")), text(document.get("id")), complete=True)


class StreamParser:
    """The SSE form; see the module's first lines."""

    def __init__(self) -> None:
        self._reader = SseReader(self._event)
        self._merge = Merge()
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

    def _event(self, name: str, data: bytes) -> None:
        if name and name not in _READ:
            if name == "content_block_delta":
                self._text_bytes += max(0, len(data) - 90)  # without its JSON frame
            return
        event = parse_object(data)
        if event is None:
            return
        kind = event.get("type") or name
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
        elif kind == "content_block_delta":
            self._text_bytes += max(0, len(data) - 90)

    def usage(self) -> wire.Usage | None:
        if not self._merge.seen:
            return None
        return self._merge.usage(self._model, self._id, complete=self._complete and not self._failed)


def parser(headers: Mapping[str, str]) -> Choice:
    return Choice(headers, lambda: JsonBody(_read_json), StreamParser)


def error_event(error: dict[str, Any]) -> bytes:
    """The in-stream error that the SDK raises on: event and type `error`, the contract's object under `error`."""
    return b"event: error\ndata: " + msgspec.json.encode({"type": "error", "error": error}) + b"\n\n"


PROVIDER = Provider(
    name="claude",
    hosts=("api.anthropic.com",),
    endpoints=(
        Endpoint("POST", "/v1/messages", Metering.METERED, parser, estimator("max_tokens")),
        Endpoint("POST", "/v1/messages/count_tokens", Metering.FREE),
        Endpoint("GET", "/v1/models/**", Metering.FREE),
        Endpoint("GET", "/v1/models", Metering.FREE),
        Endpoint("GET", "/api/**", Metering.FREE),  # profile, roles, settings of the command-line client
        Endpoint("POST", "/api/oauth/**", Metering.FREE),
        *BODYLESS,
        Endpoint("POST", "/v1/messages/batches/**", Metering.REFUSED),  # billed later, outside any response
        Endpoint("POST", "/v1/messages/batches", Metering.REFUSED),
        Endpoint("POST", "/v1/complete", Metering.REFUSED),  # its answers carry no usage
    ),
    also=("console.anthropic.com", "platform.claude.com", "claude.ai"),
    client=Client(
        rw=(".claude", ".claude.json"),
        env=(
            "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_MODEL", "ANTHROPIC_SMALL_FAST_MODEL",
            "ANTHROPIC_CUSTOM_HEADERS", "CLAUDE_CODE_OAUTH_TOKEN", "CLAUDE_CODE_MAX_OUTPUT_TOKENS",
        ),
    ),
    error_body=error_event,
)  # fmt: skip
