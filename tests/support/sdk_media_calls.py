"""Run as a process: the real openai SDK against every provider that speaks its protocols. See sdk_calls.py.

python sdk_media_calls.py PROXY_ADDRESS SOURCE_ADDRESS      one JSON line per call on stdout
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from typing import Any

from tests.support.bottle_names import inside_a_bottle

inside_a_bottle(*sys.argv[1:3])

import openai  # noqa: E402  after the names are the bottle's

CLIENT = openai.OpenAI(api_key="k", max_retries=0)
AZURE = openai.AzureOpenAI(
    api_key="k", azure_endpoint="https://mine.openai.azure.com", api_version="2024-10-21", max_retries=0
)
MESSAGES: Any = [{"role": "user", "content": "hi"}]


def at(url: str) -> openai.OpenAI:
    return openai.OpenAI(api_key="k", base_url=url, max_retries=0)


def sound() -> io.BytesIO:
    file = io.BytesIO(bytes(50_000))
    file.name = "speech.wav"
    return file


def streamed(client: Any, **more: Any) -> str:
    chunks = list(client.chat.completions.create(model="m-1", messages=MESSAGES, stream=True, **more))
    assert not any(chunk.usage for chunk in chunks) or client.base_url.host in ("api.mistral.ai", "openrouter.ai")
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


CALLS: dict[str, Callable[[], Any]] = {
    "completions": lambda: CLIENT.completions.create(model="m-1", prompt="hi").choices[0].text,
    "completions stream": lambda: "".join(
        c.choices[0].text for c in CLIENT.completions.create(model="m-1", prompt="hi", stream=True) if c.choices
    ),
    "embeddings": lambda: CLIENT.embeddings.create(model="m-1", input="hi").data[0].embedding,
    "images": lambda: CLIENT.images.generate(model="m-1", prompt="hi").data[0].b64_json,  # type: ignore[index]
    "transcription": lambda: CLIENT.audio.transcriptions.create(model="m-1", file=sound()).text,
    "compact": lambda: CLIENT.responses.compact(model="m-1", input="hi").id,
    "count": lambda: CLIENT.responses.input_tokens.count(model="m-1", input="hi").input_tokens,
    "azure": lambda: streamed(AZURE),
    "openrouter": lambda: streamed(at("https://openrouter.ai/api/v1")),
    "mistral": lambda: streamed(at("https://api.mistral.ai/v1")),
    "gemini": lambda: streamed(at("https://generativelanguage.googleapis.com/v1beta/openai/")),
}

for name, call in CALLS.items():
    try:
        result = call()
    except openai.APIError as e:
        result = f"{type(e).__name__}: {e}"
    print(json.dumps({"call": name, "said": result}), flush=True)
