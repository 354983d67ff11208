"""How a cut ends what a proxy worker has in hand, and what a dropped bottle or a bad policy does to it."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import pytest

from agentmon import wire
from tests.support import proxy_rig
from tests.support.proxy_rig import Rig
from tests.support.proxy_talk import CLAUDE, SPENT, ask, begin, message, opening, read_all, read_until
from tests.support.proxy_upstream import chunked, reply

pytestmark = pytest.mark.root


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
