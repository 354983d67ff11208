"""mitmproxy layers with two things added: a stream can be ended from outside, and failures are answered in JSON.

`CutStreams` is an event like any other: it enters at the top layer, passes TLS, and arrives at HttpLayer, which ends
every stream in the way its state allows. So the bytes leave at once, whether or not the upstream ever says anything,
framed and encrypted by the same layers as all others (HTTP/1 chunks, HTTP/2 frames).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mitmproxy import flow, http
from mitmproxy.net.http import status_codes
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers.http import DropStream, HttpLayer, HttpStream, SendHttp
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.layers.http._events import (
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._hooks import HttpErrorHook
from mitmproxy.proxy.layers.tls import ClientTLSLayer

from agentmon.proxy.edge_frames import Close, CloseSocket, SocketLayer
from agentmon.proxy.search import Window

_BROKEN_OFF = Close(1008, "ended by agentmon")
_HELD = "agentmon held"  # key in flow.metadata
LEFT = "agentmon left"  # the same, of a request whose client gave up while it was judged
_codes: Any = getattr(http_events, "ErrorCode", None)  # mitmproxy 11 has plain status codes instead
_KILL: Any = _codes.KILL if _codes else status_codes.NO_RESPONSE
_CANCEL: Any = _codes.CANCEL if _codes else status_codes.CLIENT_CLOSED_REQUEST


class Entry(layer.Layer):
    """The top layer of one client connection: TLS or plain, then whatever the next_layer hook puts there."""

    def __init__(self, context: context.Context, tls: bool) -> None:
        super().__init__(context)
        self.child_layer: layer.Layer = ClientTLSLayer(context) if tls else layer.NextLayer(context)

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield from self.child_layer.handle_event(event)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a stream is to be ended: by a whole answer if none has begun, else by bytes; None: it is broken off. A
    WebSocket: by a close frame."""

    answer: http.Response | None
    tail: bytes | None
    close: Close = _BROKEN_OFF


@dataclass
class CutStreams(events.Event):
    """End every stream for which `ending(flow)` is not None; `closed` counts them. The client's connection closes.

    `waiting`: streams that are in a hook, which looks at the cut itself or is over in a moment: ask again.
    """

    ending: Callable[[http.HTTPFlow], Ending | None]
    closed: int = field(default=0)
    waiting: int = field(default=0)


@dataclass
class RequestBodyHook(commands.StartHook):  # type: ignore[no-untyped-call]
    """A piece of a request's body has come that passes through a Window, or its end."""

    flow: http.HTTPFlow


@dataclass
class _Cut(events.Event):
    ending: Ending


def _frame(request: http.Request, alpn: bytes | None) -> None:
    """Let HTTP/1.1 upstreams know where a body ends that HTTP/2 framed: without a length it would be read as the next
    request, which nobody has judged. To one that speaks HTTP/2 the header would be an error (RFC 9113, 8.2.2)."""
    if request.is_http2 and alpn != b"h2" and "content-length" not in request.headers:
        request.headers["transfer-encoding"] = "chunked"


@dataclass(frozen=True, slots=True)
class Hold:
    """What is done with an answer that is held: longer than `limit_bytes` it goes on through `gate`. `take`: whether so
    many bytes more may be kept; where not, the connection is at its end."""

    gate: Callable[[bytes], bytes | list[bytes]]
    limit_bytes: int
    take: Callable[[int], bool]


def hold_answer(flow: http.HTTPFlow, hold: Hold) -> None:
    """From the responseheaders hook: nothing of the answer goes on before it is whole, or longer than the limit."""
    assert flow.response is not None
    flow.response.stream = False
    flow.metadata[_HELD] = hold


