"""HTTP as attackers write it, through a real worker: nothing reaches who is forbidden, the server that is allowed gets
requests that can be read in one way only and that were judged, and the next bottle is served."""

from __future__ import annotations

import contextlib
import random
import re
import select
import socket
import ssl
import time
from collections.abc import Iterator

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest
from h2.settings import SettingCodes

from agentmon import wire
from tests.support.http_corpus import CASES, EVIL, HOST
from tests.support.proxy_rig import SLOT, Rig
from tests.support.proxy_upstream import Seen, reply

pytestmark = pytest.mark.root

_LINE = re.compile(rb"[A-Z][A-Z-]{0,23} /ok/[!-~]* HTTP/1\.1")
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: ?[\t -~\x80-\xff]*")
FUZZED = 600
QUIET_S = 0.4
PASS = {"pipelined": [200, 403, 200], "cl.0": [200]}


@pytest.fixture(scope="module")
def rig(running: Rig) -> Iterator[Rig]:
    """One bottle for all: what an attack breaks, the next one shows."""
    route = wire.Route(HOST, paths=("/ok/*",), outbound="block")
    running.bottle(HOST, inspected=(HOST,), routes=(route,))
    running.upstream.script = reply(200, b"{}")
    yield running
    view = wire.BottleView(SLOT + 1, "other", "other", f"{running.net}.0.{SLOT + 1}", rules=(HOST,))
    assert running.ask(wire.SetBottle(running.control.next_id(), view)).error == ""
    sock = socket.create_connection((running.address, 80), 10, (f"{running.net}.0.{SLOT + 1}", 0))
    sock.settimeout(10)
    assert running.request(HOST, "/any", sock=sock).status == 200, "the next bottle is not served"
    sock.close()


def canonical(seen: Seen) -> None:
    """Asserts that any server reads this head alike, and that it was permitted."""
    lines = seen.raw_head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    assert _LINE.fullmatch(lines[0]), seen.raw_head
    assert all(_FIELD.fullmatch(line) for line in lines[1:]), seen.raw_head
    names = [line.partition(b":")[0].lower().replace(b"_", b"-") for line in lines[1:]]
    values = {n: line.partition(b":")[2].strip() for n, line in zip(names, lines[1:], strict=True)}
    assert names.count(b"host") == 1 and values[b"host"].lower() in (HOST.encode(), HOST.encode() + b":80")
    framing = names.count(b"content-length") + names.count(b"transfer-encoding")
    assert framing <= 1, seen.raw_head
    if b"content-length" in names:
        assert re.fullmatch(rb"\d{1,15}", values[b"content-length"])
    if b"transfer-encoding" in names:
        assert values[b"transfer-encoding"] == b"chunked"


def attack(rig: Rig, attempts: list[bytes], port: int) -> list[list[int]]:
    """The statuses that each is answered: all are sent at once, and read until nothing comes any more."""
    socks, got = [], [b""] * len(attempts)
    for data in attempts:
        sock = rig.connect(HOST, port)
        with contextlib.suppress(OSError, ssl.SSLError):
            sock.sendall(data)
        sock.setblocking(False)
        socks.append(sock)
    end = quiet = time.monotonic()
    while time.monotonic() - quiet < QUIET_S and time.monotonic() - end < 20:
        ready = select.select([sock for sock in socks if sock.fileno() >= 0], [], [], QUIET_S)[0]
        for n, sock in enumerate(socks):
            if sock not in ready:
                continue
            try:
                piece = sock.recv(65536)
            except (ssl.SSLWantReadError, BlockingIOError):
                continue
            except (OSError, ssl.SSLError):
                piece = b""
            quiet = time.monotonic()
            got[n] += piece
            if not piece:
                sock.close()
    for sock in socks:
        sock.close()
    return [[int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", text)] for text in got]


def judged(rig: Rig) -> None:
    for seen in rig.upstream.seen:
        canonical(seen)
        assert b"forbidden" not in seen.raw_head and EVIL.encode() not in seen.raw_head.split(b"\r\n")[0], seen.raw_head
    assert {name for _, name, _ in rig.lookups.asked} <= {HOST}, "another host was looked up"


@pytest.mark.parametrize("port", [80, 443])
def test_what_servers_read_differently(rig: Rig, port: int) -> None:
    rig.upstream.seen.clear()
    answers = dict(zip(CASES, attack(rig, list(CASES.values()), port), strict=True))
    judged(rig)
    assert {name: answers[name] for name in PASS} == PASS  # the corpus reaches the server where it may
    permitted = [status for statuses in answers.values() for status in statuses if status == 200]
    assert len(permitted) == len(rig.upstream.seen)
    assert all(
        status in (100, 200, 400, 403, 431, 501, 502, 505) for statuses in answers.values() for status in statuses
    )


def test_fuzzed_heads(rig: Rig) -> None:
    """Mutations of requests that are permitted, and of the corpus; the same ones each time."""
    rig.upstream.seen.clear()
    chance = random.Random(7)
    odd = [b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b",", b";", b"\x0b", b"\x7f", b"\xff", b"chunked", b"0"]
    seeds = [
        f"POST /ok/a HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 3\r\n\r\nabc".encode(),
        f"POST /ok/a HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".encode(),
    ]
    seeds += [case for case in CASES.values() if len(case) < 1000]
    attempts = []
    for n in range(FUZZED):
        data = bytearray(seeds[n % 2] if n % 3 else chance.choice(seeds))
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data))
            kind = chance.random()
            if kind < 0.5:
                data[at:at] = chance.choice(odd)
            elif kind < 0.8:
                data[at] = chance.randrange(256)
            else:
                del data[at : at + chance.randint(1, 6)]
        attempts.append(bytes(data))
    answers = [attack(rig, attempts[at : at + 100], 80) for at in range(0, FUZZED, 100)]
    judged(rig)
    permitted = sum(statuses.count(200) for batch in answers for statuses in batch)
    assert permitted == len(rig.upstream.seen) > 20  # some mutations are harmless


