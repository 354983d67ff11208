"""A proxy worker as a process: what passes, is refused, is charged, and how streams end. Real ledger, real TLS."""

from __future__ import annotations

import contextlib
import gzip
import json
import pwd
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmon import trust, wire
from tests.support import proxy_rig
from tests.support.proxy_rig import Rig
from tests.support.proxy_upstream import chunked, reply

try:
    import httpx2
except ModuleNotFoundError:  # for Python 3.11 the locked SDKs still bring httpx
    import httpx as httpx2

pytestmark = pytest.mark.root

SPENT = {"scope": "bottle", "name": "crate", "provider": "claude", "tokens": 5, "used": 6, "per": "run"}
HTTP2 = sys.version_info >= (3, 12)  # older interpreters have an older mitmproxy, which is not given HTTP/2
CLAUDE = "api.anthropic.com"
OPENAI = "api.openai.com"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = proxy_rig.start(tmp_path_factory.mktemp("proxy"))
    yield rig
    rig.stop()


@pytest.fixture
def rig(running: Rig) -> Rig:
    """A fresh bottle; the upstream and the books remember nothing that matters here."""
    running.events.clear()
    running.upstream.seen.clear()
    running.upstream.aborted.clear()
    running.lookups.error = ""
    running.lookups.go()
    running.lookups.address = running.upstream.address
    running.upstream.script = reply(200, b"{}")
    running.bottle()
    return running


def message(tokens_in: int = 10, tokens_out: int = 5, id: str = "") -> bytes:
    usage = {"input_tokens": tokens_in, "output_tokens": tokens_out}
    return json.dumps({"id": id or f"msg_{time.monotonic_ns()}", "model": "claude-x", "usage": usage}).encode()


def ask(**fields: Any) -> bytes:
    return json.dumps({"model": "claude-x", "max_tokens": 100, "messages": []} | fields).encode()


def sse(name: str, **data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name} | data)}\n\n".encode()


def opening(id: str = "") -> bytes:
    usage = {"input_tokens": 20, "output_tokens": 1}
    return sse("message_start", message={"id": id or f"msg_{time.monotonic_ns()}", "model": "claude-x", "usage": usage})


def closing(tokens: int) -> bytes:
    return sse("message_delta", delta={}, usage={"output_tokens": tokens}) + sse("message_stop")


DELTA = sse("content_block_delta", index=0, delta={"type": "text_delta", "text": "héllo 🙂"})


