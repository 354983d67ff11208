"""The route's credential instead of the bottle's own, through a real worker to a real server."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
from pathlib import Path

import msgspec
import pytest

from agentmon import wire
from tests.support import proxy_rig
from tests.support.proxy_rig import Rig
from tests.support.proxy_talk import CLAUDE, ask, fresh, message
from tests.support.proxy_upstream import Seen, reply

try:
    import httpx2
except ModuleNotFoundError:  # for Python 3.11 the locked SDKs still bring httpx
    import httpx as httpx2

pytestmark = pytest.mark.root

HOST = "x.example.org"
KEY = "sk-planted-route-0815"
ROUTE = wire.Route(HOST, auth_header="x-api-key", auth_credential="house")


@pytest.fixture
def rig(running: Rig) -> Rig:
    fresh(running)
    running.bottle(f"{HOST}:443", f"http://{HOST}", inspected=(HOST,), routes=(ROUTE,))
    give(running, house=KEY)
    return running


def give(rig: Rig, run: str = "", **values: str) -> str:
    answer = rig.ask(wire.SetCredentials(rig.control.next_id(), 16, run or rig.run, values))
    return str(answer.error)


def test_the_server_sees_the_routes_key_and_no_other(rig: Rig) -> None:
    own = {
        "Authorization": "Bearer attacker", "X-Api-Key": "attacker", "x_api_key": "attacker", "Cookie": "s=attacker",
        "X-Goog-Api-Key": "attacker", "X-Other": "stays",
    }  # fmt: skip
    assert rig.request(HOST, "/v1?key=attacker&a=1&api%5Fkey=attacker", headers=own).status == 200
    seen = rig.upstream.seen[-1]
    assert b"attacker" not in seen.raw_head and seen.raw_head.lower().count(b"x-api-key:") == 1
    assert (seen.headers["x-api-key"], seen.headers["x-other"], seen.target) == (KEY, "stays", "/v1?a=1")


def test_http2_is_given_it_too(rig: Rig) -> None:
    context = ssl.create_default_context(cafile=str(rig.ca))
    transport = httpx2.HTTPTransport(verify=context, http2=True, local_address=rig.source)
    own = {"Host": HOST, "X-Api-Key": "attacker", "Cookie": "a=attacker"}
    with httpx2.Client(transport=transport, timeout=10, headers=own) as client:
        answer = client.get(f"https://{rig.address}/v1?key=attacker", extensions={"sni_hostname": HOST})
    assert answer.status_code == 200 and (sys.version_info < (3, 12) or answer.http_version == "HTTP/2")
    seen = rig.upstream.seen[-1]
    assert b"attacker" not in seen.raw_head and (seen.headers["x-api-key"], seen.target) == (KEY, "/v1")


def test_repeated_headers_go_as_well(rig: Rig) -> None:
    sock = rig.connect(HOST)
    sock.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\nx-api-key: attacker\r\nX-API-KEY: attacker2\r\n\r\n".encode())
    assert proxy_rig.Response.read(sock).status == 200
    sock.close()
    assert b"attacker" not in rig.upstream.seen[-1].raw_head


def test_without_the_credential_nothing_is_sent(rig: Rig) -> None:
    assert give(rig) == ""
    response = rig.request(HOST, "/", headers={"X-Api-Key": "attacker"})
    assert response.status == 403 and response.json["error"]["type"] == "egress_denied"
    assert "'house'" in response.json["error"]["message"] and rig.upstream.seen == []
    event = rig.wait_event(kind="request", reason="credential")
    assert event["verdict"] == "refused" and "secrets.md" in event["hint"]


def test_the_credential_of_another_run_is_not_used(rig: Rig) -> None:
    give(rig, run="run-of-another", house=KEY)
    assert rig.request(HOST, "/").status == 403 and rig.upstream.seen == []


def test_what_is_no_header_value_leaves_the_run_without(rig: Rig) -> None:
    error = give(rig, house=f"{KEY}\r\nx-evil: 1")
    assert "credential" in error and KEY not in error
    assert rig.request(HOST, "/").status == 403 and rig.upstream.seen == []


def test_plain_http_is_never_given_one(rig: Rig) -> None:
    assert rig.request(HOST, "/", port=80).status == 403
    assert rig.wait_event(kind="request", reason="plain")["host"] == HOST and rig.upstream.seen == []


def test_the_next_request_of_an_open_connection_has_the_new_one(rig: Rig) -> None:
    sock = rig.connect(HOST)
    assert rig.request(HOST, "/1", sock=sock).status == 200
    give(rig, house="sk-new")
    assert rig.request(HOST, "/2", sock=sock).status == 200
    sock.close()
    assert [s.headers["x-api-key"] for s in rig.upstream.seen] == [KEY, "sk-new"]


def test_the_first_route_that_covers_a_request_decides(rig: Rig) -> None:
    routes = (
        wire.Route(HOST, paths=("/open/*",)),
        wire.Route("*.example.org", auth_header="authorization", auth_credential="house", methods=("GET",)),
    )
    rig.bottle(f"{HOST}:443", inspected=(HOST,), routes=routes)
    give(rig, house=KEY)
    assert rig.request(HOST, "/open/a", headers={"Authorization": "own"}).status == 200
    assert rig.request(HOST, "/else", headers={"Authorization": "own"}).status == 200
    assert [s.headers["authorization"] for s in rig.upstream.seen] == ["own", f"Bearer {KEY}"]
    assert rig.request(HOST, "/else", b"{}").status == 403
    assert rig.request(HOST, "/else", headers={"X-HTTP-Method-Override": "DELETE"}).status == 200
    assert "x-http-method-override" not in rig.upstream.seen[-1].headers


def test_a_metered_request_has_it_too(rig: Rig) -> None:
    rig.bottle(routes=(wire.Route(CLAUDE, auth_header="x-api-key", auth_credential="house"),))
    give(rig, house=KEY)
    rig.upstream.script = reply(200, message())
    assert rig.request(CLAUDE, "/v1/messages", ask(), headers={"x-api-key": "attacker"}).status == 200
    assert rig.upstream.seen[-1].headers["x-api-key"] == KEY


async def repeat(seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Answer with what came, in pieces that part the key."""
    key = seen.headers["x-api-key"]
    body = json.dumps({"headers": seen.headers, "url": f"https://evil.example.net/?key={key}"}).encode()
    head = f"HTTP/1.1 302 X\r\nLocation: https://evil.example.net/?key={key}\r\nContent-Type: text/plain\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
    for at in range(0, len(body), 7):
        writer.write(body[at : at + 7])
        await writer.drain()
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("inbound", ["off", "warn", "block"])
@pytest.mark.parametrize("key", [KEY, 'sk/"quoted"/0815'])
def test_a_server_that_repeats_the_key_does_not_give_it_away(rig: Rig, inbound: str, key: str) -> None:
    rig.bottle(f"{HOST}:443", inspected=(HOST,), routes=(msgspec.structs.replace(ROUTE, inbound=inbound),))
    give(rig, house=key)
    rig.upstream.script = repeat
    answer = rig.request(HOST, "/", headers={"Accept-Encoding": "gzip"})
    seen = rig.upstream.seen[-1]
    assert seen.headers["x-api-key"] == key and seen.headers["accept-encoding"] == "identity"
    shown = json.dumps(answer.headers) + answer.body.decode()
    assert answer.status == 302 and not answer.broken
    assert key not in shown and json.dumps(key)[1:-1] not in shown
    assert answer.json["headers"]["host"] == HOST and set(answer.json["headers"]["x-api-key"]) == {"*"}


