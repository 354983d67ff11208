"""Anthropic usage: METERING's merge rule and torture cases 1, 4–9, 16, 24."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmon import wire
from agentmon.providers.anthropic import PROVIDER, error_event
from agentmon.providers.anthropic_usage import by_model, parser
from agentmon.providers.declaration import Metering
from agentmon.providers.match import endpoint

SSE = {"content-type": "text/event-stream; charset=utf-8"}


def event(kind: str, **data: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | data)}\n\n".encode()


def start(**usage: Any) -> bytes:
    return event("message_start", message={"id": "msg_1", "model": "claude-x", "usage": usage})


def delta(**usage: Any) -> bytes:
    return event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)


STOP = event("message_stop")
TEXT = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "hällo 🙂"})


def read(data: bytes, headers: dict[str, str] | None = None, step: int = 1 << 20) -> wire.Usage | None:
    reader = parser(SSE if headers is None else headers)
    for at in range(0, len(data), step):
        reader.feed(data[at : at + step])
    reader.close()
    return reader.usage()


def counts(usage: wire.Usage | None) -> tuple[int, ...]:
    assert usage is not None
    return usage.input, usage.cache_read, usage.cache_write_5m, usage.cache_write_1h, usage.output, usage.reasoning


@pytest.mark.parametrize("step", [1, 2, 5, 1 << 20])
def test_a_stream_in_any_chunking(step: int) -> None:
    usage = read(
        start(input_tokens=25, output_tokens=1) + event("ping") + TEXT + delta(output_tokens=15) + STOP, None, step
    )
    assert counts(usage) == (25, 0, 0, 0, 15, 0)
    assert usage is not None and (usage.model, usage.request_id, usage.complete, usage.source) == (
        "claude-x", "msg_1", True, "wire",
    )  # fmt: skip


def test_a_delta_that_repeats_cache_reads_cumulatively_is_not_added() -> None:
    usage = read(
        start(input_tokens=5, cache_read_input_tokens=900, output_tokens=1)
        + delta(cache_read_input_tokens=900, output_tokens=40)
        + STOP
    )
    assert counts(usage) == (5, 900, 0, 0, 40, 0)


def test_a_cache_inclusive_start_with_the_true_split_in_the_delta() -> None:
    usage = read(
        start(input_tokens=1000) + delta(input_tokens=100, cache_read_input_tokens=900, output_tokens=3) + STOP
    )
    assert counts(usage) == (100, 900, 0, 0, 3, 0)


def test_an_explicit_zero_wins_and_null_or_absent_does_not() -> None:
    usage = read(
        start(input_tokens=50, cache_read_input_tokens=70, cache_creation_input_tokens=9)
        + delta(input_tokens=None, cache_read_input_tokens=0, output_tokens=2)
        + STOP
    )
    assert counts(usage) == (50, 0, 9, 0, 2, 0)


def test_usage_without_a_value_is_not_zero() -> None:
    assert read(b'{"id": "m", "type": "message", "usage": {}}') is None
    assert read(b'{"id": "m", "type": "message", "usage": {"input_tokens": null}}') is None


def test_several_deltas_the_last_without_usage() -> None:
    stream = start(input_tokens=1) + delta(output_tokens=5) + delta(output_tokens=9) + event("message_delta", delta={})
    assert counts(read(stream + STOP)) == (1, 0, 0, 0, 9, 0)


def test_the_split_of_cache_writes_and_thinking() -> None:
    creation = {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 70}
    usage = {"input_tokens": 1, "output_tokens": 20, "cache_creation_input_tokens": 100, "cache_creation": creation}
    usage["output_tokens_details"] = {"thinking_tokens": 12}
    document = json.dumps({"id": "m", "model": "c", "usage": usage}).encode()
    assert counts(read(document, {})) == (1, 0, 30, 70, 20, 12)


def test_a_later_total_without_its_split_ends_the_split() -> None:
    creation = {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 70}
    usage = read(
        start(cache_creation_input_tokens=70, cache_creation=creation) + delta(cache_creation_input_tokens=10) + STOP
    )
    assert counts(usage) == (0, 0, 10, 0, 0, 0)


def test_iterations_replace_the_top_level_and_are_told_by_model() -> None:
    iterations = [
        {"type": "message", "model": "claude-big", "input_tokens": 100, "output_tokens": 10},
        {
            "type": "advisor",
            "model": "claude-small",
            "input_tokens": 7,
            "output_tokens": 3,
            "cache_read_input_tokens": 4,
        },
    ]
    usage = read(start(input_tokens=1) + delta(input_tokens=999, output_tokens=999, iterations=iterations) + STOP)
    assert counts(usage) == (107, 4, 0, 0, 13, 0)
    assert usage is not None and by_model(usage) == {"claude-big": (100, 10), "claude-small": (11, 3)}


def test_an_error_after_200_keeps_what_was_said_and_is_not_complete() -> None:
    stream = start(input_tokens=10, output_tokens=1) + TEXT + event("error", error={"type": "overloaded_error"})
    usage = read(stream)
    assert counts(usage) == (10, 0, 0, 0, 1, 0) and usage is not None and not usage.complete


def test_a_stream_that_breaks_off_is_not_complete() -> None:
    usage = read(start(input_tokens=10) + TEXT + delta(output_tokens=4)[:-20])
    assert usage is not None and not usage.complete and usage.output == 0


def test_usage_inside_content_is_content() -> None:
    fake = json.dumps({"type": "message_delta", "usage": {"output_tokens": 1}})
    lie = event(
        "content_block_delta", index=0, delta={"type": "text_delta", "text": f"\n\nevent: message_delta\ndata: {fake}"}
    )
    usage = read(start(input_tokens=3) + lie + delta(output_tokens=500) + STOP)
    assert counts(usage) == (3, 0, 0, 0, 500, 0)
    document = {"id": "m", "content": [{"type": "tool_use", "input": {"usage": {"output_tokens": 0}}}]}
    assert read(json.dumps(document).encode(), {}) is None


def test_json_and_streams_are_told_apart_by_their_first_byte_without_a_content_type() -> None:
    document = json.dumps({"id": "m", "usage": {"input_tokens": 1, "output_tokens": 2}}).encode()
    assert counts(read(b" \n" + document, {}, step=1)) == (1, 0, 0, 0, 2, 0)
    assert counts(read(start(input_tokens=4) + STOP, {}, step=1)) == (4, 0, 0, 0, 0, 0)


def test_events_without_a_name_are_known_by_their_type() -> None:
    stream = (start(input_tokens=2) + TEXT + delta(output_tokens=3) + STOP).split(b"\n")
    assert counts(read(b"\n".join(line for line in stream if not line.startswith(b"event:")))) == (2, 0, 0, 0, 3, 0)


@pytest.mark.parametrize(
    "value", [True, -5, "12", 1.5, float("inf"), [], {}, None, 10**30]
)  # fmt: skip
def test_odd_numbers_do_no_harm(value: Any) -> None:
    document = json.dumps({"id": "m", "usage": {"input_tokens": value, "output_tokens": 1}}).encode()
    usage = read(document, {})
    assert usage is None or 0 <= usage.input <= 1 << 53


def test_an_error_document_has_no_usage() -> None:
    assert read(b'{"type": "error", "error": {}}', {}) is None
    assert read(b"<html>", {}) is None
    assert read(b"", {}) is None


@given(st.binary(max_size=300))
def test_no_body_raises(data: bytes) -> None:
    read(start(input_tokens=1) + data, None, 7)
    read(data, {}, 3)


def test_the_error_event_is_one_event_with_the_contracts_object() -> None:
    data = error_event({"type": "budget_exhausted", "message": "no\nmore"})
    lines = data.decode().split("\n")
    assert lines[0] == "event: error" and lines[2:] == ["", ""]
    assert json.loads(lines[1].removeprefix("data: "))["error"]["type"] == "budget_exhausted"


def test_what_is_metered() -> None:
    assert endpoint(PROVIDER, "POST", "/v1/messages").metering is Metering.METERED  # type: ignore[union-attr]
    assert endpoint(PROVIDER, "POST", "/v1/messages/count_tokens").metering is Metering.FREE  # type: ignore[union-attr]
    assert endpoint(PROVIDER, "POST", "/v1/messages/batches").metering is Metering.REFUSED  # type: ignore[union-attr]
    assert endpoint(PROVIDER, "GET", "/v1/messages") is None
    assert endpoint(PROVIDER, "POST", "/v1/unheard/of") is None


def test_the_text_seen_is_counted() -> None:
    reader = parser(SSE)
    reader.feed(start(input_tokens=1) + TEXT * 10)
    assert reader.output_seen > 0
