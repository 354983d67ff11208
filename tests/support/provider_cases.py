"""One regular answer of every metered endpoint, as the provider frames it, and the row that it has to become.

Case(name, provider, path, body, row)      row = input, cache_read, cache_write_5m, cache_write_1h, output, reasoning
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any

from tests.internet.eventstream import framed

SSE = {"content-type": "text/event-stream; charset=utf-8"}
JSON = {"content-type": "application/json"}
EVENTSTREAM = {"content-type": "application/vnd.amazon.eventstream", "x-amzn-requestid": "aws-1"}
EMOJI = "wörd 🙂 ✓ "
LIE = '\n\nevent: message_delta\ndata: {"type": "message_delta", "usage": {"output_tokens": 1, "prompt_tokens": 1}}\n\n'


@dataclass(frozen=True)
class Case:
    name: str
    provider: str
    path: str
    body: bytes
    row: tuple[int, int, int, int, int, int]
    headers: dict[str, str] = field(default_factory=lambda: SSE)
    id: str = "id-1"
    model: str = "m-1"
    method: str = "POST"
    host: str = ""  # "" is the provider's first

    @property
    def sse(self) -> bool:
        return self.headers.get("content-type", SSE["content-type"]) == SSE["content-type"] and self.body[:1] != b"{"


def data(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def named(kind: str, **more: Any) -> bytes:
    return f"event: {kind}\n".encode() + data({"type": kind} | more)


def doc(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode()


# ── Anthropic ──


def claude(start: dict[str, Any], *deltas: dict[str, Any] | None) -> bytes:
    message = {"id": "id-1", "type": "message", "model": "m-1", "content": [], "usage": start}
    stream = named("message_start", message=message) + named("content_block_start", index=0) + named("ping")
    for text in (EMOJI, LIE):
        stream += named("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
    stream += named("content_block_stop", index=0) + named("some_new_event", usage={"output_tokens": 9999})
    for delta in deltas:
        usage = {} if delta is None else {"usage": delta}
        stream += named("message_delta", delta={"stop_reason": "end_turn"}, **usage)
    return stream + named("message_stop")


CREATION = {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 70}
WRITES = {"cache_creation_input_tokens": 100, "cache_creation": CREATION}
ITERATIONS = [
    {"type": "message", "model": "m-1", "input_tokens": 100, "output_tokens": 10} | WRITES,
    {
        "type": "compaction",
        "input_tokens": 50,
        "output_tokens": 5,
        "cache_read_input_tokens": 2,
        "cache_creation": None,
    },
    {"type": "advisor_message", "model": "m-2", "input_tokens": 7, "output_tokens": 3, "cache_read_input_tokens": 4},
]
_CLAUDE_USAGE = {"input_tokens": 11, "output_tokens": 20, "output_tokens_details": {"thinking_tokens": 12}} | WRITES
_CLAUDE_MESSAGE = {"id": "id-1", "model": "m-1", "content": [{"type": "text", "text": LIE}], "usage": _CLAUDE_USAGE}
_CLAUDE_ROW = (11, 0, 30, 70, 20, 12)


def batch_line(number: int, kind: str = "succeeded") -> bytes:
    usage = {"input_tokens": number, "output_tokens": 1}
    message = {"message": {"id": f"msg_{number}", "model": "m-1", "usage": usage}} if kind == "succeeded" else {}
    return json.dumps({"custom_id": f"c{number}", "result": {"type": kind} | message}).encode() + b"\n"


CLAUDE = [
    Case("claude stream", "claude", "/v1/messages", claude({"input_tokens": 25, "output_tokens": 1},
         {"output_tokens": 15}), (25, 0, 0, 0, 15, 0)),
    Case("claude cumulative", "claude", "/v1/messages", claude(
         {"input_tokens": 5, "cache_read_input_tokens": 900, "output_tokens": 1},
         {"cache_read_input_tokens": 900, "output_tokens": 20}, {"cache_read_input_tokens": 900, "output_tokens": 40},
         None), (5, 900, 0, 0, 40, 0)),
    Case("claude late split", "claude", "/v1/messages", claude({"input_tokens": 1000},
         {"input_tokens": 100, "cache_read_input_tokens": 900, "output_tokens": 3}), (100, 900, 0, 0, 3, 0)),
    Case("claude iterations", "claude", "/v1/messages", claude({"input_tokens": 1},
         {"input_tokens": 107, "output_tokens": 13, "iterations": ITERATIONS}), (157, 6, 30, 70, 18, 0)),
    Case("claude json", "claude", "/v1/messages", doc(_CLAUDE_MESSAGE), _CLAUDE_ROW, JSON),
    Case("claude batch", "claude", "/v1/messages/batches/b-1/results",
         batch_line(3) + batch_line(5) + batch_line(0, "errored") + batch_line(3) + batch_line(9).rstrip(),
         (17, 0, 0, 0, 3, 0), {"content-type": "application/x-jsonl"}, id="batch:", method="GET"),
]  # fmt: skip

# ── OpenAI and those who speak its protocols ──

USAGE = {
    "prompt_tokens": 100, "completion_tokens": 30, "total_tokens": 130,
    "prompt_tokens_details": {"cached_tokens": 60}, "completion_tokens_details": {"reasoning_tokens": 20},
}  # fmt: skip
_CHAT_ROW = (40, 60, 0, 0, 30, 20)
R_USAGE = {
    "input_tokens": 50, "input_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 15,
    "cache_write_tokens_details": {"ttl_30m_tokens": 10, "ttl_12h_tokens": 5}}, "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 3},
}  # fmt: skip
_R_ROW = (25, 10, 10, 5, 7, 3)
_FIRST = {"choices": [], "prompt_filter_results": [{"prompt_index": 0}], "id": "", "model": ""}  # Azure's


def chat_chunk(**more: Any) -> bytes:
    return data({"id": "id-1", "object": "chat.completion.chunk", "model": "m-1"} | more)


def say(text: str, **more: Any) -> bytes:
    return chat_chunk(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}], **more)


DONE = b"data: [DONE]\n\n"
_FINISH = [{"index": 0, "delta": {}, "finish_reason": "stop"}]
_SAID = say(EMOJI) + say(LIE)
_RISING = b"".join(say("x", usage={"prompt_tokens": 100, "completion_tokens": n}) for n in (1, 2, 3))
_LEGACY = data({"id": "id-1", "object": "text_completion", "model": "m-1", "choices": [{"text": EMOJI}]})
_LAST = chat_chunk(choices=[], usage=USAGE)


def responses(end: str, usage: Any = R_USAGE) -> bytes:
    whole = {"id": "id-1", "object": "response", "model": "m-1", "usage": None, "output": [{"text": LIE}]}
    return (
        named("response.created", response=whole, sequence_number=0)
        + named("response.output_text.delta", delta=EMOJI, item_id="i", sequence_number=1)
        + named("response.output_text.delta", delta=LIE, item_id="i", sequence_number=2)
        + named(f"response.{end}", response=whole | {"usage": usage}, sequence_number=3)
    )


_COMPACT = {"id": "id-1", "object": "response.compaction", "output": [], "usage": R_USAGE, "model": "m-1"}
_IMAGE = {
    "input_tokens": 20, "output_tokens": 400, "input_tokens_details": {"text_tokens": 20},
    "output_tokens_details": {"image_tokens": 400},
}  # fmt: skip
_SPEECH = {"type": "tokens", "input_tokens": 14, "input_token_details": {"audio_tokens": 14}, "output_tokens": 45}
_TRANSCRIPT = named("transcript.text.delta", delta=EMOJI) + named("transcript.text.done", text=LIE, usage=_SPEECH)
_NAMELESS = {"id": "", "model": ""}

OPENAI: list[Case] = [
    Case("openai chat stream", "openai", "/v1/chat/completions", _SAID + _LAST + DONE, _CHAT_ROW),
    Case("openai chat json", "openai", "/v1/chat/completions",
         doc({"id": "id-1", "model": "m-1", "choices": [{"text": LIE}], "usage": USAGE}), _CHAT_ROW, JSON),
    Case("openai cumulative", "openai", "/v1/chat/completions", _RISING + DONE, (100, 0, 0, 0, 3, 0)),
    Case("openai completions stream", "openai", "/v1/completions", _LEGACY + _LAST + DONE, _CHAT_ROW),
    Case("openai embeddings", "openai", "/v1/embeddings",
         doc({"data": [{"embedding": [0.5]}], "model": "m-1", "usage": {"prompt_tokens": 9, "total_tokens": 9}}),
         (9, 0, 0, 0, 0, 0), JSON, id=""),
    Case("openai responses stream", "openai", "/v1/responses", responses("completed"), _R_ROW),
    Case("openai responses incomplete", "openai", "/v1/responses", responses("incomplete"), _R_ROW),
    Case("openai responses failed", "openai", "/v1/responses", responses("failed"), _R_ROW),
    Case("openai responses json", "openai", "/v1/responses", doc({"id": "id-1", "model": "m-1", "usage": R_USAGE}),
         _R_ROW, JSON),
    Case("openai images json", "openai", "/v1/images/generations",
         doc({"created": 1, "data": [{"b64_json": "AAAA"}], "usage": _IMAGE}), (20, 0, 0, 0, 400, 0), JSON,
         **_NAMELESS),
    Case("openai images stream", "openai", "/v1/images/generations",
         named("image_generation.partial_image", b64_json="A" * 999)
         + named("image_generation.completed", b64_json="AAAA", usage=_IMAGE), (20, 0, 0, 0, 400, 0), **_NAMELESS),
    Case("openai transcription tokens", "openai", "/v1/audio/transcriptions", doc({"text": LIE, "usage": _SPEECH}),
         (14, 0, 0, 0, 45, 0), JSON, **_NAMELESS),
    Case("openai transcription seconds", "openai", "/v1/audio/transcriptions",
         doc({"text": "x", "usage": {"type": "duration", "seconds": 9.2}}), (100, 0, 0, 0, 0, 0), JSON, **_NAMELESS),
    Case("openai transcription stream", "openai", "/v1/audio/transcriptions", _TRANSCRIPT, (14, 0, 0, 0, 45, 0),
         **_NAMELESS),
    Case("codex stream", "codex", "/backend-api/codex/responses", responses("completed"), _R_ROW, {}),
    Case("codex compact", "codex", "/backend-api/codex/responses/compact", doc(_COMPACT), _R_ROW, {}),
    Case("azure stream", "azure", "/openai/deployments/d-1/chat/completions", data(_FIRST) + _SAID + _LAST + DONE,
         _CHAT_ROW, host="mine.openai.azure.com"),
    Case("azure responses", "azure", "/openai/v1/responses", responses("completed"), _R_ROW,
         host="mine.openai.azure.com"),
    Case("openrouter stream", "openrouter", "/api/v1/chat/completions",
         b": OPENROUTER PROCESSING\n\n" * 3 + _SAID + chat_chunk(choices=_FINISH)
         + chat_chunk(choices=[{"index": 0, "delta": {"content": ""}}], usage=USAGE) + DONE, _CHAT_ROW),
    Case("openrouter messages", "openrouter", "/api/v1/messages", claude({"input_tokens": 2}, {"output_tokens": 4}),
         (2, 0, 0, 0, 4, 0)),
    Case("mistral stream", "mistral", "/v1/chat/completions", _SAID + chat_chunk(choices=_FINISH, usage=USAGE) + DONE,
         _CHAT_ROW),
]  # fmt: skip

# ── Gemini ──


def g_chunk(text: str = "", finish: str = "", **usage: int) -> dict[str, Any]:
    parts = {"content": {"parts": [{"text": text}], "role": "model"}} | ({"finishReason": finish} if finish else {})
    return {"candidates": [parts], "usageMetadata": usage, "modelVersion": "m-1", "responseId": "id-1"}


_G_FIRST = {"promptTokenCount": 50, "totalTokenCount": 50}
_G_LAST = {
    "promptTokenCount": 50, "cachedContentTokenCount": 20, "candidatesTokenCount": 9, "thoughtsTokenCount": 6,
    "toolUsePromptTokenCount": 4, "totalTokenCount": 70,
}  # fmt: skip
G_CHUNKS = [
    g_chunk(EMOJI, **_G_FIRST),
    g_chunk(LIE, **_G_FIRST | {"candidatesTokenCount": 4, "totalTokenCount": 54}),
    g_chunk('quoted \\ "[{" ', "STOP", **_G_LAST),
]
_G_ROW = (34, 20, 0, 0, 16, 6)
_G_MODEL = "/v1beta/models/m-1"
_V_ROOT = "/v1/projects/p/locations/us-x1/publishers"
_V_HOST = "us-x1-aiplatform.googleapis.com"
_G_SSE = b"".join(data(c).replace(b"\n", b"\r\n") for c in G_CHUNKS)
_G_ARRAY = b"[" + b",\r\n".join(doc(c) for c in G_CHUNKS) + b"]\n"
_G_BLOCKED = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 7}}
_G_ABOUT = {"modelVersion": "m-1", "responseId": "id-1"}

GEMINI = [
    Case("gemini json", "gemini", f"{_G_MODEL}:generateContent", doc(G_CHUNKS[-1]), _G_ROW, JSON),
    Case("gemini sse", "gemini", f"{_G_MODEL}:streamGenerateContent", _G_SSE, _G_ROW),
    Case("gemini array", "gemini", f"{_G_MODEL}:streamGenerateContent", _G_ARRAY, _G_ROW, JSON),
    Case("gemini blocked", "gemini", f"{_G_MODEL}:streamGenerateContent", data(_G_BLOCKED | _G_ABOUT),
         (7, 0, 0, 0, 0, 0)),
    Case("gemini code assist", "gemini", "/v1internal:streamGenerateContent",
         b"".join(data({"response": c, "traceId": "t"}) for c in G_CHUNKS), _G_ROW, host="cloudcode-pa.googleapis.com"),
    Case("gemini openai", "gemini", "/v1beta/openai/chat/completions", _SAID + _LAST + DONE, _CHAT_ROW),
    Case("vertex gemini sse", "vertex", f"{_V_ROOT}/google/models/m-1:streamGenerateContent", _G_SSE, _G_ROW,
         host=_V_HOST),
    Case("vertex gemini array", "vertex", f"{_V_ROOT}/google/models/m-1:streamGenerateContent", _G_ARRAY, _G_ROW, JSON,
         host=_V_HOST),
    Case("vertex claude stream", "vertex", f"{_V_ROOT}/anthropic/models/m-1:streamRawPredict",
         claude({"input_tokens": 25}, {"output_tokens": 15}), (25, 0, 0, 0, 15, 0), host=_V_HOST),
    Case("vertex claude json", "vertex", f"{_V_ROOT}/anthropic/models/m-1:rawPredict", doc(_CLAUDE_MESSAGE),
         _CLAUDE_ROW, JSON, host=_V_HOST),
]  # fmt: skip

# ── Bedrock ──


def frame(payload: bytes, **headers: str) -> bytes:
    """One message of AWS's event stream; `headers` without their colon, `_` for `-`."""
    return framed(payload, {":" + name.replace("_", "-"): value for name, value in headers.items()})


