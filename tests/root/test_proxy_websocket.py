"""WebSockets through a real worker: the `websockets` library on both sides, real TLS, real ledger."""

from __future__ import annotations

import gzip
import json
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from agentmon import wire
from tests.support import proxy_rig
from tests.support.proxy_rig import SLOT, Rig
from tests.support.proxy_talk import CLAUDE, OPENAI, SPENT, fresh, read_all, read_until
from tests.support.proxy_upstream import chunked
from tests.support.socket_upstream import SocketUpstream, dial

pytestmark = pytest.mark.root

REALTIME = f"wss://{OPENAI}/v1/realtime?model=rt-1"
PLAIN = "wss://chat.example.org/socket"


@pytest.fixture(scope="module")
def server(running: Rig) -> Iterator[SocketUpstream]:
    upstream = SocketUpstream(f"{running.net}.1.2", running.upstream._context)
    yield upstream
    upstream.stop()


@pytest.fixture
def rig(running: Rig, server: SocketUpstream) -> Rig:
    fresh(running)
    server.fresh()
    running.lookups.address = server.address
    return running


def example(rig: Rig, **view: Any) -> None:
    rig.bottle("chat.example.org", inspected=("chat.example.org",), **view)


def test_messages_pass_both_ways_whatever_their_frames(rig: Rig, server: SocketUpstream) -> None:
    example(rig)
    with dial(rig, PLAIN) as client:
        for message in ("hello", b"\x00\xff" * 70_000, "é🙂" * 1000, "", "a" * (3 << 20)):
            client.send(message)
            assert client.recv(10) == message
        client.send(["in ", "four", "", " frames"])
        assert client.recv(10) == "in four frames"
        assert client.ping(b"payload of a ping").wait(5)
    assert server.ended.wait(5) and server.closed == [(1000, "")]
    assert "sec-websocket-extensions" in server.heads[0]  # compressed by either side


@pytest.mark.parametrize("compression", ["deflate", None])
def test_pings_carry_nothing_to_the_other_side(rig: Rig, server: SocketUpstream, compression: str | None) -> None:
    example(rig)
    heard: list[bytes] = []

    async def script(peer: Any) -> None:
        peer.protocol.debug = True
        send_pong = peer.protocol.send_pong
        peer.protocol.send_pong = lambda data: (heard.append(bytes(data)), send_pong(data))
        receive = peer.protocol.recv_frame

        def frame(frame: Frame) -> None:
            if frame.opcode in (Opcode.PING, Opcode.PONG):
                heard.append(bytes(frame.data))
            receive(frame)

        peer.protocol.recv_frame = frame
        await peer.recv()
        await peer.send("done")

    server.script = script
    with dial(rig, PLAIN, compression=compression) as client:
        for n in range(5):
            assert client.ping(b"secret %d" % n).wait(5)
        client.send("x")
        assert client.recv(5) == "done"
        client.close(4001, "a secret reason")
    assert server.ended.wait(5)
    assert len(heard) >= 5 and set(heard) == {b""}
    assert all("secret" not in (reason or "") for _, reason in server.closed)


def test_cleartext_sockets_pass_where_the_rule_is_http(rig: Rig, server: SocketUpstream) -> None:
    example(rig)
    with dial(rig, "ws://chat.example.org/socket") as client:
        client.send("plain")
        assert client.recv(5) == "plain"
    with pytest.raises(InvalidStatus) as refused:
        dial(rig, "ws://other.example.org/socket")
    assert refused.value.response.status_code == 403


def test_the_servers_close_and_a_client_that_is_gone(rig: Rig, server: SocketUpstream) -> None:
    example(rig)

    async def script(peer: Any) -> None:
        await peer.close(4242, "enough")

    server.script = script
    client = dial(rig, PLAIN)
    with pytest.raises(ConnectionClosed) as closed:
        client.recv(5)
    assert closed.value.rcvd is not None and (closed.value.rcvd.code, closed.value.rcvd.reason) == (4242, "enough")
    assert server.ended.wait(5)
    server.fresh()
    client = dial(rig, PLAIN)
    client.socket.close()
    assert server.ended.wait(5) and server.closed[0][0] in (1001, 1006)


