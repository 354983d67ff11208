"""What any hook of the proxy raises lets nothing pass: each one fails in turn, in a real worker, where it is called.

The hooks are listed from the class that has them, so that a new one cannot be forgotten: without a flow of its own here
the first test fails.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from websockets.exceptions import WebSocketException

from agentmon import wire
from agentmon.proxy.edge import Hooks
from tests.support import proxy_rig
from tests.support.proxy_rig import Rig
from tests.support.proxy_talk import CLAUDE, DELTA, OPENAI, ask, begin, closing, fresh, message, opening, read_all
from tests.support.proxy_upstream import chunked, reply
from tests.support.socket_upstream import SocketUpstream, dial

pytestmark = pytest.mark.root

HOOKS = sorted(name for name in vars(Hooks) if name.startswith("on_"))
# Everything that mitmproxy calls is a hook, or one of these: callables that bytes pass through.
STREAMS = [
    f"agentmon.proxy.{name}.__call__"
    for name in ("tap.Tap", "inbound.Copy", "inbound.Events", "inbound.Held", "search.Window", "echo.Stream")
]
PRELUDE = """
import importlib, inspect, pathlib
from agentmon.proxy import edge
fault = pathlib.Path({file!r})
def wrap(owner, name, label, when):
    plain = getattr(owner, name)
    def check(now):
        if fault.read_text() == f"{{now}} {{label}}":
            (fault.parent / "raised").touch()
            raise RuntimeError("injected")
    if inspect.iscoroutinefunction(plain):
        async def wrapped(*args):
            check("before")
            result = await plain(*args)
            check("after")
            return result
    else:
        def wrapped(*args):
            check("before")
            result = plain(*args)
            check("after")
            return result
    setattr(owner, name, wrapped)
for name in [n for n in vars(edge.Hooks) if n.startswith("on_")]:
    wrap(edge.Hooks, name, name, "")
for label in {streams!r}:
    module, owner, name = label.rsplit(".", 2)
    wrap(getattr(importlib.import_module(module), owner), name, label, "")
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    directory = tmp_path_factory.mktemp("hooks")
    fault = directory / "fault"
    fault.write_text("")
    rig = proxy_rig.start(directory, prelude=PRELUDE.format(file=str(fault), streams=STREAMS))
    yield rig
    rig.stop()


@pytest.fixture(scope="module")
def server(running: Rig) -> Iterator[SocketUpstream]:
    upstream = SocketUpstream(f"{running.net}.1.2", running.upstream._context)
    yield upstream
    upstream.stop()


@pytest.fixture
def rig(running: Rig, server: SocketUpstream) -> Iterator[Rig]:
    server.fresh()
    yield fresh(running)
    (running.directory / "fault").write_text("")


SECRET = b"what the server says"
SOCKET = f"wss://{OPENAI}/v1/realtime"


def ended(rig: Rig, host: str, path: str, *headers: str, body: bytes, port: int = 443) -> bytes:
    """One request whose connection ends with its answer; what came of that."""
    sock = rig.connect(host, port)
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers, "", ""]
    sock.sendall("\r\n".join(lines).encode() + body)
    got = read_all(sock)
    sock.close()
    return got


def metered(rig: Rig, body: bytes) -> bytes:
    return ended(rig, CLAUDE, "/v1/messages", f"Content-Length: {len(body)}", body=body)


def asked(rig: Rig, server: SocketUpstream) -> bytes:
    """A metered request; what of its answer came."""
    rig.upstream.script = reply(200, message() + SECRET)
    return metered(rig, ask())


def streamed(rig: Rig, server: SocketUpstream) -> bytes:
    rig.upstream.script = chunked([opening(), DELTA, SECRET, closing(4)])
    return metered(rig, ask(stream=True))


def blocking(rig: Rig, server: SocketUpstream) -> bytes:
    """Events of which each is read before it goes on."""
    rig.bottle(routes=(wire.Route(CLAUDE, inbound="block"),))
    return streamed(rig, server)


def held(rig: Rig, server: SocketUpstream) -> bytes:
    """A long answer, kept back until enough of it was read."""
    rig.bottle(
        "www.example.org", inspected=("www.example.org",), routes=(wire.Route("www.example.org", inbound="block"),)
    )
    rig.upstream.script = reply(200, SECRET + b"." * (2 << 20), {"content-type": "text/plain"})
    return ended(rig, "www.example.org", "/", "Content-Length: 5", body=b"hello")


def keyed(rig: Rig, server: SocketUpstream) -> bytes:
    """A request that is given a credential, whose answer is searched for it."""
    route = wire.Route("www.example.org", auth_header="x-api-key", auth_credential="house", inbound="off")
    rig.bottle("www.example.org", inspected=("www.example.org",), routes=(route,))
    given = wire.SetCredentials(rig.control.next_id(), proxy_rig.SLOT, rig.run, {"house": "sk-of-the-house"})
    assert rig.ask(given).error == ""
    rig.upstream.script = reply(200, SECRET)
    return ended(rig, "www.example.org", "/", "Content-Length: 5", body=b"hello")


def uploaded(rig: Rig, server: SocketUpstream) -> bytes:
    """A body of no known length, which passes through."""
    rig.bottle("www.example.org", inspected=("www.example.org",))
    rig.upstream.script = reply(200, SECRET)
    body = b"5\r\nhello\r\n0\r\n\r\n"
    return ended(rig, "www.example.org", "/", "Transfer-Encoding: chunked", body=body)


