"""A provider's own count at the gate, by a real worker and ledger: it is held and never booked, and its failure costs
no more than the wait that there was anyway."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from agentmon import wire
from tests.support import proxy_rig
from tests.support.proxy_rig import SLOT, Rig
from tests.support.proxy_talk import CLAUDE, OPENAI, ask, begin, closing, fresh, message, opening, read_all, read_until
from tests.support.proxy_upstream import Script, Seen, chunked, reply

pytestmark = pytest.mark.root
COUNT = "/v1/messages/count_tokens"
OPENAI_COUNT = "/v1/responses/input_tokens"
BUDGET = 1000
LONG = [{"role": "user", "content": "x" * 6000}]  # 2,000 tokens and some by our estimate, more than all of it
KEY = "sk-ant-of-the-bottle"
ROUTES_KEY = "sk-planted-route-0815"


@pytest.fixture
def rig(running: Rig) -> Iterator[Rig]:
    yield fresh(running)
    declare(running, {})


def declare(rig: Rig, providers: dict[str, Any]) -> None:
    answer = rig.ask(wire.SetProviders(rig.control.next_id(), providers))
    assert isinstance(answer, wire.Ack) and answer.error == ""


def full(
    rig: Rig, answer: Script, *, routes: tuple[wire.Route, ...] = (), **claude: Any
) -> tuple[threading.Event, threading.Event, Any]:
    """A stream that holds some of the budget until the first event; other messages are answered after the second."""
    declare(rig, {"claude": {"count": True} | claude})
    rig.bottle(f"{CLAUDE}:443", f"{OPENAI}:443", "llm.corp.example:443", budget=BUDGET, routes=routes)
    assert rig.ask(wire.SetCredentials(rig.control.next_id(), SLOT, rig.run, {"house": ROUTES_KEY})).error == ""
    end, go = threading.Event(), threading.Event()
    stream = chunked([opening(), end, closing(10)])

    async def script(seen: Seen, writer: asyncio.StreamWriter) -> None:
        if seen.target in {COUNT, OPENAI_COUNT}:
            await answer(seen, writer)
        elif b'"stream": true' in seen.body:
            await stream(seen, writer)
        else:
            while not go.is_set():
                await asyncio.sleep(0.002)
            await reply(200, message(55, 5))(seen, writer)

    rig.upstream.script = script
    sock = begin(rig, ask(stream=True))
    read_until(sock, b"message_start")
    return end, go, sock


def asks(rig: Rig, host: str = CLAUDE) -> Any:
    """A socket with a request that has no room by our estimate."""
    body = ask(messages=LONG, temperature=1)
    sock = rig.connect(host)
    head = f"Host: {host}\r\nx-api-key: {KEY}\r\nanthropic-version: 2023-06-01\r\nx-own: 1\r\n"
    sock.sendall(f"POST /v1/messages HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return sock


def asked(rig: Rig) -> list[Seen]:
    return [seen for seen in rig.upstream.seen if seen.target == COUNT]


def hang(left: threading.Event | None = None) -> Script:
    """No answer until who asked has left."""

    async def script(_seen: Seen, writer: asyncio.StreamWriter) -> None:
        for _ in range(6000):
            if writer.is_closing():
                break
            await asyncio.sleep(0.005)
        (left or threading.Event()).set()

    return script


def breaks() -> Script:
    async def script(_seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b'HTTP/1.1 200 X\r\ncontent-length: 99\r\n\r\n{"input_tokens"')
        writer.close()

    return script


def test_the_count_is_held_and_never_booked(rig: Rig) -> None:
    before = len(rig.rows(0))
    end, go, first = full(rig, reply(200, b'{"input_tokens": 50}'))
    held = rig.held()
    second = asks(rig)
    wait_for(rig, 3)
    assert rig.held() - held == 150  # 50 counted, and 100 of output
    (count,) = asked(rig)
    assert count.method == "POST" and json.loads(count.body) == {"model": "claude-x", "messages": LONG}
    assert count.headers["x-api-key"] == KEY and count.headers["anthropic-version"] == "2023-06-01"
    assert count.headers["host"] == CLAUDE and "x-own" not in count.headers
    go.set()
    assert proxy_rig.Response.read(second).json["usage"]["input_tokens"] == 55
    end.set()
    read_until(first, b"0\r\n\r\n")
    assert rig.nothing_held()
    assert sorted(row[2] for row in rig.rows(before + 2)[before:]) == [20, 55]
    for sock in (first, second):
        sock.close()


def test_a_response_of_openai_is_counted_too(rig: Rig) -> None:
    end, go, first = full(rig, reply(200, b'{"object": "response.input_tokens", "input_tokens": 60}'))
    declare(rig, {"openai": {"count": True}})
    held, brings = rig.held(), {"model": "gpt-x", "input": "x" * 6000}
    body = json.dumps(brings | {"max_output_tokens": 40, "store": False}).encode()
    second = begin(rig, body, "/v1/responses", OPENAI)
    wait_for(rig, 3)
    count = rig.upstream.seen[1]
    assert (count.target, json.loads(count.body)) == (OPENAI_COUNT, brings)
    assert rig.held() - held == 100
    go.set()
    end.set()
    assert proxy_rig.Response.read(second).status == 200
    assert rig.nothing_held()
    for sock in (first, second):
        sock.close()


def test_the_routes_key_is_shown_to_the_provider_alone(rig: Rig) -> None:
    """Also by a server that says it back."""
    route = wire.Route(CLAUDE, auth_header="x-api-key", auth_credential="house")
    end, go, first = full(rig, reply(401, ROUTES_KEY.encode(), {"x-echo": ROUTES_KEY}), routes=(route,))
    second = asks(rig)
    rig.wait_event(kind="count", reason="status 401")
    (count,) = asked(rig)
    assert count.headers["x-api-key"] == ROUTES_KEY and KEY.encode() not in count.raw_head
    go.set()
    end.set()
    answer = proxy_rig.Response.read(second)
    assert answer.status == 200 and ROUTES_KEY not in f"{answer}{rig.events}"
    assert ROUTES_KEY not in (rig.directory / "proxy.log").read_text()
    assert rig.nothing_held()
    for sock in (first, second):
        sock.close()


@pytest.mark.parametrize(
    ("count", "why"),
    [
        (reply(500, b'{"input_tokens": 50}'), "status 500"),
        (reply(302, b"", {"location": f"https://{CLAUDE}{COUNT}?x"}), "status 302"),
        (reply(200, b"<html>"), "no count"),
        (reply(200, b'{"input_tokens": 50, "x": "' + b"x" * (64 << 10) + b'"}'), "too long"),
        (breaks(), "protocol"),
        (hang(), "timeout"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_count_leaves_our_estimate_and_the_request_goes_on(rig: Rig, count: Script, why: str) -> None:
    before = len(rig.rows(0))
    end, go, first = full(rig, count)
    second = asks(rig)
    told = rig.wait_event(kind="count", reason=why)
    assert (told["verdict"], told["bottle"], told["host"]) == ("observed", "crate", CLAUDE) and KEY not in str(told)
    assert [seen.target for seen in rig.upstream.seen] == ["/v1/messages", COUNT]  # once, and it still waits
    go.set()
    end.set()
    assert proxy_rig.Response.read(second).status == 200
    assert rig.nothing_held() and len(asked(rig)) == 1
    assert sorted(row[2] for row in rig.rows(before + 2)[before:]) == [20, 55]
    for sock in (first, second):
        sock.close()


def test_credentials_go_to_no_server_that_does_not_prove_its_name(rig: Rig) -> None:
    end, _go, first = full(rig, reply(200, b'{"input_tokens": 50}'), hosts=["llm.corp.example"])
    second = asks(rig, "llm.corp.example")
    rig.wait_event(kind="count", reason="unreachable", host="llm.corp.example")
    assert asked(rig) == []
    end.set()
    assert proxy_rig.Response.read(second).status == 502
    assert rig.nothing_held()
    for sock in (first, second):
        sock.close()


def test_a_cut_gives_the_question_up(rig: Rig) -> None:
    left = threading.Event()
    end, _go, first = full(rig, hang(left))
    second = asks(rig)
    wait_for(rig, 2)
    assert not left.is_set()
    rig.cut({})
    assert proxy_rig.Response.read(second).status == 403
    assert left.wait(1)  # its own time is 2 s
    end.set()
    read_all(first)
    second.close()
    assert rig.nothing_held() and not [event for event in rig.events if event["kind"] == "count"]


def test_nobody_is_asked_without_the_setting(rig: Rig) -> None:
    end, go, first = full(rig, reply(200, b'{"input_tokens": 50}'), count=False)
    second = asks(rig)
    second.settimeout(0.3)
    with pytest.raises(TimeoutError):
        second.recv(1)
    second.settimeout(10)
    go.set()
    end.set()
    assert proxy_rig.Response.read(second).status == 200 and asked(rig) == []
    for sock in (first, second):
        sock.close()


def test_nobody_is_asked_where_there_is_room(rig: Rig) -> None:
    end, go, first = full(rig, reply(200, b'{"input_tokens": 50}'))
    go.set()
    assert rig.request(CLAUDE, "/v1/messages", ask()).status == 200 and asked(rig) == []
    end.set()
    first.close()
    assert rig.nothing_held()


def wait_for(rig: Rig, requests: int) -> None:
    """Until the upstream has seen so many."""
    end = threading.Event()
    for _ in range(1000):
        if len(rig.upstream.seen) >= requests:
            return
        end.wait(0.01)
    raise AssertionError([seen.target for seen in rig.upstream.seen])