HANDSHAKE = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip


@pytest.mark.parametrize(
    ("host", "path", "headers", "body"),
    [
        ("chat.example.org", "/elsewhere", {}, None),  # not the route's path
        (CLAUDE, "/v1/messages", {}, None),  # a metered host that declares no sockets
        (OPENAI, "/v1/chat/completions", {}, None),
        (OPENAI, "/v1//realtime", {}, None),
        ("chat.example.org", "/socket", {"Upgrade": "h2c"}, None),
        ("chat.example.org", "/socket", {"Upgrade": "websocket, h2c"}, None),
        ("chat.example.org", "/socket", {"Connection": "keep-alive"}, None),
        ("chat.example.org", "/socket", {"Sec-WebSocket-Version": "8"}, None),
        ("chat.example.org", "/socket", {}, b"GET"),
    ],
)
def test_what_is_no_handshake_or_not_permitted_is_refused(
    rig: Rig, server: SocketUpstream, host: str, path: str, headers: dict[str, str], body: bytes | None
) -> None:
    route = wire.Route("chat.example.org", paths=("/socket",))
    rig.bottle("chat.example.org:443", f"{CLAUDE}:443", f"{OPENAI}:443", routes=(route,),
               inspected=("chat.example.org", CLAUDE, OPENAI))  # fmt: skip
    assert rig.request(host, path, body, method="GET", headers=HANDSHAKE | headers).status == 403
    assert server.heads == [] and server.seen == []


def test_a_switch_that_nobody_asked_for_is_not_passed_on(rig: Rig) -> None:
    async def script(seen: Any, writer: Any) -> None:
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: x\r\n\r\n\x81\x05hello"
        )

    rig.lookups.address = rig.upstream.address
    rig.upstream.script = script
    example(rig)
    sock = rig.connect("chat.example.org")
    sock.sendall(b"GET / HTTP/1.1\r\nHost: chat.example.org\r\nSec-WebSocket-Version: 13\r\n\r\n")
    got = read_all(sock)
    sock.close()
    assert b"101" not in got and b"hello" not in got
    assert "another protocol" in rig.wait_event(kind="request", reason="hook responseheaders")["detail"]["error"]


def test_a_credential_is_put_into_the_handshake_and_the_bottles_own_stays_behind(
    rig: Rig, server: SocketUpstream
) -> None:
    route = wire.Route("chat.example.org", auth_header="authorization", auth_credential="chat")
    example(rig, routes=(route,))
    give = wire.SetCredentials(rig.control.next_id(), SLOT, rig.run, {"chat": "the-host's"})
    assert rig.ask(give).error == ""
    headers = {"Authorization": "Bearer the-bottle's"}
    with dial(rig, PLAIN, additional_headers=headers, subprotocols=["openai-insecure-api-key.sk-own"]) as client:
        client.send("x")
        assert client.recv(5) == "x"
    assert server.heads[0]["authorization"] == "Bearer the-host's"
    assert "sec-websocket-protocol" not in server.heads[0]


def test_a_message_over_the_limit_closes_the_socket(rig: Rig, server: SocketUpstream) -> None:
    example(rig)
    client = dial(rig, PLAIN, compression=None)
    with pytest.raises(ConnectionClosed):
        client.send("x" * (17 << 20))
        client.recv(10)
    assert client.protocol.close_code == 1009
    assert server.ended.wait(5) and server.seen == []
    assert "1009" in rig.wait_event(kind="websocket", reason="limit")["detail"]["error"]


