"""METERING's torture cases over real sockets through a real worker, those that no other file has.

docs/testing.md says where each of them is tested. What the client gets is what the provider sent, byte for byte, and
there is one row.
"""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import operator
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import brotli
import pytest
import zstandard

from agentmon import wire
from tests.support.provider_cases import named
from tests.support.proxy_h2 import HTTP2, h2_request
from tests.support.proxy_rig import Response, Rig
from tests.support.proxy_talk import (
    CLAUDE,
    DELTA,
    OPENAI,
    SPENT,
    ask,
    begin,
    last_row,
    message,
    opening,
    read_all,
    read_until,
    sse,
)
from tests.support.proxy_upstream import chunked, reply

pytestmark = pytest.mark.root

_PATH = "/v1/messages"
_IDS = itertools.count(1)


@pytest.fixture(params=["HTTP/1.1", "HTTP/2 to HTTP/1.1", "HTTP/2"])
def spoken(request: pytest.FixtureRequest, running: Rig) -> Iterator[str]:
    """What is spoken on both sides of the worker."""
    running.upstream.speak(*(["h2"] if request.param == "HTTP/2" and HTTP2 else ["http/1.1"]))
    yield request.param
    running.upstream.speak("http/1.1")


def streamed(
    rig: Rig, spoken: str, body: bytes, step: int, headers: dict[str, str] | None = None, **asked: Any
) -> Response:
    """The answer to one streamed request; it has to be `body`."""
    pieces = [body[i : i + step] for i in range(0, len(body), step)]
    rig.upstream.script = chunked(list(pieces), headers)
    question = ask(stream=True, **asked)
    by_h1 = spoken == "HTTP/1.1"
    answer = rig.request(CLAUDE, _PATH, question) if by_h1 else h2_request(rig, _PATH, question)
    assert (answer.status, answer.body, answer.broken) == (200, body, False)
    assert (rig.upstream.seen[-1].raw_head == b"HTTP/2") == (spoken == "HTTP/2" and HTTP2)
    return answer


def stream(*deltas: dict[str, Any], **start: int) -> bytes:
    first = {"id": f"msg_torture_{next(_IDS)}", "model": "claude-x", "usage": {"input_tokens": 20} | start}
    ends = b"".join(sse("message_delta", delta={}, usage=delta) for delta in deltas)
    return sse("message_start", message=first) + DELTA + ends + sse("message_stop")


def fold(body: bytes) -> bytes:
    """The same events with their data on several lines, joined by LF where JSON does not mind."""
    return body.replace(b', "', b',\ndata: "')


