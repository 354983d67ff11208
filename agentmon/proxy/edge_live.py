"""A request under way, as the hooks keep it, and the small translations between mitmproxy's flow and our values."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mitmproxy import http

from agentmon.injection.watch import EventWatch
from agentmon.proxy import bodies
from agentmon.proxy.bottles import Bottle
from agentmon.proxy.decide import Allow, Facts, Verdict
from agentmon.proxy.echo import Echo
from agentmon.proxy.edge_connection import BODY_S, Connection
from agentmon.proxy.edge_frames import Close
from agentmon.proxy.edge_layers import LEFT, Ending
from agentmon.proxy.exchange import Exchange
from agentmon.proxy.inbound import Held
from agentmon.proxy.search import Window
from agentmon.proxy.sockets import SocketMeter
from agentmon.proxy.tap import Tap

Refusal = tuple[int, bodies.Error]


@dataclass
class Live:
    """One request. `refusal`: answer with this instead of forwarding; `ours`: the answer is agentmon's own."""

    connection: Connection
    flow: http.HTTPFlow
    bottle: Bottle
    facts: Facts
    verdict: Verdict
    refusal: Refusal | None = None
    began_ns: int = field(default_factory=time.monotonic_ns)
    exchange: Exchange | None = None
    tap: Tap | None = None
    strip_usage: bool = False
    ours: bool = False
    status: int | None = None  # of the upstream's answer
    streams: bool = False  # the request's body passes through
    buffers: bool = False  # it is being collected
    window: Window[Ending] | None = None  # what its body passes through
    meter: SocketMeter | None = None  # of a provider's WebSocket
    echo: Echo | None = None  # of the credential that was put in
    held: Held | None = None  # the answer is kept back until it is known to be harmless
    kept_bytes: int = 0  # of the bottle's share, until this is over
    slow: asyncio.TimerHandle | None = None  # ends a body that takes too long
    messages: EventWatch = field(default_factory=EventWatch)  # of a WebSocket's server

    @property
    def host(self) -> str:
        return self.verdict.host if isinstance(self.verdict, Allow) else ""

    @property
    def awaited(self) -> bool:
        """Whether its client still waits for the answer."""
        return self.flow.client_conn.connected and LEFT not in self.flow.metadata

    @property
    def sent(self) -> bool:
        """Whether the upstream may have seen the request: the flow has a connection that was set up."""
        return self.status is not None or self.flow.server_conn.timestamp_tcp_setup is not None

    def body_comes(self, *, streams: bool) -> None:
        self.streams, self.buffers = streams, not streams
        self.connection.streaming += self.streams
        self.connection.buffering += self.buffers
        if self.buffers:
            loop = asyncio.get_running_loop()
            self.slow = loop.call_later(BODY_S, self.connection.too_slow, "the body was not whole", BODY_S)
        self.connection.allow()

    def body_came(self) -> None:
        """The request is whole, or over; may be called again."""
        self.connection.streaming -= self.streams
        self.connection.buffering -= self.buffers
        if self.slow is not None:
            self.slow.cancel()
            self.slow = None
        if self.buffers:
            self.kept_bytes += self.connection.collected(len(self.flow.request.raw_content or b""))
        self.streams = self.buffers = False
        self.connection.allow()

    def keep(self, count: int) -> bool:
        """As Connection.take(), until this request is over."""
        self.kept_bytes += count
        return self.connection.take(count)

    def over(self) -> None:
        """Once: nothing of it is kept any more."""
        self.body_came()
        self.connection.give(self.kept_bytes)
        self.connection.ended()

    @property
    def _error_body(self) -> Callable[[bodies.Error], bytes] | None:
        provider = self.verdict.provider if isinstance(self.verdict, Allow) else None
        return provider.error_body if provider is not None else None

    def error_event(self, error: bodies.Error) -> bytes:
        """The error in an event stream: as the provider's clients know it, else the contract's."""
        return (self._error_body or bodies.event)(error)

    def ending(self, bottle: Bottle) -> Ending | None:
        """How this request ends when its bottle is cut; None where it has its answer already."""
        if self.ours:
            return None
        return self.ending_with(403, bodies.cut_off(bottle.spent, self.host, bottle.view.bottle))

    def ending_with(self, status: int, error: bodies.Error) -> Ending:
        """By this error: a whole answer, an event, or a close, as far as it has come."""
        reply = answer(status, error)
        reply.headers["connection"] = "close"
        tail = None
        if self.tap is not None and self.tap.can_end_with_event and self._error_body is not None:
            tail = self.tap.before_event() + self._error_body(error)
        return Ending(reply, tail, Close(1008, f"{error['type']}: {error['message']}"))


def answer(status: int, error: bodies.Error) -> http.Response:
    """A whole answer with the contract's JSON body."""
    return http.Response.make(status, bodies.encode(error), bodies.HEADERS)


def facts_of(request: http.Request, connection: Connection) -> Facts:
    upgrade = request.headers.get("upgrade", "")
    hosts = tuple(request.headers.get_all("host"))
    headers = tuple(request.headers.items(multi=True))  # type: ignore[no-untyped-call]
    authority = request.authority
    return Facts(request.method, request.path, connection.port, connection.sni, hosts, authority, upgrade, headers)


def without_length(flow: http.HTTPFlow) -> None:
    """Let the body's end be told by its framing: an event of ours may have to follow, or a chunk to be left out."""
    assert flow.response is not None
    if flow.response.headers.pop("content-length", None) is not None and flow.request.http_version == "HTTP/1.1":
        flow.response.headers["transfer-encoding"] = "chunked"
