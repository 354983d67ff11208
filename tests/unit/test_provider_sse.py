"""Events out of bytes: METERING "Parsing rules" and torture cases 1–3, 20."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmon.providers.sse import EventGate, SseReader


def events(chunks: list[bytes], cap: int = 1 << 20) -> list[tuple[str, bytes]]:
    out: list[tuple[str, bytes]] = []
    reader = SseReader(lambda name, data: out.append((name, data)), cap)
    for chunk in chunks:
        reader.feed(chunk)
    reader.close()
    return out


def cut(data: bytes, places: list[int]) -> list[bytes]:
    marks = [0, *sorted({p % (len(data) + 1) for p in places}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(marks)]


STREAM = (
    "\ufeffevent: a\ndata: {}\n\n"  # BOM
    ": comment\r\nevent:b\r\ndata:no space\r\ndata: second 🙂 line\r\n\r\n"
    "data\rid: 7\rdata:  two spaces\r\r"
    "event: without data\n\n"
    "data: last, no blank line"
).encode()
WANTED = [
    ("a", b"{}"),
    ("b", "no space\nsecond 🙂 line".encode()),
    ("", b"\n two spaces"),
    ("", b"last, no blank line"),
]


def test_a_stream_with_everything_in_it() -> None:
    assert events([STREAM]) == WANTED
    assert events([STREAM[i : i + 1] for i in range(len(STREAM))]) == WANTED


@given(st.lists(st.integers(min_value=0, max_value=1 << 16), max_size=12))
def test_any_chunking_gives_the_same_events(places: list[int]) -> None:
    assert events(cut(STREAM, places)) == WANTED


@given(
    st.lists(st.sampled_from([b"data: x\n", b"\r", b"\n", b"\r\n", b"event: e\r", b": c\n", b"data:y"]), max_size=12)
)
def test_any_mixture_of_line_ends_is_independent_of_chunking(parts: list[bytes]) -> None:
    data = b"".join(parts)
    assert events([data]) == events([data[i : i + 1] for i in range(len(data))])


def test_the_same_lines_mean_the_same_with_every_line_end() -> None:
    plain = "event: a\ndata: 1\ndata: 2\n\ndata: 3\n\n"
    wanted = [("a", b"1\n2"), ("", b"3")]
    assert all(events([plain.replace("\n", end).encode()]) == wanted for end in ("\n", "\r", "\r\n"))


@pytest.mark.parametrize("shape", ["one line", "many lines"])
def test_an_event_over_the_cap_is_dropped_flagged_and_the_next_one_counts(shape: str) -> None:
    out: list[tuple[str, bytes]] = []
    reader = SseReader(lambda name, data: out.append((name, data)), 1000)
    big = b"data: " + b"x" * 5000 if shape == "one line" else b"data: 0123456789\n" * 300
    for i in range(0, len(big), 100):
        reader.feed(big[i : i + 100])
    assert len(reader._line) + sum(map(len, reader._data)) <= 1000
    reader.feed(b"\n\ndata: ok\n\n")
    reader.close()
    assert reader.overflowed and out == [("", b"ok")]


def test_where_in_an_event_the_stream_stands() -> None:
    reader = SseReader(lambda _name, _data: None)
    assert not reader.mid_event
    reader.feed(b"event: a\nda")
    assert reader.mid_event and reader.mid_line
    reader.feed(b"ta: 1\n")
    assert reader.mid_event and not reader.mid_line
    reader.feed(b"\n")
    assert not reader.mid_event


# ── the gate ──


def gated(chunks: list[bytes], hold: int = 1 << 16) -> bytes:
    gate = EventGate(lambda raw: b"" if b"secret" in raw else raw, hold)
    return b"".join([gate.feed(c) for c in chunks] + [gate.flush()])


GATED = b"data: a\n\ndata: secret\n\ndata: b\r\n\r\ndata: secret\r\rdata: c\n\n: tail"


@given(st.lists(st.integers(min_value=0, max_value=1 << 16), max_size=12))
def test_the_gate_leaves_out_whole_events_and_nothing_else(places: list[int]) -> None:
    assert gated(cut(GATED, places)) == b"data: a\n\ndata: b\r\n\r\ndata: c\n\n: tail"


@given(st.binary(max_size=200), st.lists(st.integers(min_value=0, max_value=200), max_size=6))
def test_what_is_not_left_out_is_byte_identical(data: bytes, places: list[int]) -> None:
    assert gated(cut(data, places), hold=16) == data or b"secret" in data


def test_an_event_that_outgrows_the_gate_passes_undivided() -> None:
    long = b"data: secret" + b"x" * 300 + b"\n\n"
    assert gated([long[:50], long[50:], b"data: secret\n\n"], hold=40) == long


def test_a_last_event_without_its_blank_line_is_examined_too() -> None:
    assert gated([b"data: a\n\n", b"data: secret"]) == b"data: a\n\n"
