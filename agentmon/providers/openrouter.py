"""OpenRouter: chat completions with comment lines while it waits; usage always comes, last, unasked."""

from __future__ import annotations

from agentmon.providers import anthropic, openai
from agentmon.providers.declaration import Client, Provider, free
from agentmon.providers.match import BODYLESS

PROVIDER = Provider(
    name="openrouter",
    hosts=("openrouter.ai",),
    endpoints=(
        openai.chat_as_it_is("/api/v1/chat/completions"),
        openai.chat_as_it_is("/api/v1/completions"),
        openai.responses("/api/v1/responses"),
        openai.embeddings("/api/v1/embeddings"),
        anthropic.messages("/api/v1/messages"),
        *free("GET", "/api/v1/models", "/api/v1/models/**", "/api/v1/key", "/api/v1/credits", "/api/v1/generation"),
        *free("GET", "/api/v1/providers"),
        *BODYLESS,
    ),
    client=Client(env=("OPENROUTER_API_KEY",)),
    error_body=openai.error_event,
)
