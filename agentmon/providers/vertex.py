"""Vertex AI: Anthropic's shapes by rawPredict and streamRawPredict, Gemini's by generateContent, by region.

The first of several matching endpoints decides: Anthropic's token counting is a rawPredict that costs nothing.
"""

from __future__ import annotations

from agentmon.providers import anthropic, gemini, openai
from agentmon.providers.declaration import Client, Provider, free, refused
from agentmon.providers.match import BODYLESS

_ROOTS = tuple(f"/{v}/projects/*/locations/*" for v in ("v1", "v1beta1"))
_ANTHROPIC = "publishers/anthropic/models"

PROVIDER = Provider(
    name="vertex",
    hosts=("aiplatform.googleapis.com", "*-aiplatform.googleapis.com", "aiplatform.*.rep.googleapis.com"),
    endpoints=(
        *free("POST", *(f"{root}/{_ANTHROPIC}/count-tokens:rawPredict" for root in _ROOTS)),
        *(anthropic.messages(f"{root}/{_ANTHROPIC}/*:{verb}") for root in _ROOTS for verb in
          ("rawPredict", "streamRawPredict")),
        *(gemini.generate(f"{root}/{where}/*:{verb}") for root in _ROOTS for where in
          ("publishers/google/models", "endpoints") for verb in ("generateContent", "streamGenerateContent")),
        *(openai.chat(f"{root}/endpoints/openapi/chat/completions") for root in _ROOTS),
        *free("POST", *(f"{root}/publishers/google/models/*:countTokens" for root in _ROOTS)),
        *BODYLESS,
        *refused("POST", *(f"{root}/publishers/*/models/*:predict" for root in _ROOTS)),
        *refused("POST", *(f"{root}/publishers/*/models/*:predictLongRunning" for root in _ROOTS)),
    ),
    also=("oauth2.googleapis.com", "sts.googleapis.com"),
    client=Client(
        env=("GOOGLE_CLOUD_PROJECT", "CLOUD_ML_REGION", "ANTHROPIC_VERTEX_PROJECT_ID", "CLAUDE_CODE_USE_VERTEX"),
    ),
    error_body=gemini.error_event,
)  # fmt: skip
