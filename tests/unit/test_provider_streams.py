"""Every parser over every regular answer, however it comes: cut, compressed, broken off, with noise between its events.

METERING torture cases 1–8, 14–20 for all providers at once; bounded memory; nothing raises.
"""

from __future__ import annotations

import gzip
import itertools
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmon import wire
from agentmon.providers import match
from agentmon.providers.declaration import Metering
from agentmon.providers.registry import load
from agentmon.providers.stream import SseParser
from agentmon.proxy.tap import Answer, Tap
from tests.support.provider_cases import (
    CASES,
    G_CHUNKS,
    Case,
    aws_chunk,
    aws_event,
    chat_chunk,
    data,
    frame,
    named,
    say,
)

PROVIDERS = load()
every_case = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
streamed = pytest.mark.parametrize("case", [c for c in CASES.values() if c.sse], ids=lambda c: c.name)


def tap_of(case: Case, coding: str = "") -> Tap:
    found = match.endpoint(PROVIDERS[case.provider], case.method, case.path)
    assert found is not None and found.metering is Metering.METERED and found.parser is not None
    return Tap(found.parser(case.headers), Answer(coding, case.sse), None, lambda _usage: None)


def run(case: Case, pieces: Iterable[bytes], coding: str = "", *, ended: bool = True) -> wire.Usage | None:
    """What the proxy would settle; what passes is what came."""
    tap = tap_of(case, coding)
    for piece in pieces:
        assert tap(piece) in (piece, [])
    if ended:
        tap.ended()
    usage = tap.close()
    return usage if usage is None or not tap.failed else None


def row(usage: wire.Usage | None) -> tuple[int, ...]:
    assert usage is not None and usage.source == "wire"
    written = usage.cache_write_5m, usage.cache_write_1h
    return usage.input, usage.cache_read, *written, usage.output, usage.reasoning


def right(case: Case, usage: wire.Usage | None) -> None:
    assert row(usage) == case.row and usage is not None and usage.complete
    assert usage.model == case.model and (usage.request_id == case.id or usage.request_id.startswith("batch:"))


def cut(body: bytes, places: Iterable[int]) -> list[bytes]:
    marks = [0, *sorted({place % (len(body) + 1) for place in places}), len(body)]
    return [body[a:b] for a, b in itertools.pairwise(marks)]


@every_case
def test_whole_and_byte_by_byte(case: Case) -> None:
    right(case, run(case, [case.body]))
    right(case, run(case, [case.body[i : i + 1] for i in range(len(case.body))]))


@every_case
@settings(max_examples=8)
@given(places=st.lists(st.integers(0, 1 << 16), max_size=20))
def test_any_chunking(case: Case, places: list[int]) -> None:
    right(case, run(case, cut(case.body, places)))


CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
    "gzip, zstd": lambda body: zstandard.compress(gzip.compress(body)),
}


