"""OpenAI: usage of chat completions, legacy completions, responses, embeddings, images and transcriptions.

Source: openai/openai-python, src/openai/types (completion_usage.py, responses/response_usage.py, images_response.py,
audio/transcription.py, realtime/realtime_response_usage.py).

`prompt_tokens`/`input_tokens` include cached and cache-written tokens, `completion_tokens`/`output_tokens` include
reasoning. A chat stream tells its usage only when asked, in one extra chunk before `[DONE]`; others put it on the last
chunk, or, cumulative, on every one. The responses API ends with `response.completed|incomplete|failed` and has no
`[DONE]`. Codex's backend for ChatGPT accounts speaks it without a content type. Media streams end with one event that
has the usage. Transcription by models that bill seconds is counted in tokens: AUDIO_TOKENS_PER_S for each begun second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from agentmon import wire
from agentmon.providers.body import Choice, JsonBody
from agentmon.providers.jsonread import Json, count, parse_object, rows, table, text
from agentmon.providers.stream import SseParser

AUDIO_TOKENS_PER_S = 10  # what the models that bill tokens make of a second of speech

_ENDS = {"response.completed", "response.incomplete", "response.failed"}
_MEDIA_ENDS = {"image_generation.completed", "image_edit.completed", "transcript.text.done"}
_COUNTS = ("prompt_tokens", "input_tokens", "completion_tokens", "output_tokens", "seconds")
_FRAME_BYTES = 150  # of a response's delta around its text


def usage_row(usage: object, model: str, request_id: str, *, complete: bool) -> wire.Usage | None:
    """The canonical row of any spelling of OpenAI's usage; None where there is none (null, no object, no count)."""
    if not isinstance(usage, dict) or not _tells(usage):
        return None
    seconds = usage.get("seconds")
    if isinstance(seconds, int | float) and not isinstance(seconds, bool):
        begun = math.ceil(seconds) if 0 <= seconds < 1 << 40 else 0
        usage = {"input_tokens": begun * AUDIO_TOKENS_PER_S} | usage
    total_in = count(usage.get("prompt_tokens", usage.get("input_tokens"))) or 0
    output = count(usage.get("completion_tokens", usage.get("output_tokens"))) or 0
    details_in, details_out = _details(usage, "prompt", "input"), _details(usage, "completion", "output")
    cached = min(count(details_in.get("cached_tokens")) or 0, total_in)
    written = min(count(details_in.get("cache_write_tokens")) or 0, total_in - cached)
    long = count(table(details_in.get("cache_write_tokens_details")).get("ttl_12h_tokens")) or 0
    long = min(long, written)
    return wire.Usage(
        provider="openai", model=model, request_id=request_id, input=total_in - cached - written, cache_read=cached,
        cache_write_5m=written - long, cache_write_1h=long,
        output=output, reasoning=min(count(details_out.get("reasoning_tokens")) or 0, output),
        source="wire", complete=complete, raw=msgspec.json.encode(usage),
    )  # fmt: skip


def _tells(usage: Json) -> bool:
    """Whether there is a count in it: an empty object says nothing, not zero."""
    return any(count(usage.get(key)) is not None for key in _COUNTS)


def _details(usage: Json, *sides: str) -> Json:
    spellings = (f"{side}_{middle}_details" for side in sides for middle in ("tokens", "token"))
    return next((table(usage[key]) for key in spellings if usage.get(key)), {})


def read_document(document: Json) -> wire.Usage | None:
    """The usage of a whole answer; None where it has none."""
    return usage_row(document.get("usage"), text(document.get("model")), text(document.get("id")), complete=True)


class _Stream(SseParser):
    def __init__(self) -> None:
        super().__init__()
        self._usage: object = None

    def usage(self) -> wire.Usage | None:
        return usage_row(self._usage, self._model, self._id, complete=self._complete and not self._failed)

    def _about(self, source: Json) -> None:
        """Take over what an event says of the answer as a whole."""
        self._model = text(source.get("model")) or self._model
        self._id = text(source.get("id")) or self._id
        if _tells(table(source.get("usage"))):
            self._usage = source["usage"]


class ChatStream(_Stream):
    """Chunks of chat and legacy completions."""

    def _event(self, name: str, data: bytes) -> None:
        if data.strip() == b"[DONE]":
            self._complete = True
            return
        chunk = parse_object(data)
        if chunk is None:
            return
        if chunk.get("error"):
            self._failed = True
        self._about(chunk)
        for choice in rows(chunk.get("choices")):
            delta = table(choice.get("delta"))
            parts = (choice.get("text"), delta.get("content"), delta.get("refusal"), delta.get("tool_calls"))
            self._text_bytes += sum(len(str(part)) for part in parts if part)


class ResponsesStream(_Stream):
    """Events of the responses API; only the ones that carry a response are parsed."""

    def _event(self, name: str, data: bytes) -> None:
        if name.endswith(".delta"):
            self._text(data, _FRAME_BYTES)
            return
        if name and name not in _ENDS and name not in {"response.created", "error"}:
            return
        event = parse_object(data)
        if event is None:
            return
        kind = event.get("type") or name
        if kind == "error":
            self._failed = True
        elif isinstance(kind, str) and (kind == "response.created" or kind in _ENDS):
            self._about(table(event.get("response")))
            self._complete = kind != "response.created"
        elif str(kind).endswith(".delta"):
            self._text(data, _FRAME_BYTES)


class MediaStream(_Stream):
    """Images and transcriptions: partial results, then one event with the usage."""

    def _event(self, name: str, data: bytes) -> None:
        if name.endswith(".delta"):
            self._text(data, _FRAME_BYTES)
            return
        event = parse_object(data) if not name or name in _MEDIA_ENDS or name == "error" else None
        if event is None:
            return
        kind = event.get("type") or name
        if kind == "error" or event.get("error"):
            self._failed = True
        elif isinstance(kind, str) and kind in _MEDIA_ENDS:
            self._about(event)
            self._complete = True


def chat_parser(headers: Mapping[str, str]) -> Choice:
    return Choice(headers, lambda: JsonBody(read_document), ChatStream)


def responses_parser(headers: Mapping[str, str]) -> Choice:
    return Choice(headers, lambda: JsonBody(read_document), ResponsesStream)


def media_parser(headers: Mapping[str, str]) -> Choice:
    return Choice(headers, lambda: JsonBody(read_document), MediaStream)
