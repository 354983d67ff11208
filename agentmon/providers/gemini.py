"""Gemini's declaration (the API, and Code Assist for its command-line client), and its endpoints for Vertex."""

from __future__ import annotations

from typing import Any

import msgspec

from agentmon.providers import gemini_usage, openai
from agentmon.providers.declaration import Client, Convention, Endpoint, Metering, Provider, free, refused
from agentmon.providers.estimate import bound
from agentmon.providers.match import BODYLESS

_OUTPUT = bound(
    "generationConfig.maxOutputTokens", "generation_config.max_output_tokens",
    "request.generationConfig.maxOutputTokens", default=8192,
)  # fmt: skip


def generate(path: str) -> Endpoint:
    """generateContent or streamGenerateContent at `path`, in all three framings."""
    return Endpoint("POST", path, Metering.METERED, gemini_usage.parser, _OUTPUT, convention=Convention.INCLUDED)


def embed(path: str) -> Endpoint:
    """Embeddings; where the answer has no usage the hold is charged."""
    output = bound(default=0)
    return Endpoint("POST", path, Metering.METERED, gemini_usage.parser, output, convention=Convention.INCLUDED)


def error_event(error: dict[str, Any]) -> bytes:
    """The in-stream error that the SDK raises on: a chunk with `error`, in Google's form."""
    document = {"code": 403, "message": error.get("message"), "status": "PERMISSION_DENIED", "details": [error]}
    return b"data: " + msgspec.json.encode({"error": document}) + b"\n\n"


_VERSIONS = ("/v1beta", "/v1", "/v1alpha")
_KINDS = ("models", "tunedModels")

PROVIDER = Provider(
    name="gemini",
    hosts=("generativelanguage.googleapis.com", "cloudcode-pa.googleapis.com"),
    endpoints=(
        *(generate(f"{v}/{k}/*:{verb}") for v in _VERSIONS for k in _KINDS for verb in
          ("generateContent", "streamGenerateContent")),
        *(embed(f"{v}/models/*:{verb}") for v in _VERSIONS for verb in ("embedContent", "batchEmbedContents")),
        openai.chat("/v1beta/openai/chat/completions"),
        openai.embeddings("/v1beta/openai/embeddings"),
        generate("/v1internal:generateContent"),
        generate("/v1internal:streamGenerateContent"),
        *free("POST", *(f"{v}/models/*:countTokens" for v in _VERSIONS), "/v1internal:countTokens"),
        *free("POST", "/v1internal:loadCodeAssist", "/v1internal:onboardUser", "/v1internal:listExperiments"),
        *free("POST", "/v1internal:retrieveUserQuota", "/v1internal:setCodeAssistGlobalUserSetting"),
        *free("GET", *(f"{v}/models" for v in _VERSIONS), *(f"{v}/models/*" for v in _VERSIONS)),
        *free("GET", "/v1beta/openai/models", "/v1beta/openai/models/*", "/v1internal:getCodeAssistGlobalUserSetting"),
        *free("POST", "/upload/v1beta/files"),
        *free("*", "/v1beta/files", "/v1beta/files/*"),
        *BODYLESS,
        *refused("POST", "/v1beta/models/*:batchGenerateContent", "/v1beta/models/*:asyncBatchEmbedContent"),
        *refused("POST", "/v1beta/models/*:predict", "/v1beta/models/*:predictLongRunning"),  # billed by the piece
        *refused("*", "/v1beta/cachedContents", "/v1beta/cachedContents/*"),  # billed by the hour
    ),
    also=("oauth2.googleapis.com", "accounts.google.com"),
    client=Client(
        rw=(".gemini",),
        env=("GEMINI_API_KEY", "GOOGLE_API_KEY", "GEMINI_MODEL", "GOOGLE_CLOUD_PROJECT", "GOOGLE_GENAI_USE_GCA"),
    ),
    error_body=error_event,
)  # fmt: skip
