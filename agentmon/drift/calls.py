"""The requests of a check, by provider: as few and as small as show every shape that agentmon reads. Data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

WORD = "Say the word: ready"
MOST_OUTPUT = 16  # tokens that one answer may have


@dataclass(frozen=True, slots=True)
class Call:
    """`body` None: a GET. `fails`: an error is what is wanted. `same_as`: a call whose input is counted alike."""

    name: str
    path: str
    body: Mapping[str, Any] | None = None
    fails: bool = False
    counts: bool = False  # an endpoint that counts and is not billed
    same_as: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """How to ask one provider. `headers`: constant ones; `auth`: header that carries the key, `prefix` before it."""

    provider: str
    host: str
    credential: str
    auth: str
    prefix: str
    model: str
    sdk: str  # the Python package whose version is noted
    calls: tuple[Call, ...]
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def most_tokens(self) -> int:
        """What a check can put out at most; its inputs are a line each."""
        return MOST_OUTPUT * sum(1 for c in self.calls if c.body is not None and not (c.fails or c.counts))


def _anthropic(model: str) -> tuple[Call, ...]:
    asked = {"model": model, "max_tokens": MOST_OUTPUT, "messages": [{"role": "user", "content": WORD}]}
    counted = {"model": model, "messages": asked["messages"]}
    return (
        Call("messages", "/v1/messages", asked, same_as="count"),
        Call("stream", "/v1/messages", {**asked, "stream": True}, same_as="messages"),
        Call("count", "/v1/messages/count_tokens", counted, counts=True),
        Call("error", "/v1/messages", {"model": model, "messages": []}, fails=True),
    )


def _openai(model: str) -> tuple[Call, ...]:
    asked = {"model": model, "max_completion_tokens": MOST_OUTPUT, "messages": [{"role": "user", "content": WORD}]}
    response = {"model": model, "max_output_tokens": MOST_OUTPUT, "input": WORD}
    streamed = {**asked, "stream": True, "stream_options": {"include_usage": True}}
    return (
        Call("chat", "/v1/chat/completions", asked),
        Call("chat stream", "/v1/chat/completions", streamed, same_as="chat"),
        Call("responses", "/v1/responses", response),
        Call("responses stream", "/v1/responses", {**response, "stream": True}, same_as="responses"),
        Call("error", "/v1/chat/completions", {"model": model, "messages": "none"}, fails=True),
    )


def target(provider: str, model: str = "") -> Target | None:
    """:param model: "" for the smallest that is known to be there. None: no check is written for this provider."""
    if provider == "claude":
        model = model or "claude-haiku-4-5"
        return Target("claude", "api.anthropic.com", "anthropic", "x-api-key", "", model, "anthropic",
                      _anthropic(model), {"anthropic-version": "2023-06-01"})  # fmt: skip
    if provider == "openai":
        model = model or "gpt-4.1-nano"
        return Target("openai", "api.openai.com", "openai", "authorization", "Bearer ", model, "openai", _openai(model))
    return None


PROVIDERS = ("claude", "openai")
