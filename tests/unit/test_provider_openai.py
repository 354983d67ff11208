"""OpenAI usage and include_usage: METERING torture cases 12–17, 24."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmon import wire
from agentmon.providers.declaration import Metering
from agentmon.providers.include_usage import include_usage, without_usage
from agentmon.providers.match import endpoint
from agentmon.providers.openai import CODEX, PROVIDER, error_event
from agentmon.providers.openai_usage import chat_parser, responses_parser

SSE = {"content-type": "text/event-stream"}
DONE = b"data: [DONE]\n\n"
USAGE = {
    "prompt_tokens": 100, "completion_tokens": 30, "total_tokens": 130,
    "prompt_tokens_details": {"cached_tokens": 60}, "completion_tokens_details": {"reasoning_tokens": 20},
}  # fmt: skip


def chunk(**data: Any) -> bytes:
    return b"data: " + json.dumps({"id": "chatcmpl-1", "model": "gpt-x"} | data).encode() + b"\n\n"


def named(kind: str, **data: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | data)}\n\n".encode()


def read(parser: Any, data: bytes, headers: dict[str, str], step: int = 1 << 20) -> wire.Usage | None:
    reader = parser(headers)
    for at in range(0, len(data), step):
        reader.feed(data[at : at + step])
    reader.close()
    return reader.usage()


def counts(usage: wire.Usage | None) -> tuple[Any, ...]:
    assert usage is not None
    return usage.input, usage.cache_read, usage.output, usage.reasoning, usage.complete


SAY = chunk(choices=[{"index": 0, "delta": {"content": "hé 🙂"}}])


def test_chat_json_takes_cached_out_of_the_prompt() -> None:
    document = json.dumps({"id": "c1", "model": "gpt-x", "usage": USAGE}).encode()
    assert counts(read(chat_parser, document, {})) == (40, 60, 30, 20, True)


@pytest.mark.parametrize("step", [1, 3, 1 << 20])
def test_a_chat_stream_in_any_chunking(step: int) -> None:
    first = chunk(choices=[], prompt_filter_results=[])  # Azure: empty choices, no usage
    usage = read(chat_parser, first + SAY + chunk(choices=[], usage=USAGE) + DONE, SSE, step)
    assert counts(usage) == (40, 60, 30, 20, True)
    assert usage is not None and (usage.model, usage.request_id) == ("gpt-x", "chatcmpl-1")


def test_cumulative_usage_on_every_chunk_is_not_added() -> None:
    stream = b"".join(
        chunk(choices=[{"index": 0, "delta": {}}], usage={"prompt_tokens": 5, "completion_tokens": n})
        for n in range(1, 9)
    )
    assert counts(read(chat_parser, stream + DONE, SSE)) == (5, 0, 8, 0, True)


def test_comments_between_chunks() -> None:
    stream = b": OPENROUTER PROCESSING\n\n" + SAY + chunk(choices=[], usage=USAGE) + DONE
    assert counts(read(chat_parser, stream, SSE))[2] == 30


def test_a_stream_without_usage_says_nothing_and_one_that_breaks_off_is_not_complete() -> None:
    assert read(chat_parser, SAY + DONE, SSE) is None
    usage = read(chat_parser, SAY + chunk(choices=[], usage=USAGE), SSE)
    assert usage is not None and not usage.complete


def test_an_error_in_a_stream_is_not_complete() -> None:
    usage = read(chat_parser, chunk(choices=[], usage=USAGE) + b'data: {"error": {"message": "x"}}\n\n' + DONE, SSE)
    assert usage is not None and not usage.complete


def test_usage_inside_content_is_content() -> None:
    lie = chunk(choices=[{"index": 0, "delta": {"content": json.dumps({"usage": {"completion_tokens": 0}})}}])
    assert read(chat_parser, lie + DONE, SSE) is None


def test_embeddings() -> None:
    document = json.dumps({"model": "e", "usage": {"prompt_tokens": 9, "total_tokens": 9}}).encode()
    assert counts(read(chat_parser, document, {})) == (9, 0, 0, 0, True)


@pytest.mark.parametrize("end", ["completed", "incomplete", "failed"])
@pytest.mark.parametrize("headers", [SSE, {}])
def test_responses_streams(end: str, headers: dict[str, str]) -> None:
    usage = {"input_tokens": 50, "input_tokens_details": {"cached_tokens": 10}, "output_tokens": 7}
    stream = (
        named("response.created", response={"id": "resp_1", "model": "gpt-y", "usage": None})
        + named("response.output_text.delta", delta="hi")
        + named(f"response.{end}", response={"id": "resp_1", "model": "gpt-y", "usage": usage})
    )
    got = read(responses_parser, stream, headers, 11)
    assert counts(got) == (40, 10, 7, 0, True) and got is not None and got.request_id == "resp_1"


def test_every_end_of_a_responses_stream_without_names() -> None:
    stream = b"".join(
        line + b"\n"
        for line in (
            named("response.created", response={"id": "r", "usage": None})
            + named("response.in_progress")
            + b"data: x\n\n"
        ).split(b"\n")
        if not line.startswith(b"event:")
    )
    assert read(responses_parser, stream + named("error", message="x"), SSE) is None


def test_the_text_seen_and_the_kind_are_known() -> None:
    reader = chat_parser({})
    assert not reader.streams and not reader.overflowed and reader.output_seen == 0
    reader.feed(SAY * 3)
    assert reader.streams and reader.output_seen > 0 and not reader.overflowed
    document = chat_parser({})
    document.feed(b'{"a": "' + b"x" * (17 << 20))
    assert not document.streams and document.overflowed
    document.close()
    assert document.usage() is None


def test_responses_with_null_usage_say_nothing() -> None:
    assert read(responses_parser, named("response.completed", response={"id": "r", "usage": None}), SSE) is None
    assert read(responses_parser, b'{"id": "r", "usage": null}', {}) is None


@pytest.mark.parametrize("usage", [{}, {"total_tokens": None}, {"input_tokens": -1}])
def test_usage_without_a_count_says_nothing_and_hides_none(usage: dict[str, Any]) -> None:
    document = json.dumps({"id": "r", "usage": usage}).encode()
    assert read(chat_parser, document, {}) is read(responses_parser, document, {}) is None
    stream = chunk(choices=[], usage=USAGE) + chunk(choices=[], usage=usage) + DONE
    assert counts(read(chat_parser, stream, SSE)) == (40, 60, 30, 20, True)


def test_a_responses_stream_that_is_closed_early_is_not_complete() -> None:
    assert read(responses_parser, named("response.created", response={"id": "r", "usage": None}), {}) is None


@given(st.binary(max_size=300))
def test_no_body_raises(data: bytes) -> None:
    for parser in (chat_parser, responses_parser):
        read(parser, SAY + data, SSE, 7)
        read(parser, data, {}, 3)


# ── include_usage ──


def test_usage_is_asked_for_without_touching_the_rest() -> None:
    body = b' {"model": "gpt-x",  "stream": true, "n": 1.0}'
    new, added = include_usage(body)
    assert added and new.endswith(body[2:]) and json.loads(new)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("options", "added", "wanted"),
    [
        ({"include_usage": True}, False, {"include_usage": True}),
        ({"include_usage": False}, True, {"include_usage": True}),
        ({"include_obfuscation": False}, True, {"include_obfuscation": False, "include_usage": True}),
        (None, True, {"include_usage": True}),
    ],
)
def test_the_clients_own_stream_options_are_kept(options: Any, added: bool, wanted: Any) -> None:
    new, was_added = include_usage(json.dumps({"stream": True, "stream_options": options}).encode())
    assert was_added is added and json.loads(new)["stream_options"] == wanted


@pytest.mark.parametrize("body", [b'{"stream": false}', b"{}", b"not json", b"[]", b""])
def test_what_is_no_stream_stays_as_it_is(body: bytes) -> None:
    assert include_usage(body) == (body, False)


def test_only_the_extra_chunk_is_left_out() -> None:
    assert without_usage(chunk(choices=[], usage=USAGE)) == b""
    for kept in (
        chunk(choices=[{"delta": {}}], usage=USAGE),  # Mistral: on the finish chunk
        chunk(choices=[{"delta": {"content": '"usage" "choices":[]'}}]),
        DONE,
        b": comment\n\n",
        b'data: {"choices": "usage", "usage"\n\n',
        b'data: {"choices": [1], "usage"\n\n',
        b'data: {"choices": [1], "usage": 0}\n\n',
        b'data: {"choices": [1],\ndata: "usage":\ndata: null}\n\n',  # not on one line: nobody sends it, and it stays
    ):
        assert without_usage(kept) == kept


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_a_null_usage_that_the_client_did_not_ask_for_goes_and_one_in_the_content_stays(separators: Any) -> None:
    def event(value: Any) -> bytes:
        return b"data: " + json.dumps(value, separators=separators).encode() + b"\n\n"

    content = {"delta": {"content": ',"usage":null', "extra": {"a": 1, "usage": None}}}
    before, after = {"id": "c", "choices": [content]}, {"obfuscation": 'x,"usage":null'}
    assert without_usage(event(before | {"usage": None} | after)) == event(before | after)
    assert without_usage(event({"usage": None} | before)) == event(before)
    assert without_usage(event(before | {"usage": None})) == event(before)
    assert without_usage(event(before)) == event(before)


def test_the_error_event() -> None:
    data = error_event({"type": "budget_exhausted", "message": "m"})
    assert json.loads(data.split(b"\n")[1][6:])["error"]["type"] == "budget_exhausted"


def test_what_is_metered() -> None:
    def metering(provider: Any, method: str, path: str) -> Any:
        found = endpoint(provider, method, path)
        return found and found.metering

    assert metering(PROVIDER, "POST", "/v1/chat/completions") is Metering.METERED
    assert metering(PROVIDER, "POST", "/v1/responses") is Metering.METERED
    assert metering(PROVIDER, "POST", "/v1/responses/input_tokens") is Metering.FREE
    assert metering(PROVIDER, "POST", "/v1/batches/x") is Metering.REFUSED
    assert metering(PROVIDER, "POST", "/v1/images/generations") is Metering.METERED
    assert metering(PROVIDER, "POST", "/v1/audio/speech") is None
    assert metering(CODEX, "POST", "/backend-api/codex/responses") is Metering.METERED
    assert metering(CODEX, "POST", "/backend-api/conversation") is None
