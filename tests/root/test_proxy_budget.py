"""Requests that find their budget held by others, at a real worker and ledger: they wait, but not for ever."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.support import proxy_rig
from tests.support.proxy_rig import Rig
from tests.support.proxy_talk import ask, begin, closing, message, opening, read_all, read_until, sse
from tests.support.proxy_upstream import chunked, reply

pytestmark = pytest.mark.root
ROOM = 150  # for one request at its full bound, not for two


def full(rig: Rig) -> tuple[threading.Event, Any]:
    """A stream that holds the budget until the event is set."""
    rig.bottle(budget=ROOM)
    end = threading.Event()
    rig.upstream.script = chunked([opening(), end, closing(10)])
    sock = begin(rig, ask(stream=True))
    read_until(sock, b"message_start")
    return end, sock


def expect_nothing(sock: Any) -> None:
    sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        sock.recv(1)
    sock.settimeout(10)


def test_a_request_waits_for_the_settlement_of_another(rig: Rig) -> None:
    end, first = full(rig)
    second = begin(rig, ask())
    expect_nothing(second)
    assert len(rig.upstream.seen) == 1
    rig.upstream.script = reply(200, message(20, 5))
    end.set()
    assert proxy_rig.Response.read(second).status == 200
    assert rig.nothing_held() and len(rig.upstream.seen) == 2
    for sock in (first, second):
        sock.close()


def test_who_waits_is_refused_at_once_when_the_budget_is_spent_in_mid_stream(rig: Rig) -> None:
    more, end = threading.Event(), threading.Event()
    rig.bottle(budget=ROOM)
    rig.upstream.script = chunked([opening(), more, sse("message_delta", delta={}, usage={"output_tokens": ROOM}), end])
    first = begin(rig, ask(stream=True))
    read_until(first, b"message_start")
    second = begin(rig, ask())
    expect_nothing(second)
    more.set()
    response = proxy_rig.Response.read(second)
    assert (response.status, response.json["error"]["type"]) == (403, "budget_exhausted")
    assert "held" not in response.json["error"] and len(rig.upstream.seen) == 1
    end.set()
    first.close()
    second.close()
    assert rig.nothing_held()


def test_a_cut_ends_the_wait(rig: Rig) -> None:
    end, first = full(rig)
    second = begin(rig, ask())
    expect_nothing(second)
    assert rig.cut({}).closed == 1  # the stream; the other is answered when it asks again
    response = proxy_rig.Response.read(second)
    assert response.status == 403 and len(rig.upstream.seen) == 1
    end.set()
    read_all(first)
    second.close()
    assert rig.nothing_held()


def test_a_client_that_leaves_while_it_waits_costs_nothing(rig: Rig) -> None:
    before = len(rig.rows(0))
    end, first = full(rig)
    second = begin(rig, ask())
    expect_nothing(second)
    second.close()
    end.set()
    assert rig.nothing_held()
    assert len(rig.rows(before + 1)) == before + 1 and len(rig.upstream.seen) == 1
    first.close()