OVER = (h2.events.StreamEnded, h2.events.StreamReset, h2.events.ConnectionTerminated)
PSEUDO = [(":method", "POST"), (":scheme", "https"), (":authority", HOST), (":path", "/ok/a")]


def h2_attempts() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    def with_(**changes: str) -> list[tuple[str, str]]:
        return [(name, changes.get(name[1:], value)) for name, value in PSEUDO]

    yield "path with a line end", with_(path="/ok/a HTTP/1.1\r\nHost: evil\r\n\r\nGET /forbidden")
    yield "path with a space", with_(path="/ok/a HTTP/1.1 /forbidden")
    yield "path absolute", with_(path=f"https://{EVIL}/ok/a")
    yield "path forbidden", with_(path="/forbidden")
    yield "path empty", with_(path="")
    yield "path star", with_(path="*")
    yield "method with a line end", with_(method="GET /forbidden HTTP/1.1\r\nX: ")
    yield "method with a space", with_(method="GET /forbidden")
    yield "authority elsewhere", with_(authority=EVIL)
    yield "authority with a line end", with_(authority=f"{HOST}\r\nX: y")
    yield "authority with user", with_(authority=f"{HOST}@{EVIL}")
    yield "scheme with a line end", with_(scheme="https\r\nX: y")
    yield "scheme odd", with_(scheme="gopher")
    yield "two paths", [*PSEUDO, (":path", "/forbidden")]
    yield "two authorities", [*PSEUDO, (":authority", EVIL)]
    yield "host elsewhere", [*PSEUDO, ("host", EVIL)]
    yield "two hosts", [*PSEUDO, ("host", HOST), ("host", EVIL)]
    yield "pseudo after field", [*PSEUDO[:3], ("x", "y"), PSEUDO[3]]
    yield "unknown pseudo", [*PSEUDO, (":protocol", "websocket")]
    yield "connect", [(":method", "CONNECT"), (":authority", f"{EVIL}:443")]
    yield "extended connect", [*with_(method="CONNECT"), (":protocol", "websocket")]
    yield "transfer-encoding", [*PSEUDO, ("transfer-encoding", "chunked")]
    yield "connection", [*PSEUDO, ("connection", "content-length"), ("content-length", "0")]
    yield "upgrade", [*PSEUDO, ("upgrade", "h2c")]
    yield "content-length too small", [*PSEUDO, ("content-length", "1")]
    yield "content-length twice", [*PSEUDO, ("content-length", "3"), ("content-length", "0")]
    yield "content-length negative", [*PSEUDO, ("content-length", "-3")]
    yield "value with a line end", [*PSEUDO, ("x", "a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /forbidden")]
    yield "value with a bare CR", [*PSEUDO, ("x", "a\rb")]
    yield "value with NUL", [*PSEUDO, ("x", "a\0b")]
    yield "name with a line end", [*PSEUDO, ("x: y\r\ntransfer-encoding", "chunked")]
    yield "name with a colon", [*PSEUDO, ("x:y", "z")]
    yield "name with a space", [*PSEUDO, ("transfer-encoding ", "chunked")]
    yield "name in capitals", [*PSEUDO, ("Transfer-Encoding", "chunked")]
    yield "empty name", [*PSEUDO, ("", "x")]
    yield "many cookies", [*PSEUDO, *[("cookie", f"a{n}=b") for n in range(1000)]]


@pytest.mark.parametrize(("name", "headers"), list(h2_attempts()))
def test_http2_heads_that_mean_something_else_in_http1(rig: Rig, name: str, headers: list[tuple[str, str]]) -> None:
    rig.upstream.seen.clear()
    sock = rig.connect(HOST, alpn=["h2"])
    if sock.selected_alpn_protocol() != "h2":
        sock.close()
        pytest.skip("this mitmproxy takes no HTTP/2 from clients; 12.1.2 and newer do")
    config = h2.config.H2Configuration(
        client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False, header_encoding="latin1"
    )
    connection = h2.connection.H2Connection(config)
    connection.initiate_connection()
    connection.local_settings[SettingCodes.ENABLE_PUSH] = 0
    body = b"abc" + f"GET /forbidden HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    connection.send_headers(1, headers)
    with contextlib.suppress(h2.exceptions.ProtocolError):
        connection.send_data(1, body, end_stream=True)
    sock.sendall(connection.data_to_send())
    sock.settimeout(3)
    done = False
    with contextlib.suppress(OSError, ssl.SSLError, h2.exceptions.ProtocolError):
        while not done and (data := sock.recv(65536)):
            for event in connection.receive_data(data):
                done |= isinstance(
                    event, h2.events.StreamEnded | h2.events.StreamReset | h2.events.ConnectionTerminated
                )
    sock.close()
    judged(rig)
    assert all(seen.body == body or seen.body == body[: len(seen.body)] for seen in rig.upstream.seen)