_ENDS = (b"\n", b"\r\n", b"\r", b"\r\n")  # a CR is never followed by a lone LF, which would be its own
FORMS = {
    "CRLF": lambda body: body.replace(b"\n", b"\r\n"),
    "CR": lambda body: body.replace(b"\n", b"\r"),
    "mixed": lambda body: b"".join(map(operator.add, body.split(b"\n"), itertools.cycle(_ENDS))),
    "BOM": lambda body: b"\xef\xbb\xbf" + body,
    "comments": lambda body: b": hello\n\n" + body.replace(b"\n\n", b"\n: still there\n\n: \n"),
    "no space": lambda body: body.replace(b"data: ", b"data:").replace(b"event: ", b"event:"),
    "several data lines": fold,
    "no last blank line": lambda body: body.rstrip(b"\n"),
    "no last line end, CR": lambda body: body.rstrip(b"\n").replace(b"\n", b"\r"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_way_to_write_the_same_events(rig: Rig, spoken: str, form: str) -> None:
    """Cases 1, 2, 3."""
    before = len(rig.rows(0))
    streamed(rig, spoken, FORMS[form](stream({"output_tokens": 11})), 1)
    assert last_row(rig, before)[2:] == (20, 0, 0, 11, "wire", 1)


def test_an_explicit_zero_after_a_start_that_was_none(rig: Rig, spoken: str) -> None:
    """Case 6."""
    before = len(rig.rows(0))
    streamed(rig, spoken, stream({"cache_read_input_tokens": 0, "output_tokens": 5}, cache_read_input_tokens=900), 9)
    assert last_row(rig, before)[2:] == (20, 0, 0, 5, "wire", 1)


def test_an_error_after_200_and_some_text(rig: Rig, spoken: str) -> None:
    """Case 9: the request is over, and not as it should be: what was said counts, at least what was held."""
    before = len(rig.rows(0))
    streamed(
        rig,
        spoken,
        opening() + DELTA + sse("error", error={"type": "overloaded_error", "message": "x"}),
        50,
        max_tokens=70,
    )
    assert last_row(rig, before)[2:] == (20, 0, 0, 70, "estimate", 0)
    assert rig.nothing_held()


@pytest.mark.parametrize("end", ["completed", "incomplete", "failed"])
def test_a_response_that_ends_without_usage_is_charged_its_hold(rig: Rig, end: str) -> None:
    """Case 17."""
    before = len(rig.rows(0))
    whole = {"id": f"resp_{end}", "object": "response", "model": "gpt-x", "usage": None, "output": []}
    body = named("response.created", response=whole) + named(f"response.{end}", response=whole)
    rig.upstream.script = chunked([body])
    asked = json.dumps({"model": "gpt-x", "input": "hi", "stream": True, "max_output_tokens": 60}).encode()
    assert rig.request(OPENAI, "/v1/responses", asked).body == body
    assert last_row(rig, before)[5:] == (60, "estimate", 0)


def packed(coding: str, body: bytes) -> bytes:
    half = len(body) // 2
    return {
        "gzip": lambda: gzip.compress(body),
        "gzip of two members": lambda: gzip.compress(body[:half]) + gzip.compress(body[half:]),
        "deflate": lambda: zlib.compress(body),
        "deflate, raw": lambda: zlib.compress(body, wbits=-15),
        "br": lambda: brotli.compress(body),
        "zstd": lambda: zstandard.compress(body),
        "zstd of two frames": lambda: zstandard.compress(body[:half]) + zstandard.compress(body[half:]),
        "gzip, br": lambda: brotli.compress(gzip.compress(body)),
        "gzip, not said": lambda: gzip.compress(body),
        "gzip, not so": lambda: body,
    }[coding]()


SAID = {"gzip, not said": "", "gzip, not so": "gzip", "gzip, br": "gzip, br"}
CODINGS = [
    "gzip", "gzip of two members", "deflate", "deflate, raw", "br", "zstd", "zstd of two frames", "gzip, br",
    "gzip, not said", "gzip, not so",
]  # fmt: skip


@pytest.mark.parametrize("coding", CODINGS)
def test_every_coding_and_what_is_left_of_it_when_it_breaks_off(rig: Rig, spoken: str, coding: str) -> None:
    """Case 19."""
    before = len(rig.rows(0))
    said = SAID.get(coding, coding.split(",")[0].split(" ")[0])
    streamed(rig, spoken, packed(coding, stream({"output_tokens": 13})), 7, {"content-encoding": said})
    assert last_row(rig, before)[2:] == (20, 0, 0, 13, "wire", 1)
    broken = packed(coding, stream({"output_tokens": 13}))
    streamed(rig, spoken, broken[: len(broken) // 2], 7, {"content-encoding": said}, max_tokens=80)
    assert last_row(rig, before + 1)[5:] == (80, "estimate", 0)
    assert rig.nothing_held()


def resident_kb(rig: Rig) -> int:
    status = Path(f"/proc/{rig.proxy.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])  # the most it ever was


@functools.cache
def bomb(coding: str) -> bytes:
    """160 MiB of zeros in a few kilobytes: more than is undone of any answer."""
    zeros = bytes(1 << 20)
    if coding == "gzip":
        deflating = zlib.compressobj(1, wbits=31)
        return b"".join(deflating.compress(zeros) for _ in range(160)) + deflating.flush()
    if coding == "br":
        brotlied = brotli.Compressor(quality=5)
        return b"".join(brotlied.process(zeros) for _ in range(160)) + brotlied.finish()
    framing = zstandard.ZstdCompressor().compressobj()
    return b"".join(framing.compress(zeros) for _ in range(160)) + framing.flush()


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_a_bomb_passes_in_bounded_memory_and_its_hold_is_charged(rig: Rig, spoken: str, coding: str) -> None:
    """Case 20."""
    before, most_kb = len(rig.rows(0)), resident_kb(rig)
    streamed(rig, spoken, bomb(coding), 1 << 14, {"content-encoding": coding}, max_tokens=77)
    assert last_row(rig, before)[5:] == (77, "estimate", 0)
    assert resident_kb(rig) - most_kb < 64 << 10, "the worker held the bomb's content"


def test_trailers_pass_or_go_and_the_next_request_is_not_disturbed(rig: Rig) -> None:
    """Case 21."""
    before = len(rig.rows(0))
    body = stream({"output_tokens": 3})

    async def trailing(_seen: Any, writer: Any) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"%x\r\n%s\r\n0\r\nX-Usage: {}\r\n\r\n" % (len(body), body))

    rig.upstream.script = trailing
    with rig.connect(CLAUDE) as sock:
        assert rig.request(CLAUDE, _PATH, ask(stream=True), sock=sock).body == body
        assert last_row(rig, before)[2:] == (20, 0, 0, 3, "wire", 1)
    rig.upstream.script = reply(200, message(4, 2))
    assert rig.request(CLAUDE, _PATH, ask()).status == 200
    assert last_row(rig, before + 1)[2:] == (4, 0, 0, 2, "wire", 1)


def test_a_view_that_is_changed_while_a_stream_is_cut_loses_neither(rig: Rig) -> None:
    """Case 26: rules of a running bottle are changed in the second in which its budget is spent."""
    before = len(rig.rows(0))
    never = threading.Event()
    rig.upstream.script = chunked([opening(), *[DELTA] * 3, never])
    sock = begin(rig, ask(stream=True, max_tokens=90))
    read_until(sock, b"message_start")
    for number in range(20):
        rules = ("api.anthropic.com:443", f"h{number}.example.org:443")
        view = wire.BottleView(**{f: getattr(rig.view, f) for f in rig.view.__struct_fields__} | {"rules": rules})
        if number >= 10:
            view = wire.BottleView(**{f: getattr(view, f) for f in view.__struct_fields__} | {"mode": "cut"})
        assert rig.ask(wire.SetBottle(rig.control.next_id(), view)).error == ""
        if number == 10:
            rig.cut(SPENT)
    rest = read_all(sock)
    never.set()
    assert rest.count(b"event: error") == 1 and b"budget_exhausted" in rest
    assert rig.upstream.aborted.wait(10)
    assert last_row(rig, before)[2:] == (20, 0, 0, 90, "estimate", 0)
    assert rig.request(CLAUDE, _PATH, ask()).json["error"]["type"] == "budget_exhausted"
    assert rig.nothing_held() and len(rig.rows(before)) == before + 1
