"""Usage of responses over a WebSocket: one row per response, many on a socket, none twice."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmon import wire
from agentmon.providers.declaration import Said
from agentmon.providers.sockets import Responses
from tests.support.provider_cases import LIE, R_USAGE

DONE_USAGE = {
    "input_tokens": 50, "output_tokens": 7, "total_tokens": 57,
    "input_token_details": {"cached_tokens": 10, "audio_tokens": 30},
    "output_token_details": {"text_tokens": 2, "audio_tokens": 5},
}  # fmt: skip


def said(kind: str, **more: Any) -> bytes:
    return json.dumps({"type": kind, "event_id": "e"} | more).encode()


def row(socket: Responses, message: bytes) -> wire.Usage | None:
    """The usage that this message of the provider tells."""
    heard = socket.said(message)
    return heard.usage if heard is not None else None


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
    heard = [socket.said(m) for m in quiet]
    assert [h and (h.kind, h.number) for h in heard] == [
        None, ("begun", "resp_1"), ("text", ""), ("text", ""), None, None,
    ]  # fmt: skip
    rows = [row(socket, done(n)) for n in (1, 2, 1, 3)]
    assert [r and r.request_id for r in rows] == ["resp_1", "resp_2", None, "resp_3"]
    first = rows[0]
    assert first is not None
    assert (first.model, first.input, first.cache_read, first.output, first.complete) == ("rt-1", 40, 10, 7, True)


@pytest.mark.parametrize("end", ["completed", "incomplete", "failed"])
def test_codex_ends_its_responses_as_the_stream_does(end: str) -> None:
    found = row(Responses(), said(f"response.{end}", response={"id": "r", "model": "m", "usage": R_USAGE}))
    assert found is not None and (found.model, found.request_id) == ("m", "r")
    assert (found.input, found.cache_read, found.cache_write_5m, found.cache_write_1h) == (25, 10, 10, 5)


def test_a_response_without_usage_is_told_when_it_comes_again_with_it() -> None:
    socket = Responses()
    assert row(socket, done(1, usage=None)) is None
    assert row(socket, done(1)) is not None


def test_what_is_remembered_is_bounded() -> None:
    socket = Responses()
    for n in range(5_000):
        row(socket, said("response.created", response={"id": f"resp_{n}"}))
        assert row(socket, done(n + 10_000)) is not None
    assert len(socket._told) <= 512
    assert row(socket, b'{"type": "response.done", "x": "' + b"x" * (16 << 20) + b'"}') is None
    assert socket.overflowed


@given(st.one_of(st.binary(max_size=200), st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(["response.done", "session.updated"]),
    lambda inner: st.dictionaries(st.sampled_from(["type", "response", "id", "usage", "session", "model"]), inner),
    max_leaves=8,
).map(lambda v: json.dumps(v).encode())))  # fmt: skip
def test_no_message_raises(message: bytes) -> None:
    socket = Responses()
    for data in (message, b'"response.' + message, b"response.create" + message):
        socket.said(data)
        socket.asked(data)
    assert socket.begun().input >= 0


def test_a_response_is_asked_for_with_all_that_was_said_before() -> None:
    socket = Responses("rt-1")
    assert socket.asked(said("conversation.item.create", item={"text": "x" * 2_700})) is None
    assert socket.asked(said("input_audio_buffer.append", audio="A" * 64_000)) is None
    first = socket.asked(said("response.create", response={"max_output_tokens": 77}))
    assert first is not None and first.event == "e" and first.estimate.model == "rt-1"
    assert first.estimate.output == 77 and 900 < first.estimate.input < 1_200
    assert socket.said(done(1)) is not None
    second = socket.asked(said("response.create", model="codex-1", previous_response_id="resp_1"))
    assert second is not None and second.estimate.model == "codex-1" and second.estimate.input > 57
    assert second.estimate.output == 4096
    assert socket.asked(said("session.update", note="response.create")) is None  # only its type counts
    assert socket.begun().input >= 57


def test_speech_written_down_is_a_row_of_its_own_and_an_error_names_what_it_is_about() -> None:
    socket = Responses()
    spoken = said(
        "conversation.item.input_audio_transcription.completed", item_id="i", content_index=0, transcript=LIE,
        usage={"type": "duration", "seconds": 3.2},
    )  # fmt: skip
    found = row(socket, spoken)
    assert found is not None and (found.input, found.output) == (40, 0)
    assert socket.said(spoken) is None
    assert socket.said(said("error", error={"event_id": "mine"})) == Said("error", event="mine")


@pytest.mark.parametrize(
    "message",
    [
        b'{"type": "response\\u002ecreate"}',
        b'{"a": "input_audio_buffer.append", "type": "response.create"}',
        b'{"type": "response.create", "x": "\\ud800"}',  # half a character: some readers take it
    ],
)
def test_a_response_is_asked_for_however_it_is_spelled(message: bytes) -> None:
    asked = Responses("rt-1").asked(message)
    assert asked is not None and asked.estimate.output == 4096
