"""What HTTP/2 clients do and HTTP/1 cannot: reset one stream of several, send a body without a length (case 10)."""

from __future__ import annotations

import sys
import threading
from typing import Any

import h2.connection
import h2.errors
import h2.events
import pytest

from tests.support.proxy_rig import Rig
from tests.support.proxy_talk import CLAUDE, ask, closing, last_row, opening
from tests.support.proxy_upstream import chunked

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(sys.version_info < (3, 12), reason="HTTP/2 is offered from Python 3.12 on"),
]


def test_a_stream_reset_by_an_http2_client_is_one_estimate_and_its_neighbour_goes_on(
    rig: Rig, to_provider: str
) -> None:
    before = len(rig.rows(0))
    go_on = threading.Event()

    async def answer(seen: Any, writer: Any) -> None:
        tail = [closing(5)] if seen.headers["x-which"] == "kept" else [threading.Event()]
        await chunked([opening(), go_on, *tail])(seen, writer)

    rig.upstream.script = answer
    sock = rig.connect(CLAUDE, alpn=["h2"])
    assert sock.selected_alpn_protocol() == "h2"
    client = h2.connection.H2Connection()
    client.initiate_connection()
    for number, which in ((1, "kept"), (3, "reset")):
        target = {":method": "POST", ":scheme": "https", ":authority": CLAUDE, ":path": "/v1/messages"}
        client.send_headers(number, list((target | {"x-which": which}).items()))
        client.send_data(number, b"", end_stream=False)  # an empty frame in the middle
        client.send_data(number, ask(stream=True, max_tokens=66), end_stream=True)
    sock.sendall(client.data_to_send())
    said: dict[int, bytes] = {1: b"", 3: b""}

    def receive() -> list[Any]:
        events = client.receive_data(sock.recv(65536))
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                said[event.stream_id] += event.data
        sock.sendall(client.data_to_send())
        return events

    while not all(b"message_start" in body for body in said.values()):
        receive()
    client.reset_stream(3, h2.errors.ErrorCodes.CANCEL)
    sock.sendall(client.data_to_send())
    assert last_row(rig, before)[5:] == (66, "estimate", 0)
    assert rig.upstream.aborted.wait(10)
    go_on.set()
    while not any(isinstance(event, h2.events.StreamEnded) for event in receive()):
        pass
    sock.close()
    assert said[1].endswith(closing(5)) and len(rig.rows(before + 2)) == before + 2
    assert rig.rows(before + 2)[-1][5:] == (5, "wire", 1)
    assert [seen.body for seen in rig.upstream.seen] == [ask(stream=True, max_tokens=66)] * 2
    assert rig.nothing_held()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_http2_body_without_a_length_is_not_read_as_the_next_request(
    rig: Rig, to_provider: str, method: str
) -> None:
    rig.bottle("https://pkg.example.org/up/*", inspected=("api.anthropic.com",))
    hidden = b"POST /v1/messages HTTP/1.1\r\nHost: pkg.example.org\r\nContent-Length: 0\r\n\r\n"
    sock = rig.connect("pkg.example.org", alpn=["h2"])
    client = h2.connection.H2Connection()
    client.initiate_connection()
    for number in (1, 3):
        target = {":method": method, ":scheme": "https", ":authority": "pkg.example.org", ":path": f"/up/{number}"}
        client.send_headers(number, list(target.items()), end_stream=number == 3)
        if number == 1:
            client.send_data(number, hidden, end_stream=True)
        sock.sendall(client.data_to_send())
        ended = False
        while not ended:
            ended = any(isinstance(e, h2.events.StreamEnded) for e in client.receive_data(sock.recv(65536)))
            sock.sendall(client.data_to_send())
    sock.close()
    assert [(seen.target, seen.body) for seen in rig.upstream.seen] == [("/up/1", hidden), ("/up/3", b"")]
