"""What the agent is allowed to do: the real SDKs, unmodified, and curl. Each call returns what came of it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import openai

ASK: list[Any] = [{"role": "user", "content": "Say something."}]


def anthropic_plain() -> dict[str, Any]:
    result = {"client": "anthropic", "host": "api.anthropic.com", "streamed": False}
    try:
        message = anthropic.Anthropic().messages.create(
            model="claude-scripted-in1000-out100", max_tokens=200, messages=ASK
        )
    except anthropic.APIError as error:
        return result | failed(error)
    return result | {"status": 200, "input": message.usage.input_tokens, "output": message.usage.output_tokens}


def anthropic_stream() -> dict[str, Any]:
    result = {"client": "anthropic", "host": "api.anthropic.com", "streamed": True}
    model = "claude-scripted-in1000-out200-chunks20-pace5"
    try:
        with anthropic.Anthropic().messages.stream(model=model, max_tokens=400, messages=ASK) as stream:
            deltas = sum(1 for _ in stream.text_stream)
            usage = stream.get_final_message().usage
    except anthropic.APIError as error:
        return result | failed(error)
    return result | {"status": 200, "input": usage.input_tokens, "output": usage.output_tokens, "deltas": deltas}


def openai_stream() -> dict[str, Any]:
    result = {"client": "openai", "host": "api.openai.com", "streamed": True}
    model = "gpt-scripted-in500-out120-chunks12-pace5"
    try:
        stream = openai.OpenAI().chat.completions.create(
            model=model, messages=ASK, max_completion_tokens=300, stream=True, stream_options={"include_usage": True}
        )
        usage = [chunk.usage for chunk in stream if chunk.usage][-1]
    except openai.APIError as error:
        return result | failed(error)
    return result | {"status": 200, "input": usage.prompt_tokens, "output": usage.completion_tokens}


def curl_name() -> dict[str, Any]:
    return curl("www.allowed.example", "https://www.allowed.example/")


def curl_direct() -> dict[str, Any]:
    return curl("direct.allowed.example", "https://direct.allowed.example:8443/")


def curl(host: str, url: str) -> dict[str, Any]:
    argv = ["curl", "-sS", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code}", url]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    result: dict[str, Any] = {"client": "curl", "host": host, "streamed": False, "status": int(done.stdout or 0)}
    return result if done.returncode == 0 else result | {"error": done.stderr.strip()}


def failed(error: Exception) -> dict[str, Any]:
    """Status and the type in the body, if there was an answer at all."""
    body = getattr(error, "body", None)
    inner = body.get("error", body) if isinstance(body, dict) else {}
    said = " ← ".join(f"{type(e).__name__}: {e}" for e in causes(error))
    return {"status": getattr(error, "status_code", 0), "type": inner.get("type", ""), "detail": inner, "error": said}


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


ALL: tuple[Callable[[], dict[str, Any]], ...] = (
    anthropic_plain,
    anthropic_stream,
    openai_stream,
    curl_name,
    curl_direct,
)