@every_case
@pytest.mark.parametrize("coding", CODINGS)
def test_any_coding(case: Case, coding: str) -> None:
    packed = CODINGS[coding](case.body)
    right(case, run(case, [packed[i : i + 7] for i in range(0, len(packed), 7)], coding))
    right(case, run(case, [packed[:1], packed[1:]], coding if coding not in ("gzip", "zstd") else ""))  # sniffed
    broken = run(case, [packed[: len(packed) // 3]], coding, ended=False)
    assert broken is None or not broken.complete


@every_case
@settings(max_examples=12)
@given(place=st.integers(0, 1 << 16))
def test_what_breaks_off_is_never_complete(case: Case, place: int) -> None:
    """Unless all that counts has come: then it is the same row."""
    end = place % len(case.body)
    usage = run(case, [case.body[:end]], ended=False)
    if usage is not None and usage.complete:
        assert row(usage) == case.row


@every_case
def test_it_breaks_off_before_its_usage(case: Case) -> None:
    usage = run(case, [case.body[: len(case.body) // 3]], ended=False)
    assert usage is None or not usage.complete


PING = b'event: ping\ndata: {"type": "ping"}\n\n'
NOISE = [b": comment\n\n", b": ping\r\n\r\n", PING, b"\n\n", b"id: 7\nretry: 1\n\n"]


@streamed
@settings(max_examples=8)
@given(noise=st.lists(st.sampled_from(NOISE), min_size=30, max_size=30), ends=st.sampled_from([b"\n", b"\r", b"\r\n"]))
def test_noise_between_events_and_any_line_end(case: Case, noise: list[bytes], ends: bytes) -> None:
    events = case.body.replace(b"\r\n", b"\n").split(b"\n\n")
    body = b"\n\n".join(events).replace(b"\n", ends)
    right(case, run(case, [body[i : i + 11] for i in range(0, len(body), 11)]))
    mixed = b"".join(extra + event + b"\n\n" for extra, event in zip(noise, events, strict=False) if event)
    right(case, run(case, [b"\xef\xbb\xbf" + mixed]))


@streamed
def test_the_last_event_counts_without_its_blank_line_and_without_a_content_type(case: Case) -> None:
    right(case, run(case, [case.body.rstrip(b"\r\n")]))
    untyped = Case(**{f: getattr(case, f) for f in case.__dataclass_fields__} | {"headers": {}})
    right(case, run(untyped, [case.body[:3], case.body[3:]]))
    assert tap_of(untyped).may_change_length


@every_case
@settings(max_examples=10)
@given(junk=st.binary(max_size=300), place=st.integers(0, 1 << 16))
def test_no_bytes_raise(case: Case, junk: bytes, place: int) -> None:
    end = place % len(case.body)
    for body in (junk, case.body[:end] + junk, case.body[:end] + junk + case.body[end:]):
        tap = tap_of(case)
        for i in range(0, len(body), 13):
            tap(body[i : i + 13])
        tap.close()
        # it began like gzip or zstd, or is binary framing with sums of its own
        assert not tap.failed or tap.failed.startswith(("undecodable", "its framing is damaged"))


ODD: list[Any] = [None, True, -1, "7", 1.5, 1e400, [], {}, [[]], {"a": None}, 10**30]


@every_case
@settings(max_examples=10)
@given(value=st.sampled_from(ODD), key=st.integers(0, 1000))
def test_odd_values_do_no_harm(case: Case, value: Any, key: int) -> None:
    """Any member of any JSON object in the answer is something else."""
    quoted = sorted({m for m in case.body.split(b'"')[1::2] if m.isascii() and m.replace(b"_", b"").isalpha()})
    if not quoted:
        return
    name = b'"' + quoted[key % len(quoted)] + b'":'
    odd = repr(value).replace("None", "null").replace("True", "true").replace("'", '"').replace("inf", "1e999").encode()
    tap = tap_of(case)
    tap(case.body.replace(name, name + b" " + odd + b', "was":'))
    usage = tap.close()
    assert tap.failed in {"", "its framing is damaged"}  # binary framing has sums of its own
    assert usage is None or min(row(usage)) >= 0


def test_a_parser_that_leaves_something_out_cannot_be_made() -> None:
    for left_out in ({"usage"}, {"_event"}):
        said = {name: lambda *_: None for name in {"usage", "_event"} - left_out}
        with pytest.raises(TypeError, match=left_out.pop()):
            type("Partial", (SseParser,), said)()


# ── memory ──


def endless(kind: str) -> tuple[Case, bytes]:
    """A case and 4 MiB of small events of its kind."""
    one = {
        "claude stream": named("content_block_delta", delta={"type": "text_delta", "text": "x" * 50}),
        "openai chat stream": say("x" * 50),
        "openai responses stream": named("response.output_text.delta", delta="x" * 50),
        "gemini sse": data(G_CHUNKS[0]),
        "gemini array": b'{"candidates": [{"content": "' + b"x" * 4000 + b'\\"]"}]}, ',
        "bedrock converse stream": aws_event("contentBlockDelta", {"delta": {"text": "x" * 50}}),
        "bedrock invoke claude stream": aws_chunk({"type": "content_block_delta", "delta": {"text": "x" * 50}}),
        "openai images stream": named("image_generation.partial_image", b64_json="x" * 50),
    }[kind]
    body = one * ((4 << 20) // len(one))
    return CASES[kind], body if kind != "gemini array" else b"[" + body


ENDLESS = [
    "claude stream", "openai chat stream", "openai responses stream", "gemini sse", "gemini array",
    "bedrock converse stream", "bedrock invoke claude stream", "openai images stream",
]  # fmt: skip


@pytest.mark.parametrize("kind", ENDLESS)
def test_at_most_64_KiB_are_kept_of_a_stream(kind: str) -> None:
    case, body = endless(kind)
    tap = tap_of(case)
    tap(body[: 1 << 16])
    pieces = [body[i : i + 4096] for i in range(1 << 16, len(body), 4096)]
    tracemalloc.start()
    try:
        for piece in pieces:
            tap(piece)
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 64 << 10 and most < 256 << 10
    assert not tap.failed


def oversized(kind: str) -> tuple[Case, Iterable[bytes]]:
    """An event of 64 MiB in the middle of an otherwise regular stream."""
    case = CASES[kind]
    megabyte = b"x" * (1 << 20)
    if kind.startswith("bedrock"):
        whole = frame(megabyte * 64, message_type="event", event_type="contentBlockDelta")
        return case, [*(whole[i : i + (1 << 20)] for i in range(0, len(whole), 1 << 20)), case.body]
    if kind == "gemini array":
        return case, [b'[{"x": "', *[megabyte] * 64, b'"},', case.body[1:]]
    if kind == "claude batch":
        return case, [*[megabyte] * 64, b"\n", case.body]
    return case, [b"data: ", *[megabyte] * 64, b"\n\n", case.body]


@pytest.mark.parametrize(
    "kind", ["claude stream", "openai chat stream", "gemini sse", "gemini array", "claude batch",
             "bedrock converse stream", "codex stream"]
)  # fmt: skip
def test_an_event_of_64_MiB_passes_flagged_and_what_follows_is_read(kind: str) -> None:
    case, pieces = oversized(kind)
    tap = tap_of(case)
    for piece in pieces:
        assert tap(piece) == piece
    tap.ended()
    usage = tap.close()
    assert "too large" in tap.failed
    assert row(usage) == case.row


# ── the binary stream's own faults ──


def test_a_wrong_checksum_ends_reading() -> None:
    case = CASES["bedrock converse stream"]
    for place in (2, 9, 20, len(case.body) - 20, len(case.body) - 2):
        damaged = bytearray(case.body)
        damaged[place] ^= 1
        usage = run(case, [bytes(damaged)])
        assert usage is None or not usage.complete


@pytest.mark.parametrize("kind", ["converse stream", "invoke claude stream", "invoke other stream"])
def test_an_exception_in_the_binary_stream_is_no_regular_end(kind: str) -> None:
    case = CASES[f"bedrock {kind}"]
    failure = frame(b'{"message": "slow down"}', message_type="exception", exception_type="throttlingException")
    usage = run(case, [case.body, failure])
    assert usage is not None and not usage.complete


def test_a_chunk_that_is_no_base64_is_no_regular_end() -> None:
    case = CASES["bedrock invoke claude stream"]
    usage = run(case, [case.body, aws_event("chunk", {"bytes": "**"})])
    assert usage is not None and not usage.complete


def test_headers_that_do_not_add_up_end_reading() -> None:
    head = b"\x04name\x07\x00\xff"
    front = struct.pack(">II", 16 + len(head), len(head))
    front += struct.pack(">I", zlib.crc32(front))
    message = front + head
    message += struct.pack(">I", zlib.crc32(message))
    usage = run(CASES["bedrock converse stream"], [message, CASES["bedrock converse stream"].body])
    assert usage is None


# ── what a stream says that is not regular ──


@pytest.mark.parametrize(
    ("kind", "event"),
    [
        ("claude stream", named("error", error={"type": "overloaded_error"})),
        ("openai chat stream", chat_chunk(error={"message": "x"}, choices=[])),
        ("openai responses stream", named("error", message="x")),
        ("openai transcription stream", named("error", error={"message": "x"})),
        ("openrouter stream", data({"error": {"code": 502}, "choices": [{"finish_reason": "error", "delta": {}}]})),
        ("gemini sse", data({"error": {"code": 503}})),
        ("gemini array", None),
    ],
)
def test_an_error_after_200_is_no_regular_end(kind: str, event: bytes | None) -> None:
    case = CASES[kind]
    body = event + case.body if event is not None else case.body.replace(b"[{", b'[{"error": {}}, {', 1)
    usage = run(case, [body])
    assert usage is not None and not usage.complete and row(usage) == case.row


@pytest.mark.parametrize("kind", ["openai responses stream", "codex stream"])
def test_a_null_usage_says_nothing(kind: str) -> None:
    case = CASES[kind]
    assert b'"usage": {' in case.body
    head, _, _ = case.body.rpartition(b'"usage": {')
    assert run(case, [head + b'"usage": null}}\n\n']) is None


def test_gemini_without_a_total_adds_what_was_said_and_thought() -> None:
    case = CASES["gemini json"]
    usage = run(case, [case.body.replace(b"totalTokenCount", b"x")])
    assert row(usage) == (34, 20, 0, 0, 15, 6)


def test_a_gemini_stream_is_complete_only_when_its_body_ended() -> None:
    case = CASES["gemini sse"]
    usage = run(case, [case.body], ended=False)
    assert usage is not None and not usage.complete and row(usage) == case.row


def test_a_replayed_batch_is_the_same_request_and_another_one_is_not() -> None:
    case = CASES["claude batch"]
    lines = case.body.split(b"\n")
    first, again = run(case, [case.body]), run(case, [b"\n".join(reversed(lines))])
    fewer = run(case, [b"\n".join(lines[1:2])])
    assert first is not None and again is not None and fewer is not None
    assert first.request_id == again.request_id != fewer.request_id
    broken = run(case, [case.body[:-10]])
    assert broken is not None and not broken.complete
    assert run(case, [case.body], ended=False).complete is False  # type: ignore[union-attr]


def test_a_header_of_an_unknown_type_ends_reading() -> None:
    head = b"\x01a\x0c\x00"
    front = struct.pack(">II", 16 + len(head), len(head))
    front += struct.pack(">I", zlib.crc32(front))
    message = front + head + struct.pack(">I", zlib.crc32(front + head))
    case = CASES["bedrock converse stream"]
    assert run(case, [message, case.body]) is None and run(case, [message + b"x", case.body]) is None


def test_more_batch_results_than_a_batch_can_have_are_not_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentmon.providers.anthropic_batch._MOST", 2)
    case = CASES["claude batch"]
    usage = run(case, [case.body])
    assert usage is not None and not usage.complete and usage.input == 8


def test_geminis_error_is_a_chunk_its_sdk_raises_on() -> None:
    provider = PROVIDERS["gemini"]
    assert provider.error_body is not None
    said = provider.error_body({"type": "budget_exhausted", "message": "no\nmore"})
    assert said.startswith(b'data: {"error":{"code":403,"message":"no\\nmore"') and said.endswith(b"}\n\n")
    case = CASES["gemini sse"]
    usage = run(case, [case.body + said])
    assert usage is not None and not usage.complete