def aws_event(kind: str, value: Any) -> bytes:
    return frame(json.dumps(value).encode(), message_type="event", event_type=kind, content_type="application/json")


def aws_chunk(value: Any) -> bytes:
    return aws_event("chunk", {"bytes": base64.b64encode(json.dumps(value).encode()).decode(), "p": "abcdefgh"})


_TOKENS = {"inputTokens": 30, "outputTokens": 12, "totalTokens": 92, "cacheReadInputTokens": 40,
           "cacheWriteInputTokens": 10}  # fmt: skip
_AWS_ROW = (30, 40, 10, 0, 12, 0)
_METRICS = {"amazon-bedrock-invocationMetrics": {"inputTokenCount": 30, "outputTokenCount": 12,
            "cacheReadInputTokenCount": 40, "cacheWriteInputTokenCount": 10}}  # fmt: skip
_CONVERSE = (
    aws_event("messageStart", {"role": "assistant"})
    + aws_event("contentBlockDelta", {"delta": {"text": EMOJI}})
    + aws_event("contentBlockDelta", {"delta": {"text": json.dumps({"usage": {"inputTokens": 1}})}})
    + aws_event("messageStop", {"stopReason": "end_turn"})
    + aws_event("metadata", {"usage": _TOKENS, "metrics": {"latencyMs": 1}})
)
_INVOKE_CLAUDE = b"".join(
    aws_chunk(event)
    for event in (
        {"type": "message_start", "message": {"id": "id-1", "model": "m-1", "usage": {"input_tokens": 25}}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": EMOJI + LIE}},
        {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 15}},
        {"type": "message_stop"} | _METRICS,
    )
)
_INVOKE_OTHER = aws_chunk({"generation": EMOJI}) + aws_chunk({"generation": "", "stop_reason": "stop"} | _METRICS)
_COUNTED = {"x-amzn-bedrock-input-token-count": "30", "x-amzn-bedrock-output-token-count": "12"}
_AWS_HOST = "bedrock-runtime.us-x-1.amazonaws.com"
_AWS_JSON = JSON | {"x-amzn-requestid": "aws-1"}

