"""A proposal whose client gives up is withdrawn, whichever way it does: by its connection, or its HTTP/2 stream."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import h2.config
import h2.connection
import pytest

from agentmon import wire
from tests.support.proxy_h2 import HTTP2
from tests.support.proxy_rig import SLOT, Rig

pytestmark = pytest.mark.root
PLAIN = "www.example.org"
BODY = b'{"note": "ghp_%s"}' % secrets.token_hex(18).encode()


@pytest.fixture
def asked(rig: Rig) -> Callable[[Callable[[], object]], wire.Propose]:
    """What the worker proposes after something was sent."""
    rig.bottle(f"{PLAIN}:443", inspected=(PLAIN,))
    rig.ask(wire.SetApprovals(rig.control.next_id(), SLOT, rig.run, (), 30))

    def ask(send: Callable[[], object]) -> wire.Propose:
        send()
        return said(rig, wire.Propose)

    return ask


def said(rig: Rig, kind: type[Any]) -> Any:
    """The next message of this kind."""
    rig.control.sock.settimeout(10)
    while not isinstance(message := rig.control.recv(), kind):
        pass
    rig.control.sock.settimeout(None)
    return message


def test_a_closed_connection(rig: Rig, asked: Any) -> None:
    sock = rig.connect(PLAIN)
    head = f"POST / HTTP/1.1\r\nHost: {PLAIN}\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
    proposed = asked(lambda: sock.sendall(head + BODY))
    sock.close()
    assert said(rig, wire.Withdraw).id == proposed.id
    assert not [seen for seen in rig.upstream.seen if seen.body == BODY]


@pytest.mark.skipif(not HTTP2, reason="HTTP/2 to the client: needs Python 3.12 and its mitmproxy")
def test_a_reset_stream_of_a_connection_that_lives_on(rig: Rig, asked: Any) -> None:
    sock = rig.connect(PLAIN, alpn=["h2"])
    talk = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    talk.initiate_connection()
    head = [(":method", "POST"), (":scheme", "https"), (":authority", PLAIN), (":path", "/")]

    def send(stream: int) -> None:
        talk.send_headers(stream, [*head, ("content-length", str(len(BODY)))])
        talk.send_data(stream, BODY, end_stream=True)
        sock.sendall(talk.data_to_send())

    first = asked(lambda: send(1))
    second = asked(lambda: send(3))
    talk.reset_stream(1)
    sock.sendall(talk.data_to_send())
    assert said(rig, wire.Withdraw).id == first.id
    rig.control.send(wire.Decided(second.id, "rejected"))
    answers = b""
    while b"rejected" not in answers:  # the other one is answered, on the same connection
        data = sock.recv(1 << 16)
        assert data, "the connection has ended"
        answers += data
    sock.close()
    assert not [seen for seen in rig.upstream.seen if seen.body == BODY]
