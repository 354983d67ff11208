"""Routes' headers and query, and the framing of requests, through a real worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agentmon import wire
from tests.support import proxy_rig
from tests.support.proxy_rig import Rig
from tests.support.proxy_talk import fresh, read_all

pytestmark = pytest.mark.root

HOST = "x.example.org"
ROUTE = wire.Route(HOST, headers={"x-team": "blue"}, query={"debug": None})


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = proxy_rig.start(tmp_path_factory.mktemp("proxy"), ledger=False)
    yield rig
    rig.stop()


@pytest.fixture
def rig(running: Rig) -> Rig:
    fresh(running)
    running.bottle(f"{HOST}:443", inspected=(HOST,), routes=(ROUTE,))
    return running


def test_headers_and_query_decide_and_the_answer_says_which(rig: Rig) -> None:
    team = {"X-Team": "blue"}
    assert rig.request(HOST, "/?a=1", headers=team).status == 200
    assert len(rig.upstream.seen) == 1
    missing, forbidden = rig.request(HOST, "/"), rig.request(HOST, "/?debug=1", headers=team)
    assert (missing.status, forbidden.status) == (403, 403)
    assert "Header x-team" in missing.json["error"]["message"] and "routes:" in missing.json["error"]["hint"]
    assert "debug" in forbidden.json["error"]["message"]
    assert rig.wait_event(kind="request", reason="query")["host"] == HOST
    assert len(rig.upstream.seen) == 1


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Length: 5\r\nContent-Length: 6", "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "Transfer-Encoding: xchunked",
        "Transfer-Encoding : chunked", "Content-Length: +5", "Content-Length: 5, 6", " Content-Length: 5",
    ],
)  # fmt: skip
def test_framing_that_can_be_read_in_two_ways_never_arrives(rig: Rig, lines: str) -> None:
    sock = rig.connect(HOST)
    head = f"POST / HTTP/1.1\r\nHost: {HOST}\r\nX-Team: blue\r\n{lines}\r\n\r\n"
    sock.sendall(head.encode() + b"0\r\n\r\nGET /?smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b" 200 " not in read_all(sock)
    sock.close()
    assert rig.upstream.seen == []