def begin(rig: Rig, body: bytes, path: str = "/v1/messages", host: str = CLAUDE) -> Any:
    """A socket with the request sent."""
    sock = rig.connect(host)
    sock.sendall(f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    return sock


def read_until(sock: Any, mark: bytes) -> bytes:
    got = b""
    while mark not in got:
        piece = sock.recv(65536)
        assert piece, got
        got += piece
    return got


def read_all(sock: Any) -> bytes:
    got = b""
    try:
        while piece := sock.recv(65536):
            got += piece
    except (ssl.SSLEOFError, ConnectionResetError):
        pass
    return got


def last_row(rig: Rig, before: int) -> tuple[Any, ...]:
    rows = rig.rows(before + 1)
    assert len(rows) == before + 1
    return rows[-1]


# ── passing and metering ─────────────────────────────────────────────────────


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


def chat_stream(usage: bool) -> list[bytes]:
    def chunk(**data: Any) -> bytes:
        return b"data: " + json.dumps({"id": "chatcmpl-1", "model": "gpt-x"} | data).encode() + b"\n\n"

    parts = [chunk(choices=[{"index": 0, "delta": {"content": "hi"}}], usage=None)]
    if usage:
        parts.append(chunk(choices=[], usage={"prompt_tokens": 8, "completion_tokens": 4}))
    return [*parts, b"data: [DONE]\n\n"]


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


# ── refusals ─────────────────────────────────────────────────────────────────


def test_what_no_endpoint_covers_is_refused_and_told(rig: Rig) -> None:
    response = rig.request(CLAUDE, "/v1/complete", b"{}")
    assert (response.status, response.headers["x-should-retry"]) == (403, "false")
    assert response.json["error"]["type"] == "egress_denied" and response.json["error"]["host"] == CLAUDE
    event = rig.wait_event(kind="request", reason="endpoint")
    assert event["verdict"] == "refused" and event["detail"] == {
        "method": "POST",
        "path": "/v1/complete",
        "status": 403,
    }
    assert "no rule helps" in event["hint"]
    assert rig.upstream.seen == []


@pytest.mark.parametrize(
    "head",
    [
        "Host: evil.example.org",
        "Host: api.anthropic.com\r\nHost: evil.example.org",
        "Host: api.anthropic.com:8443",
        "X-No: host",
    ],
)
def test_the_host_header_must_be_the_sni(rig: Rig, head: str) -> None:
    sock = rig.connect(CLAUDE)
    sock.sendall(f"GET /v1/models HTTP/1.1\r\n{head}\r\n\r\n".encode())
    response = proxy_rig.Response.read(sock)
    sock.close()
    assert response.status in (400, 403) and rig.upstream.seen == []


def test_an_absolute_target_must_name_the_same_host(rig: Rig) -> None:
    assert rig.request(CLAUDE, "https://evil.example.org/v1/models").status == 403
    assert rig.upstream.seen == []
    assert rig.request(CLAUDE, f"https://{CLAUDE}/v1/models").status == 200
    assert rig.upstream.seen[-1].target == "/v1/models"


def test_connect_is_refused(rig: Rig) -> None:
    sock = rig.connect(CLAUDE)
    sock.sendall(b"CONNECT evil.example.org:443 HTTP/1.1\r\nHost: evil.example.org\r\n\r\n")
    assert not read_until(sock, b"\r\n").startswith(b"HTTP/1.1 200")
    sock.close()
    assert rig.upstream.seen == []


def test_a_name_outside_the_policy_gets_no_certificate(rig: Rig) -> None:
    with pytest.raises((ssl.SSLError, OSError)):
        rig.connect("evil.example.org", verify=False)
    assert rig.wait_event(kind="request", reason="default", host="evil.example.org")["verdict"] == "refused"


def test_no_sni_gets_no_certificate(rig: Rig) -> None:
    with pytest.raises((ssl.SSLError, OSError)):
        rig.connect(None, verify=False)
    rig.wait_event(kind="request", reason="sni")


def test_plain_http_to_a_metered_host_is_refused(rig: Rig) -> None:
    rig.bottle("api.anthropic.com")
    response = rig.request(CLAUDE, "/v1/messages", ask(), port=80)
    assert response.status == 403 and rig.upstream.seen == []


def test_plain_http_of_a_bare_host_rule_passes(rig: Rig) -> None:
    rig.bottle("www.example.org", inspected=())
    rig.upstream.script = reply(200, b"hello")
    assert rig.request("www.example.org", "/x", port=80).body == b"hello"
    assert rig.request("other.example.org", "/x", port=80).status == 403
    assert rig.lookups.asked[-1] == (proxy_rig.SLOT, "www.example.org", 80)


def test_a_stranger_is_closed_without_a_word(rig: Rig) -> None:
    sock = socket.create_connection((rig.address, 80), 5, (rig.source[:-2] + "77", 0))
    sock.settimeout(5)
    with pytest.raises(ConnectionResetError):
        sock.sendall(b"GET / HTTP/1.1\r\nHost: agentmon.internal\r\n\r\n")
        if sock.recv(10) == b"":
            raise ConnectionResetError
    sock.close()


def test_an_upgrade_is_refused(rig: Rig) -> None:
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "x"}
    response = rig.request(OPENAI, "/v1/responses", headers=headers)
    assert response.status == 403 and rig.upstream.seen == []


def test_observe_lets_an_unknown_host_through_and_says_so(rig: Rig) -> None:
    rig.bottle(mode="observe")
    assert rig.request("new.example.org", "/").status == 200
    assert rig.wait_event(kind="request", verdict="observed")["host"] == "new.example.org"


def test_a_spent_budget_is_a_403_that_nothing_retries(rig: Rig) -> None:
    rig.bottle(budget=10)
    rig.upstream.script = reply(200, message(10, 0))
    assert rig.request(CLAUDE, "/v1/messages", ask()).status == 200
    assert rig.nothing_held()
    response = rig.request(CLAUDE, "/v1/messages", ask())
    error = response.json["error"]
    assert (response.status, error["type"], response.headers["x-should-retry"]) == (403, "budget_exhausted", "false")
    assert (error["scope"], error["tokens"], error["used"]) == ("bottle", 10, 10)


def test_introspection(rig: Rig) -> None:
    assert rig.request("agentmon.internal", "/healthz", port=80).json["status"] == "ok"
    assert rig.request("agentmon.internal", "/allowlist", port=80).json["rules"] == list(rig.view.rules)
    assert rig.request("agentmon.internal", "/budget", port=80).json["budgets"][0]["tokens"] == 1_000_000
    assert rig.request("agentmon.internal", "/secrets", port=80).status == 404


