"""The hooks of WebSockets: the handshake held to what was asked, every message judged and metered, the end settled.

responseheaders  a 101 that nobody asked for, or with extensions that nobody offered, ends the flow
message          client's: a response that it asks for is held first · provider's: ends are settled
end              what is still under way is charged; what agentmon ended is told
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qs

from mitmproxy import http
from mitmproxy.websocket import WebSocketMessage

from agentmon.proxy import bodies, inject
from agentmon.proxy.bottles import Bottles
from agentmon.proxy.decide import Allow, Refuse
from agentmon.proxy.edge_frames import Close, close_after, close_with, deflates, ended_by, share_of
from agentmon.proxy.edge_inbound import Inbound
from agentmon.proxy.edge_live import Live, Refusal
from agentmon.proxy.edge_outbound import Outbound
from agentmon.proxy.exchange import Accounts, Exchange, Whose
from agentmon.proxy.sightings import Sightings
from agentmon.proxy.sockets import SocketMeter

_POLICY = 1008
_EXTENSIONS = "sec-websocket-extensions"
_PROTOCOL = "sec-websocket-protocol"


class Sockets:
    """:param keys: the next unique key of a metered attempt. :param against: what the policy says now."""

    def __init__(
        self,
        bottles: Bottles,
        accounts: Accounts,
        sightings: Sightings,
        inbound: Inbound,
        outbound: Outbound,
        keys: Callable[[], str],
        against: Callable[[Live], Refuse | None],
    ) -> None:
        self._bottles = bottles
        self._inbound = inbound
        self._outbound = outbound
        self._accounts = accounts
        self._sightings = sightings
        self._keys = keys
        self._against = against

    def offered(self, request: http.Request, allow: Allow) -> None:
        """Leave of the handshake's offers what can be spoken here, and of its subprotocols what is no credential."""
        offers = [offer for value in request.headers.get_all(_EXTENSIONS) for offer in value.split(",")]
        kept = ", ".join(offer.strip() for offer in offers if deflates(offer))
        request.headers.pop(_EXTENSIONS, None)
        if kept:
            request.headers[_EXTENSIONS] = kept
        if inject.strips(allow.route) and _PROTOCOL in request.headers:
            rest = inject.without_protocol_keys(request.headers[_PROTOCOL])
            request.headers.pop(_PROTOCOL)
            if rest:
                request.headers[_PROTOCOL] = rest

    def agreed(self, live: Live) -> bool:
        """Whether the server's 101 answers what was asked: a WebSocket, with what was offered. Begins its metering."""
        flow, allow = live.flow, live.verdict
        assert flow.response is not None
        if not isinstance(allow, Allow) or not allow.upgrades:
            return False
        if flow.response.headers.get("upgrade", "").strip().lower() != "websocket":
            return False
        taken = flow.response.headers.get(_EXTENSIONS, "")
        if taken and (not deflates(taken) or _EXTENSIONS not in flow.request.headers):
            return False
        if allow.socket is not None:
            model = parse_qs(live.facts.target.partition("?")[2]).get("model", [""])[0][:200]
            live.meter = SocketMeter(
                allow.socket.parser(model), lambda: self._new(live, allow), lambda: self._wanted(live)
            )
        return True

    def _new(self, live: Live, allow: Allow) -> Exchange:
        assert allow.provider is not None
        view = live.bottle.view
        return Exchange(
            self._accounts, Whose(view.slot, view.bottle, allow.provider.name, allow.host, self._keys())
        )  # fmt: skip

    def start(self, live: Live) -> None:
        live.body_comes(streams=True)
        share_of(live.flow, live.connection.take, live.connection.give)

    async def message(self, live: Live) -> None:
        """Decide on the last message of this socket."""
        data = live.flow.websocket
        assert data is not None
        if not data.messages[-1].from_client:
            if live.echo is not None:
                data.messages[-1].content = live.echo.without(data.messages[-1].content)
            blocked = self._inbound.message(live, data.messages[-1].content)
            if blocked is not None:
                close_with(live.flow, blocked)
        refusal = await self._judge(live, data.messages[-1])
        if refusal is None:
            now = self._bottles.at(live.connection.slot)
            if now is None or now.cut:  # while this one was being judged
                refusal = 403, bodies.cut_off(now.spent if now is not None else {}, live.host, live.bottle.view.bottle)
            elif (against := self._against(live)) is not None:
                refusal = against.status, against.error
        if refusal is None:
            return
        error = refusal[1]
        close = Close(_POLICY, f"{error['type']}: {error['message']}")
        if data.messages[-1].from_client:
            close_with(live.flow, close)
        else:
            close_after(live.flow, close)

    async def _judge(self, live: Live, message: WebSocketMessage) -> Refusal | None:
        with live.connection.holding():
            if message.from_client:
                refusal, message.content = await self._outbound.message(live, message.content)
                if refusal is not None:
                    return refusal
            if live.meter is None:
                return None
            if message.from_client:
                return await live.meter.asked(message.content)
            return await live.meter.said(message.content)

    async def end(self, live: Live) -> None:
        """Tell of a socket that broke a limit or the protocol; cuts and findings are told where they are decided."""
        close = ended_by(live.flow)
        if close is None or close.code == _POLICY:
            return
        error = f"closed with {int(close.code)}: {close.text}"
        connection = live.connection
        named = self._sightings.socket_ended(connection.slot, connection.source, live.host, live.facts.port, error)
        if named is not None:
            await named

    def _wanted(self, live: Live) -> bool:
        """Whether somebody still waits for this socket's next message."""
        now = self._bottles.at(live.connection.slot)
        return live.flow.client_conn.connected and now is not None and not now.cut
