"""Anthropic's declaration, and the endpoints of its protocol for others that speak it.

The command-line client's own paths and variables are here too: it runs in a bottle with a private HOME.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from agentmon.providers import anthropic_batch, anthropic_usage
from agentmon.providers.declaration import Client, Convention, Counting, Endpoint, Metering, Provider, free, refused
from agentmon.providers.estimate import bound
from agentmon.providers.match import BODYLESS

MOST_OUTPUT = bound("max_tokens")


def messages(path: str) -> Endpoint:
    """Messages at `path`, JSON and SSE."""
    parser = anthropic_usage.parser
    return Endpoint("POST", path, Metering.METERED, parser, MOST_OUTPUT, convention=Convention.APART)


def error_event(error: dict[str, Any]) -> bytes:
    """The in-stream error that the SDK raises on: event and type `error`, the contract's object under `error`."""
    return b"event: error\ndata: " + msgspec.json.encode({"type": "error", "error": error}) + b"\n\n"


_RESULTS = Endpoint(
    "GET", "/v1/messages/batches/*/results", Metering.METERED, anthropic_batch.parser, bound(default=0),
    convention=Convention.APART,
)  # fmt: skip

# anthropic-sdk-python, types/message_count_tokens_params.py and message_create_params.py; of the betas what both have.
_COUNTING = Counting(
    "/v1/messages/count_tokens",
    takes=frozenset(
        ("messages", "model", "system", "tools", "tool_choice", "thinking", "cache_control", "output_config")
    ),
    leaves=frozenset(
        (
            "max_tokens", "stream", "metadata", "temperature", "top_k", "top_p", "stop_sequences", "service_tier",
            "inference_geo",
        )
    ),
    headers=frozenset(("anthropic-version", "anthropic-beta")),
)  # fmt: skip

PROVIDER = Provider(
    name="claude",
    hosts=("api.anthropic.com",),
    endpoints=(
        replace(messages("/v1/messages"), counting=_COUNTING),
        _RESULTS,
        *free("POST", "/v1/messages/count_tokens", "/api/oauth/**"),
        *free("GET", "/v1/models", "/v1/models/**", "/v1/messages/batches", "/v1/messages/batches/*"),
        *free("GET", "/api/**"),  # profile, roles, settings of the command-line client
        *BODYLESS,
        *refused("POST", "/v1/messages/batches", "/v1/messages/batches/**"),  # billed later, outside any response
        *refused("POST", "/v1/complete"),  # its answers carry no usage
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
