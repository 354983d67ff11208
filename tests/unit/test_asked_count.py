"""What a provider's count endpoint is asked, what counts as an answer, and how it stands in for our estimate."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmon.errors import BadInput
from agentmon.providers import asked_count, match
from agentmon.providers.declaration import Counting, Estimate, Gate, Metering
from agentmon.providers.estimate import MAX_COUNT
from agentmon.providers.registry import load
from agentmon.providers.request import read

CASES = [("claude", "/v1/messages"), ("openai", "/v1/responses")]


def counting(provider: str = "claude", path: str = "/v1/messages") -> Counting:
    endpoint = match.endpoint(load()[provider], "POST", path)
    assert endpoint is not None and endpoint.counting is not None
    return endpoint.counting


def asked(provider: str, path: str, body: Any) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = asked_count.question(counting(provider, path), read(path, raw))
    return None if found is None else json.loads(found)


@pytest.mark.parametrize(("provider", "path"), CASES)
def test_the_path_that_is_asked_is_known_to_be_free(provider: str, path: str) -> None:
    endpoint = match.endpoint(load()[provider], "POST", counting(provider, path).path)
    assert endpoint is not None and endpoint.metering is Metering.FREE


def test_only_what_brings_input_is_asked() -> None:
    text = [{"role": "user", "content": "héllo \U0001f642"}]
    body = {
        "model": "m",
        "messages": text,
        "system": "s",
        "max_tokens": 9,
        "stream": True,
        "metadata": {"user_id": "u"},
    }
    assert asked("claude", "/v1/messages", body) == {"model": "m", "messages": text, "system": "s"}
    body = {"model": "m", "input": text, "previous_response_id": "resp_1", "max_output_tokens": 9, "store": False}
    wanted = {"model": "m", "input": text, "previous_response_id": "resp_1"}
    assert asked("openai", "/v1/responses", body) == wanted


@pytest.mark.parametrize(("provider", "path"), CASES)
@pytest.mark.parametrize("more", [{"container": "c_1"}, {"mcp_servers": [{}]}, {"prompt": {"id": "p"}}, {"new": 1}])
def test_nothing_is_asked_where_the_question_would_be_smaller_than_the_request(
    provider: str, path: str, more: dict[str, Any]
) -> None:
    assert asked(provider, path, {"model": "m", "input": "x", "messages": []} | more) is None


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"{}", b"\xff", b'{"messages": "' + b"x" * (4 << 20) + b'"}'])
def test_what_is_no_object_or_too_long_is_not_asked(body: bytes) -> None:
    assert asked("claude", "/v1/messages", body) is None


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b'{"input_tokens": 14}', 14),
        (b'{"object": "response.input_tokens", "input_tokens": 1}', 1),
        (b'{"input_tokens": 0}', None),
        (b'{"input_tokens": -3}', None),
        (b'{"input_tokens": true}', None),
        (b'{"input_tokens": 1.5}', None),
        (b'{"input_tokens": "14"}', None),
        (b'{"input_tokens": null}', None),
        (b'{"input_tokens": %d}' % (MAX_COUNT + 1), None),
        (b'{"tokens": 14}', None),
        (b"[14]", None),
        (b"<html>", None),
        (b"", None),
    ],
)
def test_an_answer_is_one_whole_number_or_none(body: bytes, wanted: int | None) -> None:
    assert asked_count.tokens(counting(), body) == wanted


@given(st.binary(max_size=200))
def test_no_answer_raises(body: bytes) -> None:
    found = asked_count.tokens(counting(), body)
    assert found is None or 0 < found <= MAX_COUNT


def test_a_count_replaces_the_input_alone_and_is_not_followed_to_nothing() -> None:
    ours = Estimate("m", 6400, 100)
    assert asked_count.held(ours, 900) == Estimate("m", 900, 100)
    assert asked_count.held(ours, 9000) == Estimate("m", 9000, 100)
    assert asked_count.held(ours, 1) == Estimate("m", 100, 100)


def test_nobody_is_asked_unless_the_settings_say_so() -> None:
    assert {p.gate for p in load().values()} == {Gate.ESTIMATE}
    assert load({"claude": {"count": False}})["claude"].gate is Gate.ESTIMATE
    loaded = load({"claude": {"count": True}, "house": {"like": "openai", "hosts": ["llm.example"], "count": True}})
    assert [name for name, p in loaded.items() if p.gate is Gate.COUNT] == ["claude", "house"]


def test_an_endpoint_under_another_path_is_not_counted() -> None:
    added = {"claude": {"count": True, "endpoints": {"POST /v2/talk": "as /v1/messages"}}}
    endpoint = match.endpoint(load(added)["claude"], "POST", "/v2/talk")
    assert endpoint is not None and endpoint.metering is Metering.METERED and endpoint.counting is None


@pytest.mark.parametrize(
    ("additions", "words"),
    [
        ({"claude": {"count": 1}}, "claude: count: expected true or false, got 1"),
        ({"claude": {"count": "yes"}}, "expected true or false, got 'yes'"),
        ({"claude": {"count": None}}, "expected true or false, got None"),
        ({"gemini": {"count": True}}, "gemini has no count endpoint"),
    ],
)
def test_bad_values_say_what_is_wrong(additions: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        load(additions)
    assert caught.value.hint