def plain(rig: Rig, server: SocketUpstream) -> bytes:
    """Over port 80: nothing between the dialling and the request."""
    rig.bottle("www.example.org", inspected=("www.example.org",))
    rig.upstream.script = reply(200, SECRET)
    return ended(rig, "www.example.org", "/", "Content-Length: 5", body=b"hello", port=80)


def untrusting(rig: Rig, server: SocketUpstream) -> bytes:
    """A client that ends the handshake."""
    sock = socket.create_connection((rig.address, 443), 10, (rig.source, 0))
    with pytest.raises(ssl.SSLError):
        ssl.create_default_context().wrap_socket(sock, server_hostname=CLAUDE)
    sock.close()
    return b""


def unreachable(rig: Rig, server: SocketUpstream) -> bytes:
    rig.lookups.address = f"{rig.net}.9.9"
    return metered(rig, ask())


def abandoned(rig: Rig, server: SocketUpstream) -> bytes:
    """A client that goes away while its answer streams."""
    never = threading.Event()
    rig.upstream.script = chunked([opening(), never, SECRET])
    sock = begin(rig, ask(stream=True))
    sock.recv(100)
    sock.close()
    rig.upstream.aborted.wait(5)
    never.set()
    return b""


def socketed(rig: Rig, server: SocketUpstream) -> bytes:
    """A WebSocket; what came of its answers."""
    rig.bottle(f"{OPENAI}:443")
    rig.lookups.address = server.address
    server.fresh()
    got: str | bytes = b""
    with contextlib.suppress(WebSocketException, TimeoutError, OSError), dial(rig, SOCKET) as client:
        client.send(SECRET.decode())
        got = client.recv(5)
    return got.encode() if isinstance(got, str) else got


Flow = Callable[[Rig, SocketUpstream], bytes]
# hook → the flow that calls it, and whether the request may have reached the server before it does
FLOWS: dict[str, tuple[Flow, str]] = {
    "on_next_layer": (asked, "nothing sent"),
    "on_tls_clienthello": (asked, "nothing sent"),
    "on_tls_start_client": (asked, "nothing sent"),
    "on_tls_failed_client": (untrusting, "nothing sent"),
    "on_tls_start_server": (asked, "nothing sent"),
    "on_server_connect": (plain, "nothing sent"),
    "on_server_connect_error": (unreachable, "nothing sent"),
    "on_requestheaders": (asked, "nothing sent"),
    "on_request": (asked, "nothing sent"),
    "on_request_body": (uploaded, "no body sent"),
    "on_responseheaders": (asked, "nothing passed"),
    "on_response": (asked, "no more passed"),
    "on_error": (abandoned, "no more passed"),
    "on_websocket_start": (socketed, "nothing sent"),
    "on_websocket_message": (socketed, "nothing sent"),
    "on_websocket_end": (socketed, "no more passed"),
    "agentmon.proxy.tap.Tap.__call__": (streamed, "nothing passed"),
    "agentmon.proxy.inbound.Copy.__call__": (streamed, "nothing passed"),
    "agentmon.proxy.inbound.Events.__call__": (blocking, "nothing passed"),
    "agentmon.proxy.inbound.Held.__call__": (held, "nothing passed"),
    "agentmon.proxy.search.Window.__call__": (uploaded, "no body sent"),
    "agentmon.proxy.echo.Stream.__call__": (keyed, "nothing passed"),
}


def test_every_hook_has_its_flow() -> None:
    assert sorted(FLOWS) == sorted(HOOKS + STREAMS)


@pytest.mark.parametrize(
    "flow", [asked, streamed, blocking, held, keyed, uploaded, plain, socketed], ids=lambda flow: flow.__name__
)
def test_without_a_fault_the_flows_pass(rig: Rig, server: SocketUpstream, flow: Flow) -> None:
    assert SECRET in flow(rig, server)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("hook", FLOWS)
def test_what_a_hook_raises_lets_nothing_pass(rig: Rig, server: SocketUpstream, hook: str, when: str) -> None:
    flow, promise = FLOWS[hook]
    raised = rig.directory / "raised"
    raised.unlink(missing_ok=True)
    (rig.directory / "fault").write_text(f"{when} {hook}")
    got = b""
    with contextlib.suppress(OSError, ssl.SSLError):
        got = flow(rig, server)
    end = time.monotonic() + 5
    while not raised.exists():  # the client may know the end before the worker does
        assert time.monotonic() < end, f"{hook} was not called"
        time.sleep(0.005)
    (rig.directory / "fault").write_text("")
    seen = [s.body for s in rig.upstream.seen] + [str(message).encode() for message in server.seen]
    if promise == "nothing sent":
        assert seen == [] and SECRET not in got
    elif promise == "no body sent":
        assert b"hello" not in b"".join(seen) and SECRET not in got
    elif promise == "nothing passed":
        assert SECRET not in got
    assert rig.nothing_held()
    if hook in HOOKS and when == "before":  # the same reason is only counted for the next five seconds
        assert "injected" in rig.wait_event(reason=f"hook {hook.removeprefix('on_')}")["detail"]["error"]
    fresh(rig)
    assert SECRET in asked(rig, server), "the next request is served"
