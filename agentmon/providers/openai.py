"""OpenAI: usage of chat completions, legacy completions, responses and embeddings, as JSON and SSE.

Source: openai/openai-python. `prompt_tokens`/`input_tokens` include cached tokens, `completion_tokens`/`output_tokens`
include reasoning. A chat stream tells its usage only when asked (`stream_options.include_usage`), in one extra chunk
with empty `choices`: it is asked for here, and that chunk is taken out again when the client did not want it. The
responses API ends with `response.completed|incomplete|failed`, has no `[DONE]` and refuses include_usage. Codex's
backend for ChatGPT accounts speaks the responses API without a content type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from agentmon import wire
from agentmon.providers.body import Choice, Json, JsonBody, count, parse_object, table, text
from agentmon.providers.declaration import Client, Endpoint, Estimate, Metering, Provider
from agentmon.providers.estimate import estimator, tokens_of
from agentmon.providers.match import BODYLESS
from agentmon.providers.sse import SseReader

_ENDS = {"response.completed", "response.incomplete", "response.failed"}
_BACKGROUND_OUTPUT = 128_000  # the most that models put out
_USAGE_FLAG = b'{"stream_options":{"include_usage":true},'


def usage_row(usage: object, model: str, request_id: str, *, complete: bool) -> wire.Usage | None:
    """The canonical row of either spelling of OpenAI's usage; None where there is none (null, no object)."""
    if not isinstance(usage, dict):
        return None
    total_in = count(usage.get("prompt_tokens", usage.get("input_tokens"))) or 0
    output = count(usage.get("completion_tokens", usage.get("output_tokens"))) or 0
    details_in = table(usage.get("prompt_tokens_details") or usage.get("input_tokens_details"))
    details_out = table(usage.get("completion_tokens_details") or usage.get("output_tokens_details"))
    cached = min(count(details_in.get("cached_tokens")) or 0, total_in)
    return wire.Usage(
        provider="openai", model=model, request_id=request_id, input=total_in - cached, cache_read=cached,
        output=output, reasoning=min(count(details_out.get("reasoning_tokens")) or 0, output),
        source="wire", complete=complete, raw=msgspec.json.encode(usage),
    )  # fmt: skip


def _read_json(document: Json) -> wire.Usage | None:
    return usage_row(document.get("usage"), text(document.get("model")), text(document.get("id")), complete=True)


class _Stream:
    """What both SSE forms share."""

    def __init__(self) -> None:
        self._reader = SseReader(self._event)
        self._usage: object = None
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
        return usage_row(self._usage, self._model, self._id, complete=self._complete and not self._failed)

    def _event(self, name: str, data: bytes) -> None:
        raise NotImplementedError


class ChatStream(_Stream):
    """Chunks of chat and legacy completions; usage may come once at the end or, cumulative, on every chunk."""

    def _event(self, name: str, data: bytes) -> None:
        if data.strip() == b"[DONE]":
            self._complete = True
            return
        chunk = parse_object(data)
        if chunk is None:
            return
        if chunk.get("error"):
            self._failed = True
        self._model = text(chunk.get("model")) or self._model
        self._id = text(chunk.get("id")) or self._id
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            delta = table(table(choice).get("delta"))
            parts = (table(choice).get("text"), delta.get("content"), delta.get("refusal"), delta.get("tool_calls"))
            self._text_bytes += sum(len(str(part)) for part in parts if part)


class ResponsesStream(_Stream):
    """Events of the responses API; only the ones that carry a response are parsed."""

    def _event(self, name: str, data: bytes) -> None:
        if name.endswith(".delta"):
            self._text_bytes += max(0, len(data) - 150)  # without its JSON frame
            return
        if name and name not in _ENDS and name not in {"response.created", "error"}:
            return
        event = parse_object(data)
        if event is None:
            return
        kind = event.get("type") or name
        if kind == "error":
            self._failed = True
        elif kind in _ENDS or kind == "response.created":
            response = table(event.get("response"))
            self._model = text(response.get("model")) or self._model
            self._id = text(response.get("id")) or self._id
            if isinstance(response.get("usage"), dict):
                self._usage = response["usage"]
            self._complete = kind in _ENDS


def chat_parser(headers: Mapping[str, str]) -> Choice:
    return Choice(headers, lambda: JsonBody(_read_json), ChatStream)