def test_a_message_that_inflates_beyond_the_limit_closes_the_socket(rig: Rig, server: SocketUpstream) -> None:
    example(rig)
    before = rss(rig)
    Path(f"/proc/{rig.proxy.pid}/clear_refs").write_text("5")  # the peak begins anew (proc_pid_clear_refs(5))
    client = dial(rig, "ws://chat.example.org/socket")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = (packer.compress(bytes(512 << 20)) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]
    client.socket.sendall(b"\xc2\xff" + len(bomb).to_bytes(8, "big") + bytes(4) + bomb)
    with pytest.raises(ConnectionClosed):
        client.recv(10)
    assert client.protocol.close_code == 1009 and server.seen == []
    status = Path(f"/proc/{rig.proxy.pid}/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) << 10
    assert peak < before + (56 << 20)  # one read of 64 KiB inflates to 64 MiB


def rss(rig: Rig) -> int:
    return int(Path(f"/proc/{rig.proxy.pid}/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize(
    "frame",
    [
        b"\x81\x05hello",  # not masked
        b"\xf1\x81\0\0\0\0x",  # reserved bits
        b"\x83\x81\0\0\0\0x",  # an opcode that is none
        b"\x09\x81\0\0\0\0x",  # a control frame in pieces
        b"\x89\xfe\x00\x80\0\0\0\0" + b"x" * 128,  # a control frame of more than 125 bytes
        b"\x80\x81\0\0\0\0x",  # a continuation of nothing
        b"\x81\x82\0\0\0\0\xff\xfe",  # not UTF-8
        b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0x",  # a length of 2^64 - 1
    ],
)
def test_broken_frames_reach_nobody(rig: Rig, server: SocketUpstream, frame: bytes) -> None:
    example(rig)
    client = dial(rig, PLAIN, compression=None)
    client.socket.sendall(frame)
    with pytest.raises(ConnectionClosed):
        client.recv(10)
    assert client.protocol.close_code in (1002, 1007, 1009)
    assert server.ended.wait(5) and server.seen == []


def test_no_message_is_kept(rig: Rig, server: SocketUpstream) -> None:
    example(rig)
    with dial(rig, PLAIN, compression=None) as client:
        client.send(b"w" * (4 << 20))
        client.recv(10)
        before = rss(rig)
        for _ in range(40):
            client.send(b"x" * (4 << 20))
            client.recv(10)
        assert rss(rig) < before + (60 << 20)


# ── metering ──


def said(kind: str, **more: Any) -> str:
    return json.dumps({"type": kind} | more)


def realtime(usage_out: int = 5) -> Any:
    """A server that answers each response.create by one response of so many tokens."""

    async def script(peer: Any) -> None:
        await peer.send(said("session.created", session={"model": "rt-1"}))
        n = 0
        while True:
            try:
                message = await peer.recv()
            except ConnectionClosed:
                return
            event = json.loads(message)
            if event["type"] != "response.create":
                continue
            n += 1
            number = f"resp_{id(peer):x}_{n}"
            await peer.send(said("response.created", response={"id": number}))
            await peer.send(said("response.output_text.delta", response_id=number, delta="x" * 300))
            if event.get("hang"):
                continue
            usage = {"input_tokens": 10, "output_tokens": usage_out}
            await peer.send(said("response.done", response={"id": number, "usage": usage}))

    return script


def test_every_response_on_a_socket_is_held_and_is_a_row(rig: Rig, server: SocketUpstream) -> None:
    before = len(rig.rows(0))
    server.script = realtime(7)
    with dial(rig, REALTIME) as client:
        assert json.loads(client.recv(5))["type"] == "session.created"
        for _ in range(3):
            client.send(said("response.create", response={"max_output_tokens": 50}))
            assert [json.loads(client.recv(5))["type"] for _ in range(3)][-1] == "response.done"
    rows = rig.rows(before + 3)[before:]
    assert rows == [("openai", "rt-1", 10, 0, 0, 7, "wire", 1)] * 3
    assert rig.nothing_held()


def test_what_is_asked_and_told_in_binary_frames_is_held_and_is_a_row(rig: Rig, server: SocketUpstream) -> None:
    before = len(rig.rows(0))

    async def script(peer: Any) -> None:
        async for message in peer:
            assert isinstance(message, bytes)
            usage = {"input_tokens": 10, "output_tokens": 9}
            answer = {"response": {"id": f"resp_b{id(peer):x}", "usage": usage}}
            await peer.send(said("response.done", **answer).encode())

    server.script = script
    with dial(rig, REALTIME) as client:
        client.send(said("response.create", response={"max_output_tokens": 50}).encode())
        assert json.loads(client.recv(5))["type"] == "response.done"
    assert rig.rows(before + 1)[before:] == [("openai", "rt-1", 10, 0, 0, 9, "wire", 1)]
    assert rig.nothing_held()


def test_a_response_that_is_lost_with_its_socket_is_charged_as_an_estimate(rig: Rig, server: SocketUpstream) -> None:
    before = len(rig.rows(0))
    server.script = realtime()
    with dial(rig, REALTIME) as client:
        client.recv(5)
        client.send(said("response.create", hang=True, max_output_tokens=60))
        client.recv(5)
        client.recv(5)
        assert rig.held() > 0
    assert rig.rows(before + 1)[-1][5:] == (80, "estimate", 0)  # the text that came is more than its own bound
    assert rig.nothing_held()


def test_what_the_provider_turns_down_is_released(rig: Rig, server: SocketUpstream) -> None:
    before = len(rig.rows(0))

    async def script(peer: Any) -> None:
        async for message in peer:
            event_id = json.loads(message)["event_id"]
            await peer.send(said("error", error={"event_id": event_id, "code": "already_active"}))

    server.script = script
    with dial(rig, REALTIME) as client:
        client.send(said("response.create", event_id="mine"))
        client.recv(5)
        assert rig.nothing_held()
    assert len(rig.rows(0)) == before


def test_a_budget_that_does_not_suffice_closes_the_socket_with_the_policy_code(
    rig: Rig, server: SocketUpstream
) -> None:
    rig.bottle(f"{OPENAI}:443", budget=40)
    rig.lookups.address = server.address
    server.script = realtime(30)
    client = dial(rig, REALTIME)
    client.recv(5)
    client.send(said("response.create", response={"max_output_tokens": 20}))
    for _ in range(3):
        client.recv(5)
    assert rig.nothing_held()
    client.send(said("response.create", response={"max_output_tokens": 20}))
    with pytest.raises(ConnectionClosed) as closed:
        client.recv(5)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008
    assert closed.value.rcvd.reason.startswith("budget_exhausted: ")
    assert len(server.seen) == 1  # the second was not forwarded


def test_a_cut_closes_sockets_at_once(rig: Rig, server: SocketUpstream) -> None:
    before = len(rig.rows(0))
    server.script = realtime()
    client = dial(rig, REALTIME)
    client.recv(5)
    client.send(said("response.create", hang=True))
    client.recv(5)
    client.recv(5)
    assert rig.cut(SPENT).closed == 1
    with pytest.raises(ConnectionClosed) as closed:
        client.recv(5)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008
    assert closed.value.rcvd.reason.startswith("budget_exhausted: ")
    assert server.ended.wait(5)
    assert len(rig.rows(before + 1)) == before + 1 and rig.nothing_held()
    with pytest.raises(InvalidStatus) as refused:
        dial(rig, REALTIME)
    assert json.loads(refused.value.response.body)["error"]["type"] == "budget_exhausted"


def test_codex_speaks_compressed_and_its_responses_are_metered(rig: Rig, server: SocketUpstream) -> None:
    rig.bottle("chatgpt.com:443")
    rig.lookups.address = server.address
    before = len(rig.rows(0))

    async def script(peer: Any) -> None:
        async for message in peer:
            event = json.loads(message)
            number = f"resp_{event['model']}"
            usage = {"input_tokens": 30, "input_tokens_details": {"cached_tokens": 20}, "output_tokens": 4}
            await peer.send(said("response.created", response={"id": number}))
            await peer.send(said("response.completed", response={"id": number, "model": "c-1", "usage": usage}))

    server.script = script
    with dial(rig, "wss://chatgpt.com/backend-api/codex/responses", compression="deflate") as client:
        for n in range(2):
            client.send(said("response.create", model=f"m{n}", previous_response_id="resp_0", input=[]))
            client.recv(5)
            client.recv(5)
    assert rig.rows(before + 2)[before:] == [("codex", "c-1", 10, 20, 0, 4, "wire", 1)] * 2
    assert "permessage-deflate" in server.heads[0]["sec-websocket-extensions"]


def test_without_a_ledger_nothing_is_asked_of_a_provider(tmp_path_factory: pytest.TempPathFactory) -> None:
    rig = proxy_rig.start(tmp_path_factory.mktemp("no-ledger"), ledger=False)
    upstream = SocketUpstream(f"{rig.net}.1.2", rig.upstream._context)
    try:
        rig.bottle()
        rig.lookups.address = upstream.address
        client = dial(rig, REALTIME)
        client.send(said("response.create"))
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(5)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008
        assert closed.value.rcvd.reason.startswith("ledger_unavailable")
        assert upstream.ended.wait(5) and upstream.seen == []
    finally:
        upstream.stop()
        rig.stop()


SECRET = "ghp_aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3fG5"


@pytest.mark.parametrize("message", [f"see\n{SECRET}\n", f"see\n{SECRET}\n".encode()])
@pytest.mark.parametrize("outbound", ["block", "redact", "supervise"])
def test_a_secret_in_a_message(rig: Rig, server: SocketUpstream, outbound: str, message: str | bytes) -> None:
    rig.ask(wire.DropBottle(rig.control.next_id(), SLOT))  # with what was counted of it
    example(rig, routes=(wire.Route("chat.example.org", outbound=outbound),))
    with dial(rig, PLAIN) as client:
        client.send("clean")
        assert client.recv(10) == "clean"
        client.send(message)
        if outbound == "redact":
            clean = "see\nREDACTED-BY-AGENTMON\n"
            assert client.recv(10) == (clean if isinstance(message, str) else clean.encode())
            return
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(10)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008
    assert "github-pat" in closed.value.rcvd.reason and SECRET not in closed.value.rcvd.reason
    assert not any(SECRET in str(said) for said in server.seen)
    event = rig.wait_event(kind="secret", verdict="refused")
    assert event["detail"]["where"] == "message" and SECRET not in json.dumps(rig.events)


@pytest.mark.parametrize("outbound", ["block", "redact"])
def test_a_packed_file_in_a_message_is_read(rig: Rig, server: SocketUpstream, outbound: str) -> None:
    rig.ask(wire.DropBottle(rig.control.next_id(), SLOT))
    example(rig, routes=(wire.Route("chat.example.org", outbound=outbound),))
    with dial(rig, PLAIN) as client:
        client.send(gzip.compress(b"clean"))
        assert client.recv(10) == gzip.compress(b"clean")
        client.send(b"a file: " + gzip.compress(f"see\n{SECRET}\n".encode()))
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(10)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008 and len(server.seen) == 1


# ── policy ──


def change(rig: Rig, **view: Any) -> None:
    """Another view of the same run."""
    rig.view = msgspec.structs.replace(rig.view, **view)
    assert rig.ask(wire.SetBottle(rig.control.next_id(), rig.view)).error == ""


def test_a_policy_that_permits_it_no_more_ends_a_socket_and_a_stream(rig: Rig, server: SocketUpstream) -> None:
    example(rig)
    with dial(rig, PLAIN) as client:
        change(rig, rules=("chat.example.org:443", "more.example.org:443"), epoch=2)
        client.send("still")
        assert client.recv(5) == "still"
        change(rig, rules=("more.example.org:443",), epoch=3)
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(5)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008
    assert closed.value.rcvd.reason.startswith("egress_denied: ")
    example(rig)
    rig.lookups.address = rig.upstream.address
    never = threading.Event()
    rig.upstream.script = chunked([b"data: 1\n\n", never])
    sock = rig.connect("chat.example.org")
    sock.sendall(b"GET /other HTTP/1.1\r\nHost: chat.example.org\r\n\r\n")
    read_until(sock, b"data: 1")
    change(rig, routes=(wire.Route("chat.example.org", paths=("/socket",)),))
    assert b"0\r\n\r\n" not in read_all(sock)
    sock.close()
    assert rig.upstream.aborted.wait(5)
    never.set()
