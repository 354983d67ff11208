"""http://agentmon.internal through a real worker: a bottle reads its own pages, and nothing makes it another's."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from agentmon import wire
from tests.support.proxy_rig import SLOT, Response, Rig

pytestmark = pytest.mark.root
INTERNAL = "agentmon.internal"
OTHER = SLOT + 1


@pytest.fixture
def two(rig: Rig) -> Rig:
    """A second bottle beside the rig's own."""
    rig.bottle()
    route = wire.Route("secret.example", auth_header="x-api-key", auth_credential="other-house")
    address = f"{rig.net}.0.{OTHER}"
    view = wire.BottleView(OTHER, "other", "run-other", address, rules=("secret.example:443",), routes=(route,))
    assert rig.ask(wire.SetBottle(rig.control.next_id(), view)).error == ""
    return rig


def from_other(rig: Rig, head: str) -> Response:
    with socket.create_connection((rig.address, 80), 10, (f"{rig.net}.0.{OTHER}", 0)) as sock:
        sock.settimeout(10)
        sock.sendall(head.encode())
        return Response.read(sock)


TRICKS = [
    ("GET /allowlist HTTP/1.1\r\nHost: {h}\r\n\r\n", 200),
    ("GET http://{h}/allowlist HTTP/1.1\r\nHost: {h}\r\n\r\n", 200),
    ("GET http://{h}/allowlist?bottle=other&slot=17 HTTP/1.1\r\nHost: {h}\r\n\r\n", 200),
    ("GET /allowlist HTTP/1.1\r\nHost: {h}:80\r\nX-Forwarded-For: {o}\r\nForwarded: for={o}\r\n\r\n", 200),
    ("GET /allowlist HTTP/1.1\r\nHost: other.{h}\r\n\r\n", 403),
    ("GET http://{o}/allowlist HTTP/1.1\r\nHost: {h}\r\n\r\n", 403),
    ("GET http://other@{h}/allowlist HTTP/1.1\r\nHost: {h}\r\n\r\n", None),
    ("GET /allowlist HTTP/1.1\r\nHost: {h}\r\nHost: {o}\r\n\r\n", None),
    ("GET /../other/allowlist HTTP/1.1\r\nHost: {h}\r\n\r\n", 404),
    ("GET /allowlist/17 HTTP/1.1\r\nHost: {h}\r\n\r\n", 404),
    ("POST /allowlist HTTP/1.1\r\nHost: {h}\r\nContent-Length: 0\r\n\r\n", 405),
]


@pytest.mark.parametrize(("head", "status"), TRICKS)
def test_no_request_gets_another_bottles_page(two: Rig, head: str, status: int | None) -> None:
    sock = two.connect(None, 80)
    sock.sendall(head.format(h=INTERNAL, o=f"{two.net}.0.{OTHER}").encode())
    try:
        response = Response.read(sock)
    except (IndexError, OSError):  # closed without an answer
        assert status is None
        return
    finally:
        sock.close()
    assert status is None or response.status == status
    assert b"secret.example" not in response.body and b'"other"' not in response.body
    if response.status == 200:
        assert response.json["bottle"] == "crate" and response.json["rules"] == list(two.view.rules)


def test_each_reads_its_own_and_no_name_of_a_credential(two: Rig) -> None:
    said = from_other(two, f"GET /allowlist HTTP/1.1\r\nHost: {INTERNAL}\r\n\r\n")
    assert said.json["bottle"] == "other" and said.json["routes"][0]["auth"] == "replaced"
    assert b"other-house" not in said.body and b"x-api-key" not in said.body


def test_healthz_tells_what_is_away(two: Rig) -> None:
    assert two.request(INTERNAL, "/healthz", port=80).json["services"] == {"ledger": "ok", "resolver": "ok"}
    assert two.ledger is not None
    os.kill(two.ledger.pid, signal.SIGSTOP)
    try:
        said = two.request(INTERNAL, "/healthz", port=80)
        assert (said.status, said.json["status"], said.json["services"]["ledger"]) == (200, "degraded", "unavailable")
        assert two.request(INTERNAL, "/budget", port=80).status == 503
    finally:
        os.kill(two.ledger.pid, signal.SIGCONT)