# ── failures ─────────────────────────────────────────────────────────────────


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


# ── cut ──────────────────────────────────────────────────────────────────────


def test_a_cut_ends_an_idle_stream_with_the_typed_error_at_once(rig: Rig) -> None:
    never = threading.Event()
    rig.upstream.script = chunked([opening(), never])
    sock = begin(rig, ask(stream=True))
    read_until(sock, b"message_start")
    asked_ns = time.monotonic_ns()
    ack = rig.cut(SPENT)
    rest = read_all(sock)
    assert ack.closed == 1 and ack.at_ns - asked_ns < 50_000_000
    assert rest.endswith(b"\r\n0\r\n\r\n")  # a clean end
    event = rest.split(b"\r\n")[1]
    assert event.startswith(b"event: error\ndata: ") and event.endswith(b"\n\n")
    assert json.loads(event.splitlines()[1][6:])["error"] | SPENT == json.loads(event.splitlines()[1][6:])["error"]
    assert rig.upstream.aborted.wait(5)
    never.set()
    response = rig.request(CLAUDE, "/v1/messages", ask())
    assert (response.status, response.json["error"]["type"]) == (403, "budget_exhausted")
    assert rig.nothing_held()
    rig.bottle()
    rig.upstream.script = reply(200, message())
    assert rig.request(CLAUDE, "/v1/messages", ask()).status == 200  # resumed


def test_a_cut_before_the_answer_is_a_403(rig: Rig) -> None:
    never = threading.Event()

    async def script(_seen: Any, _writer: Any) -> None:
        while not never.is_set():
            await __import__("asyncio").sleep(0.002)

    rig.upstream.script = script
    sock = begin(rig, ask())
    while not rig.upstream.seen:
        time.sleep(0.002)
    assert rig.cut(SPENT).closed == 1
    response = proxy_rig.Response.read(sock)
    assert (response.status, response.json["error"]["type"]) == (403, "budget_exhausted")
    sock.close()
    never.set()
    assert rig.nothing_held()


def test_a_cut_breaks_an_answer_that_is_no_stream(rig: Rig) -> None:
    never = threading.Event()
    rig.upstream.script = chunked([b'{"id": "', never], {"content-type": "application/json"})
    sock = begin(rig, ask())
    read_until(sock, b'"id"')
    assert rig.cut({}).closed == 1
    assert b"0\r\n\r\n" not in read_all(sock)
    never.set()
    response = rig.request(CLAUDE, "/v1/messages", ask())
    assert response.json["error"]["type"] == "egress_denied"  # by the operator: nothing is spent
    assert rig.nothing_held()


def test_a_cut_while_the_upstream_is_being_connected_closes_the_client(rig: Rig) -> None:
    silent = socket.create_server((f"{rig.net}.9.8", 443))
    rig.lookups.address = f"{rig.net}.9.8"
    sock = begin(rig, ask())
    connected, _ = silent.accept()  # and never shakes hands
    try:
        assert rig.cut(SPENT).closed == 1
        assert read_all(sock) == b""
        assert connected.recv(1 << 16) and connected.recv(1 << 16) == b""  # given up
        assert rig.nothing_held()
    finally:
        connected.close()
        silent.close()
        sock.close()


def test_a_cut_while_the_name_is_looked_up_is_a_403(rig: Rig) -> None:
    before = len(rig.rows(0))
    rig.lookups.hold()
    sock = begin(rig, ask())
    rig.lookups.waits(1)
    assert rig.cut(SPENT).closed == 0  # its hook sees the cut when it has its answer
    rig.lookups.go()
    response = proxy_rig.Response.read(sock)
    assert (response.status, response.json["error"]["type"]) == (403, "budget_exhausted")
    sock.close()
    assert rig.nothing_held() and len(rig.rows(0)) == before and rig.upstream.seen == []


def test_a_cut_ends_unmetered_downloads_too(rig: Rig) -> None:
    rig.bottle("https://pkg.example.org/*", inspected=())
    never = threading.Event()
    rig.upstream.script = chunked([b"some", never], {"content-type": "text/plain"})
    sock = rig.connect("pkg.example.org")
    sock.sendall(b"GET /big HTTP/1.1\r\nHost: pkg.example.org\r\n\r\n")
    read_until(sock, b"some")
    assert rig.cut({}).closed == 1
    assert b"0\r\n\r\n" not in read_all(sock)
    never.set()
    sock.close()


