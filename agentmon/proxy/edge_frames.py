"""A WebSocket between client and server: whole messages, bounded, each judged before it goes on (RFC 6455, RFC 7692).

frames ─ wsproto ─▶ message (joined, inflated) ─ websocket_message hook ─▶ forwarded as one frame, or Close

Nothing but messages passes: what pings carry stays behind (each is answered here, and an empty one goes on, so that
either side sees the other alive), and so does the client's reason for closing. No message is kept.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mitmproxy import connection, http
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers.websocket import WebsocketEndHook, WebsocketMessageHook, WebsocketStartHook
from mitmproxy.websocket import WebSocketMessage
from wsproto import ConnectionType
from wsproto import events as ws
from wsproto.connection import Connection as Protocol
from wsproto.connection import ConnectionState
from wsproto.extensions import Extension, PerMessageDeflate
from wsproto.frame_protocol import CloseReason, Opcode

MESSAGE_BYTES = 16 << 20  # of one message, inflated
_CLOSE, _CLOSE_AFTER = "agentmon close", "agentmon close after"  # keys in flow.metadata
_ENDED = "agentmon ended"
_TAKE = "agentmon take"
_GOING_AWAY = 1001
_TRY_LATER = 1013
_OFFER = re.compile(
    r"permessage-deflate(?:\s*;\s*(?:(?:server|client)_no_context_takeover"
    r'|(?:server|client)_max_window_bits(?:="?(?:9|1[0-5])"?)?))*'
)


@dataclass(frozen=True, slots=True)
class Close:
    """Why agentmon ends a socket: what the client is told (RFC 6455 section 7.4)."""

    code: int
    reason: str = ""

    @property
    def text(self) -> str:
        """At most 123 bytes, as a control frame holds."""
        return self.reason.encode()[:123].decode(errors="ignore")


@dataclass
class CloseSocket(events.Event):
    """End this socket now, from outside its stream of bytes."""

    close: Close


def close_with(flow: http.HTTPFlow, close: Close) -> None:
    """From a hook: the message at hand does not go on, and the socket ends."""
    flow.metadata[_CLOSE] = close


def close_after(flow: http.HTTPFlow, close: Close) -> None:
    """From a hook: the message at hand is the last that goes on."""
    flow.metadata[_CLOSE_AFTER] = close


def share_of(flow: http.HTTPFlow, take: Callable[[int], bool], give: Callable[[int], None]) -> None:
    """From the websocket_start hook: whether so many bytes more of a message may be kept, and that they are not."""
    flow.metadata[_TAKE] = take, give


def ended_by(flow: http.HTTPFlow) -> Close | None:
    """Why agentmon ended this socket; None where one of its sides did."""
    found: Close | None = flow.metadata.get(_ENDED)
    return found


def deflates(extensions: str) -> bool:
    """Whether an offer or an answer is permessage-deflate with parameters that are understood, and nothing else."""
    return _OFFER.fullmatch(extensions.strip()) is not None


class _Deflate(PerMessageDeflate):
    """Inflates no more of one piece of input than a message may have."""

    def frame_inbound_payload_data(self, proto: Any, data: bytes) -> bytes | CloseReason:
        if not self._inbound_compressed or not self._inbound_is_compressible or self._decompressor is None:
            return data
        try:
            out = self._decompressor.decompress(bytes(data), MESSAGE_BYTES + 1)
        except zlib.error:
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        return CloseReason.MESSAGE_TOO_BIG if len(out) > MESSAGE_BYTES else out


class _Side:
    """One of the two connections: its protocol state, and the message that has begun."""

    def __init__(self, kind: ConnectionType, conn: connection.Connection, extensions: str) -> None:
        self.conn = conn
        agreed: list[Extension] = []
        if extensions:
            deflate = _Deflate()
            deflate.finalize(extensions)
            agreed.append(deflate)
        self.protocol = Protocol(kind, agreed)
        self.message = bytearray()

    def send(self, event: ws.Event) -> layer.CommandGenerator[None]:
        if self.protocol.state is ConnectionState.OPEN:
            yield commands.SendData(self.conn, self.protocol.send(event))

    def close(self, close: Close) -> layer.CommandGenerator[None]:
        """The close frame, where one may still be sent, and the end of the connection."""
        if self.protocol.state in {ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING}:
            frame = ws.CloseConnection(close.code, close.text or None)
            yield commands.SendData(self.conn, self.protocol.send(frame))
        yield commands.CloseConnection(self.conn)


class SocketLayer(layer.Layer):
    """Takes over once both sides have agreed to speak WebSocket."""

    def __init__(self, context: context.Context, flow: http.HTTPFlow) -> None:
        super().__init__(context)
        self.flow = flow
        assert flow.response is not None
        extensions = flow.response.headers.get("sec-websocket-extensions", "")
        self._client = _Side(ConnectionType.SERVER, context.client, extensions)
        self._server = _Side(ConnectionType.CLIENT, context.server, extensions)
        self._over = False

    @property
    def in_hook(self) -> bool:
        """A message is being judged; who judges it looks at a cut itself."""
        return self._paused is not None

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if self._over:
            return
        if isinstance(event, events.Start):
            yield WebsocketStartHook(self.flow)
        elif isinstance(event, CloseSocket):
            yield from self._end(event.close)
        elif isinstance(event, events.DataReceived | events.ConnectionClosed):
            side = self._client if event.connection is self.context.client else self._server
            side.protocol.receive_data(event.data if isinstance(event, events.DataReceived) else None)
            yield from self._read(side)

    def _read(self, side: _Side) -> layer.CommandGenerator[None]:
        other = self._server if side is self._client else self._client
        for event in side.protocol.events():
            if isinstance(event, ws.Message):
                yield from self._message(side, other, event)
            elif isinstance(event, ws.Ping):
                yield from side.send(event.response())
                yield from other.send(ws.Ping())
            elif isinstance(event, ws.CloseConnection):
                yield from self._closed(side, other, event)
            if self._over:
                return

    def _message(self, side: _Side, other: _Side, event: ws.Message[Any]) -> layer.CommandGenerator[None]:
        text = isinstance(event.data, str)
        piece = event.data.encode() if isinstance(event.data, str) else event.data
        take, give = self.flow.metadata[_TAKE]
        if not take(len(piece)):
            yield from self._end(Close(_TRY_LATER, "the bottle's messages are too large together"))
            return
        side.message += piece
        if len(side.message) > MESSAGE_BYTES:
            yield from self._end(Close(CloseReason.MESSAGE_TOO_BIG, f"a message has at most {MESSAGE_BYTES} bytes"))
            return
        if not event.message_finished:
            return
        content, side.message = bytes(side.message), bytearray()
        message = WebSocketMessage(Opcode.TEXT if text else Opcode.BINARY, side is self._client, content)
        assert self.flow.websocket is not None
        self.flow.websocket.messages[:] = [message]
        yield WebsocketMessageHook(self.flow)
        self.flow.websocket.messages.clear()
        give(len(content))
        close: Close | None = self.flow.metadata.get(_CLOSE)
        if self.flow.error is not None:  # a hook failed: what it did not decide does not go on
            close = close or Close(CloseReason.INTERNAL_ERROR)
        if close is None:
            yield from other.send(
                ws.TextMessage(message.content.decode()) if text else ws.BytesMessage(message.content)
            )
            close = self.flow.metadata.get(_CLOSE_AFTER)
        if close is not None:
            yield from self._end(close)

    def _closed(self, side: _Side, other: _Side, event: ws.CloseConnection) -> layer.CommandGenerator[None]:
        """One side closed, went away, or broke the protocol; only then is its connection still open for us."""
        if side.protocol.state is ConnectionState.OPEN:
            yield from self._end(Close(event.code, event.reason or "the WebSocket protocol was broken"))
            return
        reason = (event.reason or "") if side is self._server else ""
        gone = event.code == CloseReason.ABNORMAL_CLOSURE
        yield from side.close(Close(event.code))
        yield from other.close(Close(_GOING_AWAY if gone else event.code, reason))
        yield from self._done(side is self._client, event.code, reason)

    def _end(self, close: Close) -> layer.CommandGenerator[None]:
        self.flow.metadata[_ENDED] = close
        yield from self._client.close(close)
        yield from self._server.close(Close(_GOING_AWAY))
        yield from self._done(False, close.code, close.text)

    def _done(self, by_client: bool, code: int, reason: str) -> layer.CommandGenerator[None]:
        self._over = True
        data = self.flow.websocket
        assert data is not None
        data.messages.clear()
        data.closed_by_client, data.close_code, data.close_reason = by_client, code, reason
        self.flow.live = False
        yield WebsocketEndHook(self.flow)
