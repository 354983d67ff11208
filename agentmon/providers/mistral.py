"""Mistral: chat completions with the usage on the finish chunk, unasked. Agents' conversations are not offered."""

from __future__ import annotations

from agentmon.providers import openai
from agentmon.providers.declaration import Client, Provider, free, refused
from agentmon.providers.match import BODYLESS

PROVIDER = Provider(
    name="mistral",
    hosts=("api.mistral.ai", "codestral.mistral.ai"),
    endpoints=(
        openai.chat_as_it_is("/v1/chat/completions"),
        openai.chat_as_it_is("/v1/fim/completions"),
        openai.chat_as_it_is("/v1/agents/completions"),
        openai.embeddings("/v1/embeddings"),
        openai.embeddings("/v1/moderations"),
        openai.embeddings("/v1/chat/moderations"),
        *free("GET", "/v1/models", "/v1/models/*"),
        *BODYLESS,
        *refused("*", "/v1/batch/**", "/v1/fine_tuning/**"),  # billed later, outside any response
        *refused("POST", "/v1/ocr"),  # billed by the page
    ),
    client=Client(env=("MISTRAL_API_KEY",)),
    error_body=openai.error_event,
)
