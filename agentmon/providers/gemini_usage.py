"""Gemini: usage of generateContent as JSON, SSE (`alt=sse`) and JSON array; also as Vertex and Code Assist send it.

Source: googleapis/python-genai, types.py (GenerateContentResponseUsageMetadata).

`usageMetadata` comes on many chunks and is cumulative: field by field the last one counts. `promptTokenCount` includes
cached tokens. Output is what is left of the total without prompt and tool use, which has thoughts in it; where there is
no total, candidates and thoughts. Code Assist puts the same answer under `response`.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from agentmon import wire
from agentmon.providers.body import Choice, JsonBody
from agentmon.providers.json_array import ArrayReader
from agentmon.providers.jsonread import Json, count, parse_object, rows, table, text
from agentmon.providers.stream import SseParser, StreamParser

_FRAME_BYTES = 120  # of a chunk around its text


class Chunks:
    """The merged usage of an answer's chunks, in whatever framing."""

    def __init__(self) -> None:
        self._counts: Json = {}
        self._model = self._id = ""
        self._finished = self._failed = False
        self.text_bytes = 0

    def chunk(self, data: bytes) -> None:
        document = parse_object(data)
        if document is not None:
            self.take(document)
            if not document.get("usageMetadata") or rows(document.get("candidates")):
                self.text_bytes += max(0, len(data) - _FRAME_BYTES)

    def take(self, document: Json) -> None:
        answer = table(document.get("response")) or document
        self._failed = self._failed or "error" in document
        self._model = text(answer.get("modelVersion")) or self._model
        self._id = text(answer.get("responseId")) or self._id
        counts = table(answer.get("usageMetadata"))
        self._counts |= {key: value for key, value in counts.items() if value is not None}
        blocked = table(answer.get("promptFeedback")).get("blockReason")
        if blocked or any(candidate.get("finishReason") for candidate in rows(answer.get("candidates"))):
            self._finished = True

    def usage(self, *, whole: bool) -> wire.Usage | None:
        """:param whole: the framing has come to its regular end."""
        if not self._counts:
            return None
        prompt, cached, tools, said, thoughts = (
            count(self._counts.get(key)) or 0
            for key in (
                "promptTokenCount", "cachedContentTokenCount", "toolUsePromptTokenCount", "candidatesTokenCount",
                "thoughtsTokenCount",
            )
        )  # fmt: skip
        total = count(self._counts.get("totalTokenCount"))
        output = total - prompt - tools if total is not None and total >= prompt + tools else said + thoughts
        cached = min(cached, prompt)
        return wire.Usage(
            provider="gemini", model=self._model, request_id=self._id, input=prompt - cached + tools, cache_read=cached,
            output=output, reasoning=min(thoughts, output), source="wire", complete=whole and not self._failed,
            raw=msgspec.json.encode(self._counts),
        )  # fmt: skip

    @property
    def finished(self) -> bool:
        return self._finished


def read_document(document: Json) -> wire.Usage | None:
    chunks = Chunks()
    chunks.take(document)
    return chunks.usage(whole=True)


class GeminiStream(SseParser):
    """SSE: the stream just ends. Older models give a reason to finish on every chunk, so only the body's end counts."""

    ends_with_body = True

    def __init__(self) -> None:
        super().__init__()
        self._chunks = Chunks()

    def _event(self, name: str, data: bytes) -> None:
        self._chunks.chunk(data)
        self._text_bytes = self._chunks.text_bytes

    def usage(self) -> wire.Usage | None:
        return self._chunks.usage(whole=self._chunks.finished)


class GeminiArray(StreamParser):
    """One JSON array, sent element by element. No event of ours may follow in it."""

    def __init__(self) -> None:
        self._chunks = Chunks()
        self._array = ArrayReader(self._element)
        super().__init__(self._array)

    def _element(self, data: bytes) -> None:
        self._chunks.chunk(data)
        self._text_bytes = self._chunks.text_bytes

    def usage(self) -> wire.Usage | None:
        return self._chunks.usage(whole=self._array.ended and self._chunks.finished)


def parser(headers: Mapping[str, str]) -> Choice:
    return Choice(headers, lambda: JsonBody(read_document), GeminiStream, GeminiArray)
