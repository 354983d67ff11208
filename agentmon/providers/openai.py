"""OpenAI's declaration, Codex's, and the endpoints of their protocols for others that speak them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from agentmon.providers import openai_usage
from agentmon.providers.declaration import (
    Client,
    Convention,
    Counting,
    Endpoint,
    Metering,
    Provider,
    Socket,
    free,
    refused,
)
from agentmon.providers.estimate import bound
from agentmon.providers.include_usage import include_usage
from agentmon.providers.match import BODYLESS
from agentmon.providers.request import Request
from agentmon.providers.sockets import Responses

_BACKGROUND_OUTPUT = 128_000  # the most that models put out
_IMAGE_OUTPUT = 16_384  # of one picture in the highest quality
_METERED, _INCLUDED = Metering.METERED, Convention.INCLUDED

_response = bound("max_output_tokens")


def _response_output(request: Request) -> int:
    """As bound(); what runs in the background answers without usage, so its hold is what it is charged."""
    if request.fields.get("background") and request.fields.get("max_output_tokens") is None:
        return _BACKGROUND_OUTPUT
    return _response(request)


def chat(path: str) -> Endpoint:
    """Chat completions at `path`, usage asked for where a stream's client does not."""
    output = bound("max_completion_tokens", "max_tokens")
    return Endpoint("POST", path, _METERED, openai_usage.chat_parser, output, include_usage, _INCLUDED)


def chat_as_it_is(path: str) -> Endpoint:
    """Chat completions of a provider that tells usage unasked; nothing is added to the request."""
    output = bound("max_completion_tokens", "max_tokens")
    return Endpoint("POST", path, _METERED, openai_usage.chat_parser, output, convention=_INCLUDED)


def completions(path: str) -> Endpoint:
    """Legacy completions."""
    output = bound("max_tokens")
    return Endpoint("POST", path, _METERED, openai_usage.chat_parser, output, include_usage, _INCLUDED)


def responses(path: str) -> Endpoint:
    return Endpoint(
        "POST", path, _METERED, openai_usage.responses_parser, _response_output, convention=_INCLUDED
    )  # fmt: skip


def embeddings(path: str) -> Endpoint:
    return Endpoint("POST", path, _METERED, openai_usage.chat_parser, bound(default=0), convention=_INCLUDED)


def images(path: str) -> Endpoint:
    """Pictures made or changed. Models that bill by the picture tell no usage and are charged their hold."""
    output = bound(default=_IMAGE_OUTPUT)
    return Endpoint("POST", path, _METERED, openai_usage.media_parser, output, convention=_INCLUDED)


def transcription(path: str) -> Endpoint:
    """Speech to text: tokens, or seconds counted as tokens; answers in plain text are charged their hold."""
    return Endpoint("POST", path, _METERED, openai_usage.media_parser, bound(), convention=_INCLUDED)


def error_event(error: dict[str, Any]) -> bytes:
    """The in-stream error both SDK decoders raise on: event `error` with the contract's object under `error`."""
    document = {"type": "error", "code": error.get("type"), "message": error.get("message"), "error": error}
    return b"event: error\ndata: " + msgspec.json.encode(document) + b"\n\n"


# openai-python, types/responses/input_token_count_params.py and response_create_params.py.
_COUNTING = Counting(
    "/v1/responses/input_tokens",
    takes=frozenset(
        (
            "conversation", "input", "instructions", "model", "parallel_tool_calls", "previous_response_id",
            "reasoning", "text", "tool_choice", "tools", "truncation",
        )
    ),
    leaves=frozenset(
        (
            "max_output_tokens", "max_tool_calls", "stream", "stream_options", "store", "metadata", "temperature",
            "top_p", "top_logprobs", "include", "user", "safety_identifier", "service_tier", "prompt_cache_key",
            "prompt_cache_retention", "background",
        )
    ),
    headers=frozenset(("openai-organization", "openai-project", "openai-beta")),
)  # fmt: skip

_ENV = ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_ORGANIZATION", "OPENAI_PROJECT")
_CLIENT = Client(rw=(".codex",), env=(*_ENV, "CODEX_API_KEY"))

PROVIDER = Provider(
    name="openai",
    hosts=("api.openai.com", "*.api.openai.com"),  # and its regions: eu.api.openai.com …
    endpoints=(
        chat("/v1/chat/completions"),
        completions("/v1/completions"),
        replace(responses("/v1/responses"), counting=_COUNTING),
        responses("/v1/responses/compact"),
        embeddings("/v1/embeddings"),
        images("/v1/images/generations"),
        images("/v1/images/edits"),
        images("/v1/images/variations"),
        transcription("/v1/audio/transcriptions"),
        transcription("/v1/audio/translations"),
        *free("POST", "/v1/responses/input_tokens", "/v1/responses/*/cancel", "/v1/moderations"),
        *free("GET", "/v1/responses/**", "/v1/models", "/v1/models/**"),
        *free("DELETE", "/v1/responses/*"),
        *BODYLESS,
        *refused("*", "/v1/batches", "/v1/batches/**"),  # billed later, outside any response
        *refused("*", "/v1/realtime", "/v1/realtime/**"),
    ),
    client=_CLIENT,
    error_body=error_event,
    sockets=(Socket("/v1/realtime", Responses), Socket("/v1/responses", Responses)),
)

CODEX = Provider(
    name="codex",
    hosts=("chatgpt.com",),
    endpoints=(
        responses("/backend-api/codex/responses"),
        responses("/backend-api/codex/responses/compact"),
        *free("GET", "/backend-api/codex/**", "/backend-api/wham/**"),
        *BODYLESS,
    ),
    also=("auth.openai.com",),
    client=_CLIENT,
    error_body=error_event,
    sockets=(Socket("/backend-api/codex/responses", Responses),),
)