def test_a_client_that_leaves_while_the_name_is_looked_up_costs_nothing(rig: Rig) -> None:
    before = len(rig.rows(0))
    rig.lookups.hold()
    sock = begin(rig, ask())
    rig.lookups.waits(1)
    sock.close()
    rig.lookups.go()
    assert rig.nothing_held() and len(rig.rows(0)) == before and rig.upstream.seen == []


def test_dropping_a_bottle_closes_its_connections(rig: Rig) -> None:
    sock = rig.connect(CLAUDE)
    assert rig.ask(wire.DropBottle(rig.control.next_id(), proxy_rig.SLOT)).error == ""
    assert read_all(sock) == b""
    sock.close()


def test_a_rule_that_does_not_parse_leaves_the_view_in_force(rig: Rig) -> None:
    view = wire.BottleView(proxy_rig.SLOT, "crate", "x", rig.source, rules=("10.*",))
    assert "rule of bottle crate" in rig.ask(wire.SetBottle(rig.control.next_id(), view)).error
    assert rig.request(CLAUDE, "/v1/models").status == 200


# ── HTTP/2 ───────────────────────────────────────────────────────────────────


def h2_client(rig: Rig) -> httpx2.Client:
    context = ssl.create_default_context(cafile=str(rig.ca))
    transport = httpx2.HTTPTransport(verify=context, http2=True, local_address=rig.source)
    return httpx2.Client(transport=transport, timeout=10, base_url=f"https://{rig.address}", headers={"Host": CLAUDE})


