"""Bedrock: usage of converse and invoke, as JSON and as AWS's binary event stream.

Source: AWS's API reference (TokenUsage, ConverseStreamMetadataEvent, InvokeModel) and anthropics/anthropic-sdk-python,
src/anthropic/lib/bedrock.

converse tells `usage` in its own spelling, the stream in its `metadata` event, after `messageStop`. invoke's body is
the model's own: Anthropic's shapes, in a stream base64 in the `chunk` events; for other models the counts are in the
answer's headers, and in the metrics on the stream's last chunk. Cached tokens are apart from the input in both.
"""

from __future__ import annotations

import base64
import binascii
from abc import abstractmethod
from collections.abc import Mapping

import msgspec

from agentmon import wire
from agentmon.providers.anthropic_usage import MessageEvents, read_message
from agentmon.providers.body import JsonBody
from agentmon.providers.declaration import Parser
from agentmon.providers.eventstream import EventStreamReader, Headers
from agentmon.providers.jsonread import Json, count, parse_object, table
from agentmon.providers.stream import StreamParser

_METRICS = "amazon-bedrock-invocationMetrics"
_HEADER_COUNTS = {
    "x-amzn-bedrock-input-token-count": "inputTokenCount",
    "x-amzn-bedrock-output-token-count": "outputTokenCount",
    "x-amzn-bedrock-cache-read-input-token-count": "cacheReadInputTokenCount",
    "x-amzn-bedrock-cache-write-input-token-count": "cacheWriteInputTokenCount",
}
_FRAME_BYTES = 60  # of a delta around its text


def _row(counts: Json, ending: str, *, complete: bool, request_id: str) -> wire.Usage | None:
    """:param ending: of the members' names: inputTokens, inputTokenCount."""
    read, write, fresh, output = (
        count(counts.get(kind + ending))
        for kind in ("cacheReadInputToken", "cacheWriteInputToken", "inputToken", "outputToken")
    )
    if fresh is None and output is None:
        return None
    return wire.Usage(
        provider="bedrock", request_id=request_id, input=fresh or 0, cache_read=read or 0, cache_write_5m=write or 0,
        output=output or 0, source="wire", complete=complete, raw=msgspec.json.encode(counts),
    )  # fmt: skip


class _Binary(StreamParser):
    """Reads AWS's event stream; no event of ours may follow in it: it would have to be framed and is not SSE."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._frames = EventStreamReader(self._message)
        super().__init__(self._frames)
        self._id = headers.get("x-amzn-requestid", "")[:200]
        self._complete = self._failed = False

    @property
    def _sound(self) -> bool:
        return not self._failed and not self._frames.damaged

    def _message(self, headers: Headers, payload: bytes) -> None:
        if headers.get(":message-type") != "event":
            self._failed = True
            return
        self._event(headers.get(":event-type", ""), payload)

    @abstractmethod
    def _event(self, name: str, payload: bytes) -> None:
        """One message of type event."""


class ConverseStream(_Binary):
    def __init__(self, headers: Mapping[str, str]) -> None:
        super().__init__(headers)
        self._usage: Json = {}

    def _event(self, name: str, payload: bytes) -> None:
        if name == "contentBlockDelta":
            self._text(payload, _FRAME_BYTES)
        elif name == "metadata":
            self._usage = table((parse_object(payload) or {}).get("usage")) or self._usage
            self._complete = bool(self._usage)

    def usage(self) -> wire.Usage | None:
        return _row(self._usage, "s", complete=self._complete and self._sound, request_id=self._id)


class InvokeStream(_Binary):
    def __init__(self, headers: Mapping[str, str]) -> None:
        super().__init__(headers)
        self._anthropic = MessageEvents()
        self._metrics: Json = {}

    def _event(self, name: str, payload: bytes) -> None:
        encoded = (parse_object(payload) or {}).get("bytes") if name == "chunk" else None
        try:
            data = base64.b64decode(encoded, validate=True) if isinstance(encoded, str) else b""
        except (binascii.Error, ValueError):
            self._failed = True
            return
        self._anthropic.event("", data)
        self._text_bytes = self._anthropic.text_bytes
        if _METRICS.encode() in data and (metrics := table((parse_object(data) or {}).get(_METRICS))):
            self._metrics, self._complete = metrics, True

    def usage(self) -> wire.Usage | None:
        said = self._anthropic.usage()
        if said is None:
            return _row(self._metrics, "Count", complete=self._complete and self._sound, request_id=self._id)
        return msgspec.structs.replace(said, complete=said.complete and self._sound)


def _is_binary(headers: Mapping[str, str]) -> bool:
    return "vnd.amazon.eventstream" in headers.get("content-type", "").lower()


def converse_parser(headers: Mapping[str, str]) -> Parser:
    if _is_binary(headers):
        return ConverseStream(headers)
    request_id = headers.get("x-amzn-requestid", "")[:200]
    return JsonBody(lambda d: _row(table(d.get("usage")), "s", complete=True, request_id=request_id))


def invoke_parser(headers: Mapping[str, str]) -> Parser:
    if _is_binary(headers):
        return InvokeStream(headers)
    counts = {name: int(headers[h][:15]) for h, name in _HEADER_COUNTS.items() if headers.get(h, "").isdecimal()}
    request_id = headers.get("x-amzn-requestid", "")[:200]
    return JsonBody(lambda d: read_message(d) or _row(counts, "Count", complete=True, request_id=request_id))
