"""What a proxy worker does when an upstream fails, a client goes away, or a request is too much or malformed."""

from __future__ import annotations

import contextlib
import gzip
import json
import ssl
import threading
import time
from typing import Any

import pytest

from agentmon import wire
from tests.support import proxy_rig
from tests.support.proxy_rig import Rig
from tests.support.proxy_talk import (
    CLAUDE,
    DELTA,
    OPENAI,
    ask,
    begin,
    chat_stream,
    last_row,
    message,
    opening,
    read_all,
    read_until,
)
from tests.support.proxy_upstream import chunked, reply

pytestmark = pytest.mark.root


def test_a_name_that_does_not_resolve_is_a_502_and_releases(rig: Rig) -> None:
    rig.lookups.error = "nxdomain"
    response = rig.request(CLAUDE, "/v1/messages", ask())
    assert response.status == 502 and response.json["error"]["type"] == "upstream_unreachable"
    assert rig.nothing_held()


def test_an_upstream_that_does_not_listen_is_a_502_and_releases(rig: Rig) -> None:
    rig.lookups.address = f"{rig.net}.9.9"
    before = len(rig.rows(0))
    response = rig.request(CLAUDE, "/v1/messages", ask())
    assert response.status == 502 and response.json["error"]["type"] == "upstream_unreachable"
    assert rig.nothing_held() and len(rig.rows(0)) == before


def test_an_upstream_that_does_not_prove_its_name_sees_no_request(rig: Rig) -> None:
    rig.bottle("wrong.example.net:443", inspected=("wrong.example.net",))
    response = rig.request("wrong.example.net", "/")
    assert response.status == 502 and "ertificate" in response.json["error"]["message"]
    assert rig.upstream.seen == []


def test_an_upstream_that_dies_in_mid_stream_is_charged_as_an_estimate(rig: Rig) -> None:
    before = len(rig.rows(0))

    async def script(_seen: Any, writer: Any) -> None:
        start = opening()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"%x\r\n%s\r\n" % (len(start), start))
        await writer.drain()
        writer.transport.abort()

    rig.upstream.script = script
    assert rig.request(CLAUDE, "/v1/messages", ask(stream=True)).broken
    assert last_row(rig, before)[2:] == (20, 0, 0, 100, "estimate", 0)
    assert rig.nothing_held()


def test_a_client_that_goes_away_is_charged_once_and_its_upstream_is_closed(rig: Rig) -> None:
    before = len(rig.rows(0))
    never = threading.Event()
    rig.upstream.script = chunked([opening(), DELTA, never])
    sock = begin(rig, ask(stream=True))
    read_until(sock, b"content_block_delta")
    sock.close()
    assert rig.upstream.aborted.wait(5)
    never.set()
    assert last_row(rig, before)[2:] == (20, 0, 0, 100, "estimate", 0)
    assert rig.nothing_held()


def test_a_replayed_id_is_charged_once(rig: Rig) -> None:
    before = len(rig.rows(0))
    rig.upstream.script = reply(200, message(4, 4, "msg_replayed"))
    for _ in range(2):
        assert rig.request(CLAUDE, "/v1/messages", ask()).status == 200
    assert rig.nothing_held() and len(rig.rows(0)) == before + 1


def test_a_head_that_never_ends_is_closed(rig: Rig) -> None:
    sock = rig.connect(CLAUDE)
    with pytest.raises((ssl.SSLError, OSError)):
        sock.sendall(b"GET /v1/models HTTP/1.1\r\n")
        for _ in range(200):
            sock.sendall(b"X-Padding: " + b"x" * 8000 + b"\r\n")
        if not read_all(sock):
            raise ConnectionResetError
    rig.wait_event(kind="request", reason="limit")


def test_a_metered_body_over_the_cap_is_refused(rig: Rig) -> None:
    sock = rig.connect(CLAUDE)
    sock.sendall(f"POST /v1/messages HTTP/1.1\r\nHost: {CLAUDE}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    with pytest.raises((ssl.SSLError, OSError)):
        for _ in range(40):
            sock.sendall(b"100000\r\n" + b"x" * (1 << 20) + b"\r\n")
        if not read_all(sock):
            raise ConnectionResetError
    assert rig.upstream.seen == [] and rig.held() == 0
    assert rig.request(CLAUDE, "/v1/models").status == 200


def test_a_length_over_the_cap_is_refused_at_once(rig: Rig) -> None:
    sock = rig.connect(CLAUDE)
    sock.sendall(f"POST /v1/messages HTTP/1.1\r\nHost: {CLAUDE}\r\nContent-Length: {33 << 20}\r\n\r\n".encode())
    response = proxy_rig.Response.read(sock)
    sock.close()
    assert response.status == 413 and rig.upstream.seen == [] and rig.held() == 0


def test_a_compressed_request_is_estimated_by_its_content(rig: Rig) -> None:
    before = len(rig.rows(0))
    rig.upstream.script = chunked(list(chat_stream(True)))
    body = gzip.compress(ask(stream=True))
    response = rig.request(OPENAI, "/v1/chat/completions", body, headers={"Content-Encoding": "gzip"})
    seen = rig.upstream.seen[-1]
    assert "content-encoding" not in seen.headers and json.loads(seen.body)["stream_options"] == {"include_usage": True}
    assert response.body == b"".join(chat_stream(False))
    assert rig.nothing_held() and len(rig.rows(0)) >= before
    rig.upstream.script = reply(200, message())
    assert rig.request(CLAUDE, "/v1/messages", gzip.compress(ask()), headers={"Content-Encoding": "gzip"}).status == 200
    assert gzip.decompress(rig.upstream.seen[-1].body) == ask()  # nothing to add: passed as it came


def test_a_request_whose_body_does_not_decode_is_refused(rig: Rig) -> None:
    response = rig.request(
        CLAUDE, "/v1/messages", gzip.compress(ask())[:10] + b"\xff" * 50, headers={"Content-Encoding": "gzip"}
    )
    assert response.status == 400 and rig.upstream.seen == []


def test_a_request_that_could_be_two_is_refused(rig: Rig) -> None:
    sock = rig.connect(CLAUDE)
    head = f"POST /v1/messages HTTP/1.1\r\nHost: {CLAUDE}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    sock.sendall(head.encode() + b"0\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b" 200 " not in read_all(sock)
    sock.close()
    assert rig.upstream.seen == []


def test_credentials_are_stripped_where_the_route_says_so(rig: Rig) -> None:
    rig.bottle("x.example.org:443", inspected=("x.example.org",), routes=(wire.Route("x.example.org", auth_none=True),))
    assert rig.request("x.example.org", "/", headers={"Authorization": "Bearer s", "X-Other": "1"}).status == 200
    assert "authorization" not in rig.upstream.seen[-1].headers and rig.upstream.seen[-1].headers["x-other"] == "1"


def test_a_bottle_has_so_many_connections(rig: Rig) -> None:
    rig.bottle(limits={"connections": 2})
    socks = [rig.connect(None, 80) for _ in range(2)]
    third = rig.connect(None, 80)
    with contextlib.suppress(ConnectionResetError):
        assert third.recv(1) == b""
    for sock in (*socks, third):
        sock.close()
    rig.bottle()
    deadline = time.monotonic() + 5
    while rig.request("agentmon.internal", "/healthz", port=80).status != 200:
        assert time.monotonic() < deadline