class Stream(HttpStream):
    """One request and its answer. `failure` makes the answer to an upstream that failed before it answered."""

    failure: Callable[[http.HTTPFlow, str], http.Response]
    _has_body = False

    def handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        """A client that gives up while its request is being judged is heard of at once, not only afterwards."""
        if isinstance(event, RequestProtocolError) and self.in_hook:
            self.flow.metadata[LEFT] = True
        yield from super().handle_event(event)

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, _Cut):
            yield from self.cut(event.ending)
            return
        if isinstance(event, RequestHeaders):
            self._has_body = not event.end_stream
        if isinstance(event, RequestData | RequestEndOfMessage) and not (yield from self._search(event)):
            return
        steps = super()._handle_event(event)
        done = None
        with contextlib.suppress(StopIteration):
            while True:
                command = steps.send(done)
                if isinstance(command, SendHttp) and isinstance(command.event, RequestHeaders) and self._has_body:
                    _frame(command.event.request, command.connection.alpn)
                done = yield command

    def _search(self, event: RequestData | RequestEndOfMessage) -> layer.CommandGenerator[bool]:
        """Have what passes through searched before it does; whether it may go on."""
        if self.client_state != self.state_stream_request_body or not isinstance(self.flow.request.stream, Window):
            return True
        window = self.flow.request.stream
        ends = isinstance(event, RequestEndOfMessage)
        text = window.end() if ends else window.take(event.data)  # type: ignore[union-attr]
        if not text and not ends:
            return True
        yield RequestBodyHook(self.flow)
        failed = self.flow.error is not None  # the hook raised: what it had decided does not count
        if window.ending is None and not window.waits and not failed:
            return True
        yield from self.cut(window.ending or Ending(None, None))
        return False

    def state_consume_response_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        """An answer that is held becomes a stream once it is too long for that."""
        hold: Hold | None = self.flow.metadata.get(_HELD)
        if hold is not None and isinstance(event, ResponseData) and not hold.take(len(event.data)):
            return
        yield from super().state_consume_response_body(event)
        if hold is None or not isinstance(event, ResponseData) or len(self.response_body_buf) <= hold.limit_bytes:
            return
        assert self.flow.response is not None
        body = bytes(self.response_body_buf)
        self.response_body_buf.clear()  # type: ignore[no-untyped-call]
        self.flow.response.stream = hold.gate
        yield from self.start_response_stream()
        yield from self.state_stream_response_body(ResponseData(self.stream_id, body))

    def flow_done(self) -> layer.CommandGenerator[None]:
        """A WebSocket goes on in a layer that bounds its messages."""
        if self.flow.websocket is None:
            yield from super().flow_done()
            return
        self.child_layer = SocketLayer(self.context, self.flow)
        self._handle_event = self.passthrough  # type: ignore[method-assign]
        yield from self.child_layer.handle_event(events.Start())
        yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)

    def passthrough(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield from super().passthrough(CloseSocket(event.ending.close) if isinstance(event, _Cut) else event)

    @property
    def in_hook(self) -> bool:
        """Something of it is being judged just now."""
        if isinstance(self.child_layer, SocketLayer) and self.child_layer.in_hook:
            return True
        return self._paused is not None and isinstance(self._paused.command, commands.StartHook)

    def cut(self, ending: Ending) -> layer.CommandGenerator[None]:
        """End this stream now. Bytes for the client first, then the upstream is given up, then the hooks are told."""
        if self.server_state == self.state_stream_response_body and ending.tail is not None:
            yield SendHttp(ResponseData(self.stream_id, ending.tail), self.context.client)
            yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)
        elif self.server_state == self.state_wait_for_response_headers and ending.answer is not None:
            yield from self._answer(ending.answer)
        else:
            yield SendHttp(ResponseProtocolError(self.stream_id, "cut", _KILL), self.context.client)
        if self.context.server.connected:
            yield SendHttp(RequestProtocolError(self.stream_id, "cut", _CANCEL), self.context.server)
        yield from self._over("cut")

    def handle_protocol_error(
        self, event: RequestProtocolError | ResponseProtocolError
    ) -> layer.CommandGenerator[None]:
        """An upstream that fails before it answered is told as a 502 in JSON; the rest is mitmproxy's."""
        unanswered = self.server_state not in (self.state_stream_response_body, self.state_done, self.state_errored)
        if (
            not isinstance(event, ResponseProtocolError)
            or not unanswered
            or self.client_state == self.state_errored
            or self.flow.response is not None
        ):
            yield from super().handle_protocol_error(event)
            return
        yield from self._answer(self.failure(self.flow, event.message))
        yield from self._over(event.message)

    def _answer(self, response: http.Response) -> layer.CommandGenerator[None]:
        self.flow.response = response
        yield SendHttp(ResponseHeaders(self.stream_id, response, False), self.context.client)
        yield SendHttp(ResponseData(self.stream_id, response.raw_content or b""), self.context.client)
        yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)

    def _over(self, why: str) -> layer.CommandGenerator[None]:
        self.client_state = self.server_state = self.state_errored
        self.flow.error = flow.Error(why)
        self.flow.live = False
        yield HttpErrorHook(self.flow)
        yield DropStream(self.stream_id)


class Layer(HttpLayer):
    """All requests of one client connection."""

    failure: Callable[[http.HTTPFlow, str], http.Response]

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, CutStreams):
            yield from self._cut(event)
        else:
            yield from super()._handle_event(event)

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        stream = Stream(self.context.fork(), stream_id)
        stream.failure = self.failure
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())

    def _cut(self, event: CutStreams) -> layer.CommandGenerator[None]:
        for stream in list(self.streams.values()):
            assert isinstance(stream, Stream)
            ending = event.ending(stream.flow) if hasattr(stream, "flow") else None
            if ending is None:
                continue
            if stream.in_hook:
                event.waiting += 1
                continue
            event.closed += 1
            if stream._paused is None:  # else it is connecting to its upstream, and ends with the connection
                yield from self.event_to_child(stream, _Cut(ending))
        if event.closed:
            yield commands.CloseConnection(self.context.client)