def responses_parser(headers: Mapping[str, str]) -> Choice:
    return Choice(headers, lambda: JsonBody(_read_json), ResponsesStream)


def include_usage(body: bytes) -> tuple[bytes, bool]:
    """The request with usage in its stream asked for, and whether that had to be added.

    Where the client said nothing the bytes stay as they are behind the added member; its own stream_options are kept.
    """
    request = parse_object(body)
    if request is None or request.get("stream") is not True:
        return body, False
    options = request.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage") is True:
        return body, False
    start = body.find(b"{")
    if "stream_options" not in request:
        return body[:start] + _USAGE_FLAG + body[start + 1 :], True
    request["stream_options"] = table(options) | {"include_usage": True}
    return msgspec.json.encode(request), True


def is_usage_chunk(raw: bytes) -> bool:
    """Whether this SSE event is the extra chunk that include_usage adds: empty `choices` and a usage object."""
    if b'"usage"' not in raw or b'"choices"' not in raw:
        return False
    found: list[bool] = []

    def look(_name: str, data: bytes) -> None:
        chunk = parse_object(data)
        found.append(chunk is not None and chunk.get("choices") == [] and isinstance(chunk.get("usage"), dict))

    reader = SseReader(look)
    reader.feed(raw)
    reader.close()
    return found == [True]


def error_event(error: dict[str, Any]) -> bytes:
    """The in-stream error both SDK decoders raise on: event `error` with the contract's object under `error`."""
    document = {"type": "error", "code": error.get("type"), "message": error.get("message"), "error": error}
    return b"event: error\ndata: " + msgspec.json.encode(document) + b"\n\n"


def _estimate_response(body: bytes) -> Estimate:
    """As estimator(); what runs in the background answers without usage, so its hold is what it is charged."""
    estimate = _RESPONSE(body)
    request = parse_object(body) or {}
    if request.get("background") and request.get("max_output_tokens") is None:
        return Estimate(estimate.model, estimate.input, _BACKGROUND_OUTPUT)
    return estimate


_CHAT = estimator("max_completion_tokens", "max_tokens")
_RESPONSE = estimator("max_output_tokens")
_ENV = ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_ORGANIZATION", "OPENAI_PROJECT")
_CLIENT = Client(rw=(".codex",), env=(*_ENV, "CODEX_API_KEY"))

PROVIDER = Provider(
    name="openai",
    hosts=("api.openai.com",),
    endpoints=(
        Endpoint("POST", "/v1/chat/completions", Metering.METERED, chat_parser, _CHAT, include_usage),
        Endpoint("POST", "/v1/completions", Metering.METERED, chat_parser, estimator("max_tokens"), include_usage),
        Endpoint("POST", "/v1/responses", Metering.METERED, responses_parser, _estimate_response),
        Endpoint("POST", "/v1/responses/compact", Metering.METERED, responses_parser, _estimate_response),
        Endpoint("POST", "/v1/embeddings", Metering.METERED, chat_parser, estimator(default=0)),
        Endpoint("POST", "/v1/responses/input_tokens", Metering.FREE),
        Endpoint("GET", "/v1/responses/**", Metering.FREE),
        Endpoint("GET", "/v1/models/**", Metering.FREE),
        Endpoint("GET", "/v1/models", Metering.FREE),
        Endpoint("POST", "/v1/moderations", Metering.FREE),
        *BODYLESS,
        Endpoint("*", "/v1/batches/**", Metering.REFUSED),  # billed later, outside any response
        Endpoint("*", "/v1/realtime/**", Metering.REFUSED),
    ),
    client=_CLIENT,
    error_body=error_event,
)

CODEX = Provider(
    name="codex",
    hosts=("chatgpt.com",),
    endpoints=(
        Endpoint("POST", "/backend-api/codex/responses", Metering.METERED, responses_parser, _estimate_response),
        Endpoint(
            "POST", "/backend-api/codex/responses/compact", Metering.METERED, responses_parser, _estimate_response
        ),
        Endpoint("GET", "/backend-api/codex/**", Metering.FREE),
        Endpoint("GET", "/backend-api/wham/**", Metering.FREE),
        *BODYLESS,
    ),
    also=("auth.openai.com",),
    client=_CLIENT,
    error_body=error_event,
)
