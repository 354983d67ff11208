"""wire.py: every message survives its frame, in any chunking; anything else ends the stream."""

from __future__ import annotations

import struct
import typing

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmon import wire

MESSAGES = typing.get_args(wire.AnyMessage)
_SAMPLES = {
    wire.BottleView: wire.BottleView(slot=16, bottle="b", run="r", addr4="10.213.0.16", rules=("a.example",)),
    wire.Usage: wire.Usage("claude", raw=b"{}"),
    wire.BudgetDef: wire.BudgetDef("claude", 5),
}


def sample(kind: type) -> wire.Message:
    def value(field: msgspec.structs.FieldInfo) -> object:
        if field.type in _SAMPLES:
            return _SAMPLES[field.type]
        plain = {int: 3, str: "text", bool: True, bytes: b"b", typing.Any: [1]}
        return plain.get(field.type) or typing.get_origin(field.type)()

    message: wire.Message = kind(**{f.name: value(f) for f in msgspec.structs.fields(kind) if f.required})
    return message


@pytest.mark.parametrize("kind", MESSAGES)
def test_every_message_survives_its_frame(kind: type) -> None:
    message = sample(kind)
    assert wire.Frames().feed(wire.encode(message)) == [message]


def test_every_message_class_is_in_the_union() -> None:
    assert set(wire.Message.__subclasses__()) == set(MESSAGES)


def test_a_commit_keeps_its_purpose_and_ports() -> None:
    commit = wire.Commit(1, 16, "a.example", ("203.0.113.1",), 40, "service", (443,))
    assert wire.Frames().feed(wire.encode(commit)) == [commit]
    assert wire.Commit(1, 16, "a", (), 1).purpose == "bottle"


@given(st.lists(st.integers(1, 20), max_size=30))
def test_any_chunking(cuts: list[int]) -> None:
    messages = [wire.Ack(i, error="e" * i) for i in range(4)]
    data = b"".join(wire.encode(m) for m in messages)
    frames, out = wire.Frames(), []
    for cut in cuts:
        out += frames.feed(data[:cut])
        data = data[cut:]
    assert out + frames.feed(data) == messages


def framed(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", wire.MAX_FRAME + 1),
        struct.pack(">I", 1) + b"\xc1",
        struct.pack(">I", 0),
        framed(msgspec.msgpack.encode({"t": "Nobody"})),
        framed(msgspec.msgpack.encode({"t": "Ack"})),
        framed(msgspec.msgpack.encode({"t": "Ack", "id": "1"})),
    ],
)
def test_what_is_no_message_is_an_error(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.Frames().feed(data)


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    frames = wire.Frames()
    try:
        for message in frames.feed(data):
            assert isinstance(message, wire.Message)
    except wire.WireError:
        pass
