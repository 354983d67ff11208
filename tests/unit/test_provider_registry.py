"""Declarations, hosts, endpoints, paths, estimates."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmon.errors import BadInput
from agentmon.providers import match
from agentmon.providers.declaration import Metering
from agentmon.providers.estimate import estimator
from agentmon.providers.registry import load


def test_built_in_providers_are_whole() -> None:
    providers = load()
    assert list(providers) == ["claude", "codex", "openai"]
    for provider in providers.values():
        assert provider.hosts and provider.error_body is not None
        for endpoint in provider.endpoints:
            metered = endpoint.metering is Metering.METERED
            assert (endpoint.parser is not None, endpoint.estimate is not None) == (metered, metered)


def test_a_client_finds_its_paths_and_keys() -> None:
    claude, codex = load()["claude"].client, load()["codex"].client
    assert {".claude", ".claude.json"} <= set(claude.rw) and "ANTHROPIC_API_KEY" in claude.env
    assert ".codex" in codex.rw and "OPENAI_API_KEY" in codex.env


def test_additions() -> None:
    providers = load(
        {"claude": {"hosts": ["Claude.Corp.example."]}, "house": {"like": "openai", "hosts": ["*.llm.example"]}}
    )
    assert match.owner(providers, "claude.corp.example") is providers["claude"]
    assert match.owner(providers, "a.b.llm.example") is providers["house"]
    assert match.owner(providers, "llm.example") is None
    assert match.owner(providers, "xllm.example") is None
    assert providers["house"].name == "house" and providers["house"].also == ()


@pytest.mark.parametrize(
    ("additions", "words"),
    [
        ({"claude": 3}, "expected a table"),
        ({"claude": {"host": ["x"]}}, "unknown key 'host'"),
        ({"claude": {"hosts": "x"}}, "expected a list of text"),
        ({"claude": {"like": "openai"}}, "built in"),
        ({"new": {"hosts": ["x.example"]}}, "like: expected one of claude, codex, openai, got None"),
        ({"new": {"like": "openai"}}, "hosts: is missing"),
        ({"claude": {"endpoints": ["x"]}}, "expected a table"),
        ({"claude": {"endpoints": {"/v1/x": "free"}}}, "expected METHOD /path, got '/v1/x'"),
        ({"claude": {"endpoints": {"GET /v1/x": "cheap"}}}, "expected free, refused, as /v1/messages, got 'cheap'"),
        ({"new": {"like": "openai", "hosts": ["api.anthropic.com"]}}, "belongs to claude and to new"),
    ],
)
def test_bad_additions_say_what_is_wrong(additions: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        load(additions)


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("/v1/messages?beta=true", "/v1/messages"),
        ("/v1/%6Dessages", "/v1/messages"),
        ("/v1/a%3ab", "/v1/a%3Ab"),
        ("/v1%2fmessages", None),
        ("/v1/../v1/messages", None),
        ("/v1/..;/messages", None),
        ("/v1/%2e%2e/x", None),
        ("/v1\\messages", None),
        ("/v1/\x00", None),
        ("/v1/a b", None),
        ("*", None),
        ("", None),
    ],
)
def test_a_path_has_one_form_or_none(target: str, wanted: str | None) -> None:
    assert match.normal_path(target) == wanted


@given(st.text(max_size=40))
def test_the_normal_form_is_stable(text: str) -> None:
    path = match.normal_path("/" + text)
    if path is not None:
        assert match.normal_path(path) == path


def test_patterns() -> None:
    assert match.path_matches("/v1/models/*", "/v1/models/a")
    assert not match.path_matches("/v1/models/*", "/v1/models/a/b")
    assert match.path_matches("/v1/models/**", "/v1/models/a/b")
    assert not match.path_matches("/v1/models/**", "/v1/models/")
    assert not match.path_matches("/v1.models", "/v1xmodels")
    assert all(match.ambiguous(p) for p in ("/v1//messages", "/v1/messages;x", "/v1/%2525"))


def test_estimates_are_bounds() -> None:
    chat = estimator("max_completion_tokens", "max_tokens")
    body = json.dumps({"model": "m", "max_tokens": 10, "n": 3, "messages": ["x" * 300]}).encode()
    estimate = chat(body)
    assert (estimate.model, estimate.output) == ("m", 30) and estimate.input >= 100
    assert chat(b'{"max_completion_tokens": 7, "max_tokens": 9}').output == 7
    assert chat(b"{}").output == chat(b"garbage").output == 4096
    assert chat(b'{"max_tokens": 99999999999999999999}').output <= 1 << 40
    assert chat(b'{"max_tokens": -1}').output == 4096
    assert estimator(default=0)(b"{}").output == 0


def test_added_endpoints_are_asked_first() -> None:
    said = {"GET /v1/files/**": "free", "POST /v2/messages": "as /v1/messages", "POST /v1/messages": "refused"}
    provider = load({"claude": {"endpoints": said}})["claude"]

    def metering(method: str, path: str) -> Metering | None:
        found = match.endpoint(provider, method, path)
        return found and found.metering

    assert metering("GET", "/v1/files/1") is Metering.FREE
    assert metering("POST", "/v2/messages") is Metering.METERED
    assert metering("POST", "/v1/messages") is Metering.REFUSED
    assert metering("HEAD", "/") is metering("HEAD", "/x") is Metering.FREE


def test_what_runs_in_the_background_is_held_in_full() -> None:
    endpoint = match.endpoint(load()["openai"], "POST", "/v1/responses")
    assert endpoint is not None and endpoint.estimate is not None
    assert endpoint.estimate(b'{"background": true}').output == 128_000
    assert endpoint.estimate(b'{"background": true, "max_output_tokens": 9}').output == 9
    assert endpoint.estimate(b"{}").output == 4096
