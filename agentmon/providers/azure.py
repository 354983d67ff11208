"""Azure OpenAI: OpenAI's protocol under deployment paths and under /openai/v1.

Its first frame has empty `choices` without usage; API versions before 2024-09 refuse `stream_options`, which metering
adds to streams.
"""

from __future__ import annotations

from agentmon.providers import openai
from agentmon.providers.declaration import Client, Endpoint, Provider, free
from agentmon.providers.match import BODYLESS


def _under(root: str) -> tuple[Endpoint, ...]:
    return (
        openai.chat(f"{root}/chat/completions"),
        openai.completions(f"{root}/completions"),
        openai.embeddings(f"{root}/embeddings"),
        openai.images(f"{root}/images/generations"),
        openai.images(f"{root}/images/edits"),
        openai.transcription(f"{root}/audio/transcriptions"),
        openai.transcription(f"{root}/audio/translations"),
    )


PROVIDER = Provider(
    name="azure",
    hosts=("*.openai.azure.com",),
    endpoints=(
        *_under("/openai/deployments/*"),
        *_under("/openai/v1"),
        openai.responses("/openai/responses"),
        openai.responses("/openai/v1/responses"),
        *free("GET", "/openai/models", "/openai/models/*", "/openai/v1/models", "/openai/v1/models/*"),
        *BODYLESS,
    ),
    also=("login.microsoftonline.com",),
    client=Client(env=("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "OPENAI_API_VERSION")),
    error_body=openai.error_event,
)
