"""Declarations, hosts, endpoints, paths, estimates."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmon.errors import BadInput
from agentmon.policy.rules import Depth, PolicySet, parse_rule
from agentmon.providers import estimate, lint, match
from agentmon.providers.declaration import Convention, Metering
from agentmon.providers.overlap import hosts_overlap, path_covers, paths_overlap
from agentmon.providers.registry import load
from agentmon.providers.request import read


def test_built_in_providers_are_whole() -> None:
    providers = load()
    assert list(providers) == [
        "claude", "codex", "openai", "gemini", "azure", "openrouter", "mistral", "vertex", "bedrock",
    ]  # fmt: skip
    for provider in providers.values():
        assert provider.hosts and (provider.error_body is not None) == (provider.name != "bedrock")
        assert lint.endpoints(provider.endpoints) == ""


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
        ({"new": {"hosts": ["x.example"]}}, "like: expected one of azure, bedrock, claude, .*, vertex, got None"),
        ({"new": {"like": "openai"}}, "hosts: is missing"),
        ({"claude": {"endpoints": ["x"]}}, "expected a table"),
        ({"claude": {"endpoints": {"/v1/x": "free"}}}, "expected METHOD /path, got '/v1/x'"),
        ({"claude": {"endpoints": {"GET /v1/x": "cheap"}}}, "expected free, refused, as /v1/messages, .* got 'cheap'"),
        ({"new": {"like": "openai", "hosts": ["api.anthropic.com"]}}, "belongs to claude and to new"),
        ({"new": {"like": "openai", "hosts": ["*.azure.com"]}}, "and .*openai.azure.com belongs to azure and to new"),
        ({"new": {"like": "openai", "hosts": ["us-*.googleapis.com"]}}, "belongs to vertex and to new"),
        ({"new": {"like": "openai", "hosts": ["*"]}}, "would allow everything|covers too much"),
        ({"new": {"like": "openai", "hosts": ["llm.*"]}}, "covers too much"),
        ({"new": {"like": "openai", "hosts": ["a b"]}}, "hosts: 'a b'"),
        ({"claude": {"endpoints": {"POST /v1/**": "free"}}}, "is free, but covers what POST /v1/messages meters"),
        ({"claude": {"endpoints": {"* /v1/messages": "free"}}}, "is free, but covers what POST /v1/messages meters"),
        (
            {"claude": {"endpoints": {"GET /v1/**": "refused", "GET /v1/files/*": "free"}}},
            "GET /v1/files/. is never asked: GET /v1/.. stands before it",
        ),
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


@pytest.mark.parametrize("query", ["$httpMethod=POST", "a=1&%24HTTPMETHOD=post", "x=%68ttpMethod"])
def test_a_query_may_not_change_the_method(query: str) -> None:
    assert match.overrides_method(f"/v1beta/models/m:x?{query}")
    assert not match.overrides_method("/v1beta/httpMethod?alt=sse&key=k")


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


def estimated(provider: str, path: str, body: bytes) -> tuple[str, int, int]:
    declared = load()[provider]
    found = match.endpoint(declared, "POST", path)
    assert found is not None and found.metering is Metering.METERED
    said = estimate.of(declared, found, read(path, body))
    return said.model, said.input, said.output


def test_estimates_are_bounds() -> None:
    def chat(body: bytes) -> tuple[str, int, int]:
        return estimated("openai", "/v1/chat/completions", body)

    body = json.dumps({"model": "m", "max_tokens": 10, "n": 3, "messages": ["x" * 300]}).encode()
    model, tokens, output = chat(body)
    assert (model, output) == ("m", 30) and tokens >= 100
    assert chat(b'{"max_completion_tokens": 7, "max_tokens": 9}')[2] == 7
    assert chat(b"{}")[2] == chat(b"garbage")[2] == 4096
    assert chat(b'{"max_tokens": 99999999999999999999}')[2] <= 1 << 40
    assert chat(b'{"max_tokens": -1}')[2] == 4096
    assert estimated("openai", "/v1/embeddings", b"{}")[2] == 0


@pytest.mark.parametrize(
    ("provider", "path", "body", "model", "output"),
    [
        ("gemini", "/v1beta/models/g-2:generateContent", {"generationConfig": {"maxOutputTokens": 5}}, "g-2", 5),
        ("gemini", "/v1internal:generateContent", {"request": {"generationConfig": {"maxOutputTokens": 6}}}, "", 6),
        ("azure", "/openai/deployments/mine/chat/completions", {"max_tokens": 7}, "mine", 7),
        ("bedrock", "/model/a.b-v1%3A0/converse", {"inferenceConfig": {"maxTokens": 8}}, "a.b-v1:0", 8),
        ("openai", "/v1/responses", {"model": "m", "background": True}, "m", 128_000),
        ("openai", "/v1/responses", {"model": "m", "background": True, "max_output_tokens": 9}, "m", 9),
        ("openai", "/v1/responses", {"model": "m"}, "m", 4096),
        ("openai", "/v1/images/generations", {"model": "i", "n": 2}, "i", 2 * 16_384),
    ],
)
def test_the_model_and_the_bound_are_where_each_protocol_has_them(
    provider: str, path: str, body: Any, model: str, output: int
) -> None:
    got = estimated(provider, path, json.dumps(body).encode())
    assert (got[0], got[2]) == (model, output)


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


PATTERNS = ["/v1/a", "/v1/*", "/v1/**", "/v1/*:go", "/v1/x:*", "/*/a", "/**/a", "/v1/*/b", "/v1/a/b"]
PATHS = ["/v1/a", "/v1/b", "/v1/x:go", "/v1/a/b", "/v2/a", "/v1/a/a", "/v1/a:go/b", "/v1/x:y/a", "/v1/x/x:go"]


@pytest.mark.parametrize("a", PATTERNS)
@pytest.mark.parametrize("b", PATTERNS)
def test_overlap_agrees_with_the_paths_that_match(a: str, b: str) -> None:
    of_a, of_b = ({p for p in PATHS if match.path_matches(x, p)} for x in (a, b))
    assert paths_overlap(a, b) or not of_a & of_b
    assert paths_overlap(a, b) == paths_overlap(b, a)
    assert not path_covers(a, b) or (of_b <= of_a and paths_overlap(a, b))


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        ("a.example", "a.example", True),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "*.b.example.com", True),
        ("*-x.example.com", "us-x.example.com", True),
        ("*-x.example.com", "a.us-x.example.com", False),
        ("x.*.example.com", "*.eu.example.com", True),
        ("x-*.example.com", "*-y.example.com", True),
        ("x.*.example.com", "y.*.example.com", False),
    ],
)
def test_hosts_that_overlap(a: str, b: str, wanted: bool) -> None:
    assert hosts_overlap(a, b) is hosts_overlap(b, a) is wanted


def test_regions_are_covered_and_nothing_beside_them() -> None:
    providers = load()

    def owner(host: str) -> str | None:
        found = match.owner(providers, host)
        return found and found.name

    assert owner("us-central1-aiplatform.googleapis.com") == owner("aiplatform.eu.rep.googleapis.com") == "vertex"
    assert owner("bedrock-runtime.eu-west-3.amazonaws.com") == "bedrock"
    assert owner("mine.openai.azure.com") == "azure"
    assert owner("eu.api.openai.com") == owner("api.openai.com") == "openai" and owner("cdn.openai.com") is None
    assert owner("storage.googleapis.com") is owner("s3.eu-west-3.amazonaws.com") is None
    assert owner("x.us-central1-aiplatform.googleapis.com") is owner("bedrock-runtime.a.b.amazonaws.com") is None


def test_what_a_lint_finds_in_a_declaration() -> None:
    good = load()["claude"].endpoints
    metered = good[0]
    assert "has a parser" in lint.endpoints((replace(metered, parser=None),))
    assert "has a parser" in lint.endpoints((replace(metered, metering=Metering.FREE),))
    assert "is never asked" in lint.endpoints((metered, metered))
    wide = replace(metered, path="/v1/**", metering=Metering.FREE, parser=None, output=None, convention=None)
    assert "covers what" in lint.endpoints((wide, replace(metered, path="/**/messages")))
    assert lint.endpoints((replace(wide, path="/v1/messages/count"), replace(metered, path="/v1/messages/*"))) == ""
    assert {e.convention for e in good if e.metering is Metering.METERED} == {Convention.APART}


def test_hosts_of_regions_are_inspected_whatever_rule_opens_them() -> None:
    rules = [parse_rule("*.googleapis.com:443"), parse_rule("bedrock-runtime.eu-west-3.amazonaws.com:443")]
    policy = PolicySet(rules, [host for provider in load().values() for host in provider.hosts])
    for host in ("eu-x-aiplatform.googleapis.com", "bedrock-runtime.eu-west-3.amazonaws.com"):
        assert policy.resolves(host).depth is policy.decide_name(host, 443).depth is Depth.INSPECTED
    assert policy.resolves("storage.googleapis.com").depth is Depth.NAME
    assert not policy.is_inspected("-aiplatform.googleapis.com") and not policy.is_inspected("a.b-aiplatform.x")
