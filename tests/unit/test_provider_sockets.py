"""Usage of responses over a WebSocket: one row per response, many on a socket, none twice."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmon.providers.sockets import Responses
from tests.support.provider_cases import LIE, R_USAGE

DONE_USAGE = {
    "input_tokens": 50, "output_tokens": 7, "total_tokens": 57,
    "input_token_details": {"cached_tokens": 10, "audio_tokens": 30},
    "output_token_details": {"text_tokens": 2, "audio_tokens": 5},
}  # fmt: skip


def said(kind: str, **more: Any) -> bytes:
    return json.dumps({"type": kind, "event_id": "e"} | more).encode()


def done(number: int, kind: str = "response.done", usage: Any = DONE_USAGE) -> bytes:
    return said(kind, response={"id": f"resp_{number}", "usage": usage})


def test_each_response_of_a_realtime_session_is_a_row() -> None:
    socket = Responses()
    quiet = [
        said("session.created", session={"model": "rt-1"}),
        said("response.created", response={"id": "resp_1", "usage": None}),
        said("response.output_audio.delta", delta="AAAA"),
        said("response.output_text.delta", delta=LIE),
        said("conversation.item.created", item={"usage": DONE_USAGE}),
        b"\x00\x01 sound",
    ]
    assert [socket.message(m) for m in quiet] == [None] * len(quiet) and socket.open == {"resp_1"}
    rows = [socket.message(done(n)) for n in (1, 2, 1, 3)]
    assert [row and row.request_id for row in rows] == ["resp_1", "resp_2", None, "resp_3"]
    first = rows[0]
    assert first is not None and socket.open == set()
    assert (first.model, first.input, first.cache_read, first.output, first.complete) == ("rt-1", 40, 10, 7, True)


@pytest.mark.parametrize("end", ["completed", "incomplete", "failed"])
def test_codex_ends_its_responses_as_the_stream_does(end: str) -> None:
    row = Responses().message(said(f"response.{end}", response={"id": "r", "model": "m", "usage": R_USAGE}))
    assert row is not None and (row.model, row.request_id) == ("m", "r")
    assert (row.input, row.cache_read, row.cache_write_5m, row.cache_write_1h) == (25, 10, 10, 5)


def test_a_response_without_usage_is_told_when_it_comes_again_with_it() -> None:
    socket = Responses()
    assert socket.message(done(1, usage=None)) is None
    assert socket.message(done(1)) is not None


def test_what_is_remembered_is_bounded() -> None:
    socket = Responses()
    for n in range(5_000):
        socket.message(said("response.created", response={"id": f"resp_{n}"}))
        assert socket.message(done(n + 10_000)) is not None
    assert len(socket.open) <= 512 and len(socket._told) <= 512
    assert socket.message(b'{"type": "response.done", "x": "' + b"x" * (16 << 20) + b'"}') is None
    assert socket.overflowed


@given(st.one_of(st.binary(max_size=200), st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(["response.done", "session.updated"]),
    lambda inner: st.dictionaries(st.sampled_from(["type", "response", "id", "usage", "session", "model"]), inner),
    max_leaves=8,
).map(lambda v: json.dumps(v).encode())))  # fmt: skip
def test_no_message_raises(message: bytes) -> None:
    Responses().message(b'"response.' + message)
    Responses().message(message)
