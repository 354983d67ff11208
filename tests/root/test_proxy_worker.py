"""A proxy worker as a process: what passes, is charged, and when. Real ledger, real TLS."""

from __future__ import annotations

import gzip
import json
import threading
from typing import Any

import pytest

from tests.support import proxy_rig
from tests.support.proxy_rig import Rig
from tests.support.proxy_talk import (
    CLAUDE,
    DELTA,
    OPENAI,
    ask,
    begin,
    chat_stream,
    closing,
    last_row,
    message,
    opening,
    read_until,
)
from tests.support.proxy_upstream import chunked, reply

pytestmark = pytest.mark.root


def test_a_plain_message_passes_unchanged_and_is_charged_from_the_wire(rig: Rig) -> None:
    before = len(rig.rows(0))
    answer = message(11, 7)
    rig.upstream.script = reply(200, answer, {"request-id": "req_1"})
    response = rig.request(
        CLAUDE, "/v1/messages?beta=true", ask(), headers={"X-Api-Key": "k", "Accept-Encoding": "gzip"}
    )
    assert (response.status, response.body, response.headers["request-id"]) == (200, answer, "req_1")
    seen = rig.upstream.seen[-1]
    assert (seen.target, seen.body, seen.headers["x-api-key"]) == ("/v1/messages?beta=true", ask(), "k")
    assert seen.headers["accept-encoding"] == "identity"
    assert seen.headers["host"] == CLAUDE
    assert last_row(rig, before) == ("claude", "claude-x", 11, 0, 0, 7, "wire", 1)
    assert rig.nothing_held()
    assert rig.lookups.asked[-1] == (proxy_rig.SLOT, CLAUDE, 443)
    assert rig.wait_event(kind="usage")["detail"]["output"] == 7


def test_a_stream_arrives_as_it_is_sent_and_is_charged_at_its_end(rig: Rig) -> None:
    before = len(rig.rows(0))
    gate = threading.Event()
    first, rest = opening(), DELTA + closing(42)
    rig.upstream.script = chunked([first, gate, rest])
    sock = begin(rig, ask(stream=True))
    got = read_until(sock, b"message_start")
    assert b"message_stop" not in got  # nothing is held back
    gate.set()
    got += read_until(sock, b"0\r\n\r\n")
    assert first in got and rest in got.replace(b"\r\n%x\r\n" % len(rest), b"")
    sock.close()
    assert last_row(rig, before) == ("claude", "claude-x", 20, 0, 0, 42, "wire", 1)


def test_one_byte_chunks_change_nothing(rig: Rig) -> None:
    before = len(rig.rows(0))
    stream = opening() + DELTA + closing(9)
    rig.upstream.script = chunked([stream[i : i + 1] for i in range(len(stream))])
    response = rig.request(CLAUDE, "/v1/messages", ask(stream=True))
    assert response.body == stream
    assert last_row(rig, before)[5:] == (9, "wire", 1)


def test_a_compressed_answer_is_passed_as_it_is_and_metered(rig: Rig) -> None:
    before = len(rig.rows(0))
    body = gzip.compress(message(3, 2))
    rig.upstream.script = reply(200, body, {"content-encoding": "gzip"})
    assert rig.request(CLAUDE, "/v1/messages", ask()).body == body
    assert last_row(rig, before)[2:] == (3, 0, 0, 2, "wire", 1)


@pytest.mark.parametrize("asked", [False, True])
def test_chat_usage_is_asked_for_and_its_chunk_left_out_where_the_client_did_not_ask(rig: Rig, asked: bool) -> None:
    before = len(rig.rows(0))
    with_usage = chat_stream(True)
    with_usage[1] = with_usage[1].replace(b"chatcmpl-1", b"chatcmpl-%d" % asked)
    rig.upstream.script = chunked(list(with_usage))
    fields = {"stream_options": {"include_usage": True}} if asked else {}
    body = ask(stream=True, **fields)
    response = rig.request(OPENAI, "/v1/chat/completions", body)
    sent = json.loads(rig.upstream.seen[-1].body)
    assert sent["stream_options"] == {"include_usage": True}
    assert int(rig.upstream.seen[-1].headers["content-length"]) == len(rig.upstream.seen[-1].body)
    assert response.body == b"".join(with_usage if asked else chat_stream(False))
    assert last_row(rig, before) == ("openai", "gpt-x", 8, 0, 0, 4, "wire", 1)


def test_free_endpoints_cost_nothing_and_take_no_hold(rig: Rig) -> None:
    before = len(rig.rows(0))
    rig.upstream.script = reply(200, b'{"input_tokens": 2000000}')
    assert rig.request(CLAUDE, "/v1/messages/count_tokens", ask()).status == 200
    assert rig.request(CLAUDE, "/v1/models").status == 200
    assert len(rig.rows(0)) == before and rig.held() == 0


@pytest.mark.parametrize("status", [307, 400, 429, 529])
def test_an_answer_that_is_not_billed_releases_the_hold(rig: Rig, status: int) -> None:
    before = len(rig.rows(0))
    rig.upstream.script = reply(status, b'{"type": "error"}')
    assert rig.request(CLAUDE, "/v1/messages", ask()).status == status
    assert rig.nothing_held() and len(rig.rows(0)) == before


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_answers_without_a_body(rig: Rig, method: str, status: int) -> None:
    rig.upstream.script = reply(status, b"", {"content-length": ""} if status != 200 else {})
    rig.bottle("*.example.org:443", inspected=("*.example.org",))
    assert rig.request("a.example.org", "/", method=method).status == status


def test_a_close_delimited_answer_is_metered(rig: Rig) -> None:
    before = len(rig.rows(0))

    async def script(_seen: Any, writer: Any) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + message(1, 2))
        writer.close()

    rig.upstream.script = script
    assert rig.request(CLAUDE, "/v1/messages", ask()).json["usage"]["output_tokens"] == 2
    assert last_row(rig, before)[2:] == (1, 0, 0, 2, "wire", 1)


def test_expect_100_continue(rig: Rig) -> None:
    rig.upstream.script = reply(200, message())
    sock = rig.connect(CLAUDE)
    body = ask()
    head = (
        f"POST /v1/messages HTTP/1.1\r\nHost: {CLAUDE}\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    sock.sendall(head.encode())
    assert read_until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 100")
    sock.sendall(body)
    assert read_until(sock, b"usage").startswith(b"HTTP/1.1 200")
    sock.close()


def test_an_unmetered_inspected_host_streams_large_bodies_both_ways(rig: Rig) -> None:
    rig.bottle("https://pkg.example.org/up/*", inspected=())
    down = b"d" * (3 << 20)
    rig.upstream.script = reply(200, down)
    up = b"u" * (40 << 20)  # more than a metered request may have
    response = rig.request("pkg.example.org", "/up/x", up)
    assert response.body == down
    assert rig.upstream.seen[-1].body == up
    assert rig.request("pkg.example.org", "/other").json["error"]["type"] == "egress_denied"


def test_upstream_connections_are_used_again(rig: Rig) -> None:
    rig.upstream.script = reply(200, message())
    before = rig.upstream.connections
    sock = rig.connect(CLAUDE)
    for _ in range(3):
        assert rig.request(CLAUDE, "/v1/messages", ask(), sock=sock).status == 200
    sock.close()
    assert rig.upstream.connections == before + 1