def test_what_asks_a_server_to_repeat_is_refused(rig: Rig) -> None:
    assert rig.request(HOST, "/", method="TRACE").status == 403 and rig.upstream.seen == []


def test_a_dropped_bottle_takes_its_credentials_along(rig: Rig) -> None:
    run = rig.run
    assert rig.ask(wire.DropBottle(rig.control.next_id(), 16)).error == ""
    rig.bottle(f"{HOST}:443", inspected=(HOST,), routes=(ROUTE,))
    assert rig.ask(wire.SetBottle(rig.control.next_id(), wire.BottleView(
        16, "crate", run, rig.source, rules=(f"{HOST}:443",), inspected=(HOST,), routes=(ROUTE,)
    ))).error == ""  # fmt: skip
    assert rig.request(HOST, "/").status == 403 and rig.upstream.seen == []


def test_it_is_nowhere_but_in_the_request(rig: Rig) -> None:
    """With `log: full`, after requests that pass, that are refused, and an upstream that breaks off."""
    rig.bottle(f"{HOST}:443", inspected=(HOST,), routes=(ROUTE,), log="full")
    give(rig, house=KEY)
    assert rig.request(HOST, "/").status == 200
    rig.lookups.error = "nxdomain"
    assert rig.request(HOST, "/").status == 502
    give(rig, house=f"{KEY} \n")
    assert rig.request(HOST, "/").status == 403
    assert any(KEY.encode() in seen.raw_head for seen in rig.upstream.seen), "the probe does not find what is there"
    rig.wait_event(kind="request", reason="credential")
    assert KEY not in repr(rig.events)
    for file in rig.directory.rglob("*"):
        if file.is_file():
            assert KEY.encode() not in file.read_bytes(), file
    pids = [rig.proxy.pid, *([rig.ledger.pid] if rig.ledger else []), os.getpid()]
    for pid in pids:
        for name in ("environ", "cmdline"):
            assert KEY.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
