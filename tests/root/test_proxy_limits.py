"""What one bottle may take of a worker: time for heads and bodies, memory, connections; the next bottle is served."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from agentmon import wire
from tests.support import proxy_rig
from tests.support.proxy_rig import SLOT, Response, Rig
from tests.support.proxy_talk import CLAUDE, ask, fresh, message
from tests.support.proxy_upstream import reply
from tests.support.socket_upstream import SocketUpstream, dial

pytestmark = pytest.mark.root

SHARE = 4 << 20
PRELUDE = f"""
import agentmon.proxy.edge_connection as e, agentmon.proxy.shares as s
e.HEAD_S, e.BODY_S = 0.4, 2.5
s.Shares.__init__.__defaults__ = ({SHARE},)
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = proxy_rig.start(tmp_path_factory.mktemp("limits"), prelude=PRELUDE)
    yield rig
    rig.stop()


@pytest.fixture
def rig(running: Rig) -> Rig:
    return fresh(running)


def neighbour(rig: Rig) -> Response:
    """What another bottle's request is answered."""
    view = wire.BottleView(SLOT + 1, "other", "run-other", f"{rig.net}.0.{SLOT + 1}", rules=("www.example.org",))
    assert rig.ask(wire.SetBottle(rig.control.next_id(), view)).error == ""
    sock = socket.create_connection((rig.address, 80), 10, (f"{rig.net}.0.{SLOT + 1}", 0))
    sock.settimeout(10)
    try:
        return rig.request("www.example.org", "/", sock=sock)
    finally:
        sock.close()


def is_closed(sock: Any) -> bool:
    """Whether the other side ended it, within its time limit and a little."""
    sock.settimeout(5)
    with contextlib.suppress(ConnectionResetError, ssl.SSLError):
        return bool(sock.recv(1) == b"")
    return True


def is_closed_now(sock: Any) -> bool:
    sock.settimeout(0.05)
    try:
        return bool(sock.recv(1) == b"")
    except TimeoutError:
        return False
    except (ConnectionResetError, ssl.SSLError):
        return True


def test_a_later_head_has_its_time_and_an_idle_connection_more(rig: Rig) -> None:
    rig.upstream.script = reply(200, message())
    sock = rig.connect(CLAUDE)
    assert rig.request(CLAUDE, "/v1/messages", ask(), sock=sock).status == 200
    until = time.monotonic() + 1.0
    sock.settimeout(0.1)
    while time.monotonic() < until:  # idle, longer than a head may take
        with contextlib.suppress(TimeoutError):
            assert sock.recv(1) != b""
    sock.settimeout(10)
    assert rig.request(CLAUDE, "/v1/messages", ask(), sock=sock).status == 200
    sock.sendall(b"GET /v1/models HTTP/1.1\r\nHo")
    assert is_closed(sock)
    sock.close()
    assert "no request within" in rig.wait_event(reason="limit")["detail"]["error"]


def test_a_body_that_has_to_be_whole_has_its_time(rig: Rig) -> None:
    rig.bottle()
    sock = rig.connect(CLAUDE)
    sock.sendall(f"POST /v1/messages HTTP/1.1\r\nHost: {CLAUDE}\r\nContent-Length: 100\r\n\r\n".encode() + b"{")
    assert is_closed(sock)
    sock.close()
    assert rig.upstream.seen == [] and rig.held() == 0


def test_what_a_bottle_has_sent_at_a_time_is_bounded_and_others_are_served(rig: Rig) -> None:
    socks = []
    for _ in range(8):
        sock = rig.connect(CLAUDE)
        head = f"POST /v1/messages HTTP/1.1\r\nHost: {CLAUDE}\r\nContent-Length: {2 << 20}\r\n\r\n"
        with contextlib.suppress(OSError):
            sock.sendall(head.encode() + b"x" * (1 << 20))
        socks.append(sock)
    assert neighbour(rig).status == 200
    assert sum(is_closed_now(sock) for sock in socks) in range(4, 8)  # before their time was over
    for sock in socks:
        sock.close()
    rig.upstream.script = reply(200, message())
    big = ask(messages=[{"role": "user", "content": "x" * (3 << 20)}])
    for _ in range(5):  # what was taken is given back
        assert rig.request(CLAUDE, "/v1/messages", big).status == 200


def test_messages_and_held_answers_count_as_well(rig: Rig) -> None:
    server = SocketUpstream(f"{rig.net}.1.2", rig.upstream._context)
    try:
        route = wire.Route("www.example.org", inbound="block")
        rig.bottle("www.example.org", inspected=("www.example.org",), routes=(route,))
        rig.upstream.script = reply(200, b"y" * 900_000, {"content-type": "text/plain"})
        for _ in range(8):
            assert rig.request("www.example.org", "/").status == 200
        rig.lookups.address = server.address
        client = dial(rig, "wss://www.example.org/", compression=None)
        for _ in range(4):
            client.send("z" * (3 << 20))
            assert len(client.recv(10)) == 3 << 20
        with pytest.raises(ConnectionClosed):
            client.send("z" * (5 << 20))
            client.recv(10)
        assert client.protocol.close_code == 1013
        with dial(rig, "wss://www.example.org/", compression=None) as client:
            client.send("z" * (3 << 20))
            assert len(client.recv(10)) == 3 << 20
    finally:
        server.stop()


def test_connections_of_one_bottle_leave_room_for_another(rig: Rig) -> None:
    rig.bottle(limits={"connections": 5})
    socks = [rig.connect(None, 80) for _ in range(5)]
    with contextlib.suppress(ConnectionResetError):
        assert rig.connect(None, 80).recv(1) == b""
    assert neighbour(rig).status == 200
    for sock in socks:
        sock.close()


@pytest.mark.parametrize(("count", "status"), [(290, 200), (400, 431)])
def test_so_many_headers(rig: Rig, count: int, status: int) -> None:
    rig.upstream.script = reply(200, b"{}")
    headers = {f"X-H{n}": "v" for n in range(count)}
    assert rig.request(CLAUDE, "/v1/models", headers=headers).status == status


def test_a_client_that_reads_nothing_is_not_read_for(rig: Rig) -> None:
    """Its answers stay with the server: nothing piles up in the worker, and others are served."""

    def rss() -> int:
        return int(Path(f"/proc/{rig.proxy.pid}/statm").read_text().split()[1]) * 4096

    rig.bottle("www.example.org", inspected=())
    rig.upstream.script = reply(200, b"\0" * (64 << 20), {"content-type": "application/octet-stream"})
    before = rss()
    socks = []
    for _ in range(4):
        sock = rig.connect(None, 80)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: www.example.org\r\n\r\n")
        assert sock.recv(10)
        socks.append(sock)
    rig.upstream.script = reply(200, b"ok")
    assert neighbour(rig).body == b"ok"
    assert rss() < before + (48 << 20)
    for sock in socks:
        sock.close()