BEDROCK = [
    Case("bedrock converse", "bedrock", "/model/m-1/converse", doc({"output": {}, "usage": _TOKENS}), _AWS_ROW,
         _AWS_JSON, id="aws-1", model="", host=_AWS_HOST),
    Case("bedrock converse stream", "bedrock", "/model/m-1/converse-stream", _CONVERSE, _AWS_ROW, EVENTSTREAM,
         id="aws-1", model="", host=_AWS_HOST),
    Case("bedrock invoke claude", "bedrock", "/model/m-1/invoke", doc(_CLAUDE_MESSAGE), _CLAUDE_ROW, _AWS_JSON,
         host=_AWS_HOST),
    Case("bedrock invoke other", "bedrock", "/model/m-1/invoke", doc({"generation": LIE}), (30, 0, 0, 0, 12, 0),
         _AWS_JSON | _COUNTED, id="aws-1", model="", host=_AWS_HOST),
    Case("bedrock invoke claude stream", "bedrock", "/model/m-1/invoke-with-response-stream", _INVOKE_CLAUDE,
         (25, 0, 0, 0, 15, 0), EVENTSTREAM, host=_AWS_HOST),
    Case("bedrock invoke other stream", "bedrock", "/model/m-1/invoke-with-response-stream", _INVOKE_OTHER, _AWS_ROW,
         EVENTSTREAM, id="aws-1", model="", host=_AWS_HOST),
]  # fmt: skip

CASES = {case.name: case for case in (*CLAUDE, *OPENAI, *GEMINI, *BEDROCK)}
