"""What is asked of every provider of the stand-in internet: one call of each framing, as (provider, path, body)."""

from __future__ import annotations

from typing import Any

from tests.internet import world
from tests.internet.served import Served

HOSTS = {
    api: next(n for n, entry in world.NAMES.items() if entry.addresses == pair) for api, pair in world.APIS.items()
}
KEYS = {
    "claude": {"x-api-key": "k", "anthropic-version": "2023-06-01"},
    "codex": {"authorization": "Bearer k", "chatgpt-account-id": "a"},
    "gemini": {"x-goog-api-key": "k"},
    "azure": {"api-key": "k"},
    "bedrock": {
        "accept-encoding": "gzip, deflate", "x-amz-date": "20260101T000000Z",
        "authorization": "AWS4-HMAC-SHA256 Credential=AK/x, SignedHeaders=accept-encoding;host, Signature=0a",
    },
}  # fmt: skip
SAY: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
CONTENTS = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
CONVERSE = {"messages": [{"role": "user", "content": [{"text": "hi"}]}], "inferenceConfig": {"maxTokens": 99}}
INVOKE = SAY | {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 99}
WORDS = "scripted-in300-read40-out80-chunks6"
G = f"/v1beta/models/gemini-{WORDS}"
B = f"/model/anthropic.claude-{WORDS}"
V = "/v1/projects/p/locations/us-east5/publishers"
RAW = SAY | {"anthropic_version": "vertex-2023-10-16", "max_tokens": 99}
CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("claude", "/v1/messages", SAY | {"model": f"claude-{WORDS}-write7", "max_tokens": 99, "stream": True}),
    ("claude", "/v1/messages", SAY | {"model": f"claude-{WORDS}-write7", "max_tokens": 99}),
    ("openai", "/v1/chat/completions", SAY | {"model": f"gpt-{WORDS}", "stream": True}),
    ("openai", "/v1/responses", {"model": f"gpt-{WORDS}", "input": "hi", "stream": True}),
    ("openai", "/v1/embeddings", {"model": f"text-embedding-{WORDS}", "input": "hi"}),
    ("codex", "/backend-api/codex/responses", {"model": f"gpt-{WORDS}", "input": "hi", "stream": True}),
    ("vertex", f"{V}/anthropic/models/claude-{WORDS}:rawPredict", RAW),
    ("vertex", f"{V}/anthropic/models/claude-{WORDS}-write7:streamRawPredict", RAW | {"stream": True}),
    ("vertex", f"{V}/google/models/gemini-{WORDS}:generateContent", CONTENTS),
    ("vertex", f"{V}/google/models/gemini-{WORDS}:streamGenerateContent?alt=sse", CONTENTS),
    ("gemini", f"{G}:generateContent", CONTENTS),
    ("gemini", f"{G}:streamGenerateContent?alt=sse", CONTENTS),
    ("gemini", f"{G}:streamGenerateContent", CONTENTS),
    ("gemini", f"{G}-fake1:streamGenerateContent", CONTENTS),
    ("azure", f"/openai/deployments/{WORDS}/chat/completions?api-version=2024-10-21", SAY | {"stream": True}),
    ("openrouter", "/api/v1/chat/completions", SAY | {"model": f"x/{WORDS}", "stream": True}),
    ("mistral", "/v1/chat/completions", SAY | {"model": f"mistral-{WORDS}", "stream": True}),
    ("mistral", "/v1/chat/completions", SAY | {"model": f"mistral-{WORDS}"}),
    ("bedrock", f"{B}/converse", CONVERSE),
    ("bedrock", f"{B}-write7/converse-stream", CONVERSE),
    ("bedrock", f"{B}-write7-fake1/invoke-with-response-stream", INVOKE),
    ("bedrock", f"{B}/invoke", INVOKE),
]


def headers_of(provider: str) -> dict[str, str]:
    return KEYS.get(provider, {"authorization": "Bearer k"})


def row_of(provider: str, path: str, billed: Served) -> tuple[Any, ...]:
    """(provider, model, input, cache_read, cache_write, output, source, complete) that `billed` has to become."""
    if path.endswith("/embeddings"):
        return provider, billed.model, billed.input, 0, 0, 0, "wire", 1
    model = path.split("/")[2] if "converse" in path else billed.model
    return provider, model, billed.input, billed.cache_read, billed.cache_write, billed.output, "wire", 1