def test_http2_streams_are_metered_each(rig: Rig) -> None:
    before = len(rig.rows(0))
    with h2_client(rig) as client:

        def one(n: int) -> None:
            with client.stream("POST", "/v1/messages", content=ask(stream=True), extensions=SNI) as response:
                assert response.http_version == ("HTTP/2" if HTTP2 else "HTTP/1.1")
                assert b"".join(response.iter_bytes()).endswith(closing(7))

        rig.upstream.script = streamed
        threads = [threading.Thread(target=one, args=(n,)) for n in range(10)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(20)
    rows = rig.rows(before + 10)
    assert len(rows) == before + 10 and {row[5] for row in rows[before:]} == {7}


SNI = {"sni_hostname": CLAUDE}


async def streamed(seen: Any, writer: Any) -> None:
    await chunked([opening(), 0.01, DELTA, closing(7)])(seen, writer)


def test_http2_cut_ends_every_stream_with_the_typed_error(rig: Rig) -> None:
    never = threading.Event()
    rig.upstream.script = lambda seen, writer: chunked([opening(), never])(seen, writer)
    ends: list[bytes] = []
    started = threading.Barrier(3)

    with h2_client(rig) as client:

        def one() -> None:
            with client.stream("POST", "/v1/messages", content=ask(stream=True), extensions=SNI) as response:
                pieces = response.iter_bytes()
                assert b"message_start" in next(pieces)
                started.wait(10)
                ends.append(b"".join(pieces))

        threads = [threading.Thread(target=one) for _ in range(2)]
        for t in threads:
            t.start()
        started.wait(10)
        assert rig.cut(SPENT).closed == 2
        for t in threads:
            t.join(10)
    never.set()
    assert len(ends) == 2 and all(b"event: error" in end and b"budget_exhausted" in end for end in ends)
    assert rig.nothing_held()


# ── the service around it ────────────────────────────────────────────────────


def test_an_exception_in_a_hook_closes_the_flow_and_is_reported(tmp_path: Path) -> None:
    prelude = (
        "import agentmon.proxy.edge as e\n"
        "def boom(self, connection, flow): raise RuntimeError('injected')\n"
        "e.Hooks.on_responseheaders = boom"
    )
    rig = proxy_rig.start(tmp_path, prelude=prelude)
    try:
        rig.bottle()
        rig.upstream.script = reply(200, message())
        sock = begin(rig, ask())
        assert b"usage" not in read_all(sock)
        event = rig.wait_event(kind="request", reason="hook responseheaders")
        assert "injected" in event["detail"]["error"]
        assert last_row(rig, 0)[6:] == ("estimate", 0)
        assert rig.nothing_held()
    finally:
        rig.stop()


def test_a_worker_drops_root_and_still_does_all_its_work(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own are closed to other users
        directory = Path(name)
        directory.chmod(0o755)
        rig = proxy_rig.start(directory, user="nobody")
        try:
            status = Path(f"/proc/{rig.proxy.pid}/status").read_text()
            assert f"Uid:\t{pwd.getpwnam('nobody').pw_uid}\t" in status and "CapEff:\t0000000000000000" in status
            assert "NoNewPrivs:\t1" in status
            rig.bottle()
            rig.upstream.script = reply(200, message())
            assert rig.request(CLAUDE, "/v1/messages", ask()).status == 200
            assert len(rig.rows(1)) == 1
            assert stat.S_IMODE((directory / "ca" / trust.KEY_FILE).stat().st_mode) == 0o600
        finally:
            rig.stop()


def test_a_first_request_that_does_not_come_in_time_is_closed(tmp_path: Path) -> None:
    rig = proxy_rig.start(tmp_path, ledger=False, prelude="import agentmon.proxy.edge_connection as e\ne.HEAD_S = 0.2")
    try:
        rig.bottle()
        sock = rig.connect(None, 80)
        sock.sendall(b"GET / HTTP/1.1\r\n")
        assert sock.recv(10) == b""
        sock.close()
        assert "no request within" in rig.wait_event(reason="limit")["detail"]["error"]
        sock = rig.connect(CLAUDE)
        assert rig.request(CLAUDE, "/v1/models", sock=sock).status == 200
        sock.close()
    finally:
        rig.stop()


def test_log_levels(rig: Rig) -> None:
    rig.bottle(log="full")
    assert rig.request(CLAUDE, "/v1/models").status == 200
    assert rig.wait_event(kind="request", verdict="allowed")["detail"] == {"method": "GET", "path": "/v1/models"}
    rig.bottle(log="off")
    assert rig.request(OPENAI, "/quiet").status == 403
    rig.bottle()
    assert rig.request(CLAUDE, "/loud").status == 403
    assert rig.wait_event(kind="request", reason="endpoint", host=CLAUDE)
    assert not [e for e in rig.events if e.get("reason") == "endpoint" and e["host"] == OPENAI]


def test_a_client_that_does_not_trust_us_is_reported(rig: Rig) -> None:
    sock = socket.create_connection((rig.address, 443), 10, (rig.source, 0))
    with pytest.raises(ssl.SSLError):
        ssl.create_default_context().wrap_socket(sock, server_hostname=CLAUDE)
    sock.close()
    assert "roots" in rig.wait_event(reason="client-tls")["hint"]


def start_worker(directory: Path, **changes: Any) -> tuple[int, str]:
    """(status, last words) of a worker that cannot start."""
    config = {
        "socket": str(directory / "p.sock"), "lookup_socket": "", "ledger_socket": "", "user": "", "listen": [],
        "pool4": "127.0.0.0/16", "ca_dir": str(directory / "ca"),
    } | changes  # fmt: skip
    (directory / "p.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "agentmon.proxy", str(directory / "p.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stderr


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    assert "authority" in start_worker(tmp_path)[1]
    trust.ensure_ca(tmp_path / "ca")
    status, words = start_worker(tmp_path, upstream_proxy="http://10.0.0.1:3128")
    assert status == 2 and "not supported" in words and "hint:" in words
    status, words = start_worker(tmp_path, upstream_ca=["/no/such.pem"])
    assert status == 4 and "/no/such.pem cannot be read" in words
    status, words = start_worker(tmp_path, providers={"x": {"like": "nobody", "hosts": ["x"]}})
    assert status == 2 and "providers: x" in words
    (tmp_path / "ca" / trust.KEY_FILE).write_bytes(b"damaged")
    assert start_worker(tmp_path)[0] == 4


def test_a_rig_that_does_not_come_up_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="broken on purpose"):
        proxy_rig.start(tmp_path, prelude="raise SystemExit('broken on purpose')")
    config = str(tmp_path / "ledger.json").encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            assert config not in path.read_bytes()


def test_without_a_ledger_metered_requests_are_503_and_others_pass(tmp_path: Path) -> None:
    rig = proxy_rig.start(tmp_path, ledger=False)
    try:
        rig.bottle()
        response = rig.request(CLAUDE, "/v1/messages", ask())
        assert (response.status, response.json["error"]["type"]) == (503, "ledger_unavailable")
        assert response.headers["x-should-retry"] == "false"
        assert rig.upstream.seen == []
        assert rig.request(CLAUDE, "/v1/models").status == 200
        assert rig.request("agentmon.internal", "/budget", port=80).status == 503
    finally:
        rig.stop()
