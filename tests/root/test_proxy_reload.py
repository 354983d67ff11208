"""What a worker is told anew while a stream runs: the stream keeps what it began with, the next request does not."""

from __future__ import annotations

import threading

import pytest

from agentmon import wire
from tests.support.proxy_rig import Rig
from tests.support.proxy_talk import DELTA, ask, begin, closing, last_row, opening, read_until
from tests.support.proxy_upstream import chunked, reply

pytestmark = pytest.mark.root
PLAIN = "www.example.org"


def providers(rig: Rig, declared: dict[str, object]) -> str:
    answer = rig.ask(wire.SetProviders(rig.control.next_id(), declared))
    assert isinstance(answer, wire.Ack)
    return answer.error


def test_views_and_providers_change_under_a_metered_stream(rig: Rig) -> None:
    before = len(rig.rows(0))
    rig.bottle("api.anthropic.com:443", f"{PLAIN}:443", inspected=("api.anthropic.com", PLAIN))
    gate = threading.Event()
    rig.upstream.script = chunked([opening(), gate, DELTA + closing(42)])
    sock = begin(rig, ask(stream=True))
    read_until(sock, b"message_start")
    for n in range(20):
        view = wire.BottleView(**{f: getattr(rig.view, f) for f in rig.view.__struct_fields__} | {"epoch": n})
        assert rig.ask(wire.SetBottle(rig.control.next_id(), view)).error == ""
        declared = {"claude": {"hosts": [PLAIN]}} if n % 2 == 0 else {}
        assert providers(rig, declared) == ""
    gate.set()
    read_until(sock, b"0\r\n\r\n")
    sock.close()
    assert last_row(rig, before)[5:] == (42, "wire", 1)  # charged by the declaration that it began under
    assert rig.nothing_held()


def test_the_next_request_is_judged_by_the_new_ones_and_bad_ones_are_not_taken(rig: Rig) -> None:
    rig.bottle(f"{PLAIN}:443", inspected=(PLAIN,))
    rig.upstream.script = reply(200, b"plain")
    assert rig.request(PLAIN, "/page").status == 200
    assert providers(rig, {"claude": {"hosts": [PLAIN]}}) == ""
    refused = rig.request(PLAIN, "/page")
    assert refused.status == 403 and "cannot be metered" in refused.json["error"]["message"]
    assert "SetProviders: " in providers(rig, {"claude": {"hosts": 3}})
    assert rig.request(PLAIN, "/page").status == 403
    assert providers(rig, {}) == ""
    assert rig.request(PLAIN, "/page").status == 200
