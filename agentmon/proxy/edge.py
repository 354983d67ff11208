"""The hooks: what happens at each point of a request's life. Decisions are in decide.py and settlement.py.

tls_clienthello  SNI must be a name the policy allows; its certificate is made only then
requestheaders   decide: collect the body; an unmetered one of no known length passes through, searched piece by piece
request          search for secrets; metered: estimate, hold; look up, ask for identity and usage, forward
responseheaders  metered: tap; else pass through
response, error  settle or release, once
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field

from mitmproxy import http, tls
from mitmproxy.proxy import layer, server_hooks
from mitmproxy.proxy.layers.http import HTTPMode

from agentmon.lookup import LookupRefused, Lookups
from agentmon.policy.rules import RuleError, canonical_host
from agentmon.providers import estimate
from agentmon.providers.declaration import Provider, Signing
from agentmon.providers.decoding import decode_all
from agentmon.providers.include_usage import without_usage
from agentmon.providers.request import read as read_request
from agentmon.providers.sse import EventGate
from agentmon.proxy import bodies, edge_inbound, inject, introspect, outbound
from agentmon.proxy.bottles import Bottles
from agentmon.proxy.decide import Allow, Refuse, Tell, decide, decide_body
from agentmon.proxy.echo import Echo
from agentmon.proxy.edge_connection import BODY_BYTES, Connection, kill
from agentmon.proxy.edge_count import Counts
from agentmon.proxy.edge_inbound import Inbound
from agentmon.proxy.edge_layers import Ending, Layer
from agentmon.proxy.edge_live import Live, Refusal, answer, facts_of, without_length
from agentmon.proxy.edge_outbound import Outbound
from agentmon.proxy.edge_tls import Tls
from agentmon.proxy.edge_unreadable import Unreadable
from agentmon.proxy.edge_websocket import Sockets
from agentmon.proxy.exchange import Accounts, Exchange, Whose
from agentmon.proxy.outbound import Ask
from agentmon.proxy.search import Searches
from agentmon.proxy.shares import Shares
from agentmon.proxy.sightings import Sightings
from agentmon.proxy.tap import Answer, Tap

_DECODED_BYTES = 64 << 20
_BAD_ADDRESS_S = 10.0
_POLICY = frozenset({"default", "deny", "protected", "method", "path", "header", "query", "endpoint"})
_METHOD_HEADERS = ("x-http-method-override", "x-http-method", "x-method-override")  # the method decided is the one sent


@dataclass
class Hooks:
    """Called by edge_connection.Connection. `connections`: by slot; `live`: every request under way, by flow id."""

    bottles: Bottles
    providers: Mapping[str, Provider]
    lookups: Lookups
    accounts: Accounts
    sightings: Sightings
    handshakes: Tls
    searches: Searches
    ask: Ask = outbound.nobody
    connections: dict[int, set[Connection]] = field(default_factory=dict)
    live: dict[str, Live] = field(default_factory=dict)
    shares: Shares = field(default_factory=Shares)

    def __post_init__(self) -> None:
        self._keys = (f"{os.getpid():x}-{time.monotonic_ns():x}-{n}" for n in itertools.count(1))
        self._bad: dict[str, float] = {}  # address → when it may be tried again
        self._inbound = Inbound(self.sightings, self.accounts)
        self._unreadable = Unreadable(self.sightings, self.accounts)
        self._outbound = Outbound(self.searches, self.bottles, self.sightings, self.ask)
        self._counts = Counts(self._vetted, self._wanted, self.sightings)
        self._sockets = Sockets(
            self.bottles, self.accounts, self.sightings, self._inbound, self._outbound, lambda: next(self._keys),
            self._against,
        )  # fmt: skip

    # ── connections ──

    def came(self, connection: Connection) -> None:
        self.connections.setdefault(connection.slot, set()).add(connection)

    def gone(self, connection: Connection) -> None:
        """Nothing of a closed connection stays open, whatever hooks did or did not run."""
        mine = self.connections.get(connection.slot, set())
        mine.discard(connection)
        if not mine:
            self.connections.pop(connection.slot, None)
        for live in [live for live in self.live.values() if live.connection is connection]:
            self._finish(live)

    def failed(self, connection: Connection, what: str, error: str) -> None:
        host = connection.sni or ""
        named = self.sightings.ended(connection.slot, connection.source, host, connection.port, what, error)
        if named is not None:
            self.accounts.spawn(_wait(named))

    def on_next_layer(self, connection: Connection, nextlayer: layer.NextLayer) -> None:
        context = nextlayer.context
        if context.server.address is None:
            context.server.address = ("", connection.port)
        nextlayer.layer = http_layer = Layer(context, HTTPMode.transparent)
        http_layer.failure = self._upstream_failure

    # ── TLS ──

    async def on_tls_clienthello(self, connection: Connection, data: tls.ClientHelloData) -> None:
        bottle = self.bottles.at(connection.slot)
        try:
            host = canonical_host(data.client_hello.sni or "")
        except RuleError:
            host = ""
        said = bottle.policy.decide_name(host, connection.port) if bottle and host else None
        observe = bottle is not None and bottle.view.mode == "observe" and said is not None and said.reason == "default"
        if said is None or not (said.allowed or observe):
            reason = "sni" if said is None else said.reason
            named = self.sightings.hello(connection.slot, connection.source, host, connection.port, reason)
            if named is not None:
                await named
            connection.abort()
            return
        connection.sni = host
        data.context.client.sni = host
        data.context.server.address = (host, connection.port)
        data.context.server.tls = True

    def on_tls_start_client(self, connection: Connection, data: tls.TlsData) -> None:
        if connection.sni is not None:
            self.handshakes.start_client(data)

    def on_tls_failed_client(self, connection: Connection, data: tls.TlsData) -> None:
        if connection.sni is not None:
            self.sightings.distrust(connection.slot, connection.sni, connection.port, data.conn.error or "")

    def on_tls_start_server(self, connection: Connection, data: tls.TlsData) -> None:
        if connection.sni is None:
            raise AssertionError("TLS to an upstream, but the client speaks none")
        self.handshakes.start_server(data, connection.sni)

    # ── upstream ──

    def on_server_connect(self, connection: Connection, data: server_hooks.ServerConnectionHookData) -> None:
        address = data.server.address
        if address is None or address[0] not in connection.dialled.values():
            data.server.error = "not a vetted address"

    def on_server_connect_error(self, connection: Connection, data: server_hooks.ServerConnectionHookData) -> None:
        bad = data.server.address[0] if data.server.address else ""
        self._bad = {a: until for a, until in self._bad.items() if until > time.monotonic()}
        self._bad[bad] = time.monotonic() + _BAD_ADDRESS_S
        connection.dialled = {host: address for host, address in connection.dialled.items() if address != bad}

    async def _route(self, connection: Connection, flow: http.HTTPFlow, host: str) -> Refusal | None:
        """Send the flow to a vetted address of `host`; the refusal where there is none."""
        try:
            flow.request.data.host = await self._vetted(connection, host)
        except LookupRefused as e:
            return 502, bodies.upstream_failed(host, f"its name does not resolve ({e.reason})")
        flow.request.data.port = connection.port
        return None

    async def _vetted(self, connection: Connection, host: str) -> str:
        """The address of `host` that this connection dials. :raises LookupRefused: there is none."""
        addresses = await self.lookups.lookup(connection.slot, host, connection.port)
        now = time.monotonic()
        known = connection.dialled.get(host)
        if known not in addresses:
            good = [a for a in addresses if self._bad.get(a, 0.0) < now]
            known = connection.dialled[host] = (good or addresses)[0]
        return known

    def _upstream_failure(self, flow: http.HTTPFlow, why: str) -> http.Response:
        live = self.live.get(flow.id)
        if live is not None:
            live.ours = True
        response = answer(502, bodies.upstream_failed(live.host if live else "", why[:300]))
        del response.headers["x-should-retry"]  # trying again may help
        response.headers["connection"] = "close"
        return response

    # ── requests ──

    async def on_requestheaders(self, connection: Connection, flow: http.HTTPFlow) -> None:
        with connection.deciding():
            await self._head(connection, flow)

    async def _head(self, connection: Connection, flow: http.HTTPFlow) -> None:
        bottle = self.bottles.at(connection.slot)
        if bottle is None or flow.error is not None:  # gone, or a head that mitmproxy itself refuses
            kill(flow)
            return
        facts = facts_of(flow.request, connection)
        verdict = decide(bottle, facts, self.providers)
        live = self.live[flow.id] = Live(connection, flow, bottle, facts, verdict)
        connection.began()
        streams = False
        if isinstance(verdict, Refuse):
            live.refusal = (verdict.status, verdict.error)
            named = self.sightings.refused(connection.slot, connection.source, verdict, facts)
            if named is not None:
                await named
        elif isinstance(verdict, Allow):
            self.sightings.observed(bottle, verdict, facts)
            live.refusal = await self._outbound.split(live, verdict)
            _clean(flow.request, verdict)
            edge_inbound.asked(flow.request, verdict)
            if verdict.upgrades:
                self._sockets.offered(flow.request, verdict)
            if live.refusal is None and not verdict.metered and not verdict.lfs:
                streams = self._outbound.passes_through(flow.request) and await self._pass_through(live, verdict)
        length = flow.request.headers.get("content-length", "")
        if not streams and length.isdigit() and int(length) > BODY_BYTES:
            self.accounts.spawn(self._too_long(live))
        live.body_comes(streams=streams)

    async def _pass_through(self, live: Live, verdict: Allow) -> bool:
        """Whether its body may pass through, once its head was found to be clean."""
        live.refusal = await self._outbound.head(live, verdict)
        if live.refusal is None:
            live.refusal = await self._route(live.connection, live.flow, verdict.host)
        if live.refusal is None:
            live.window = live.flow.request.stream = self._outbound.window(live.flow.request)
        return live.refusal is None

    async def on_request_body(self, connection: Connection, flow: http.HTTPFlow) -> None:
        """A piece of a body that passes through (edge_layers.RequestBodyHook)."""
        live = self.live[flow.id]
        assert live.window is not None
        live.window.ending = await self._outbound.piece(live, live.window)

    async def on_request(self, connection: Connection, flow: http.HTTPFlow) -> None:
        live = self.live.get(flow.id)
        if live is None:
            kill(flow)
            return
        live.body_came()
        if isinstance(live.verdict, Tell):
            path = live.verdict.path
            seen = await introspect.look(path, connection.slot, self.accounts, self.lookups)
            status, body, headers = introspect.tell(live.bottle, flow.request.method, path, seen)
            live.ours = True
            flow.response = http.Response.make(status, body, headers)
        elif live.refusal is None and isinstance(live.verdict, Allow) and live.window is None:
            live.refusal = await self._whole(live, live.verdict)
        if live.refusal is not None:
            live.ours = True
            flow.response = answer(*live.refusal)

    async def _whole(self, live: Live, verdict: Allow) -> Refusal | None:
        """Of a request that is there as a whole: None where it may go."""
        refusal = await self._by_body(live, verdict) if verdict.lfs else None
        if refusal is None:
            refusal = await self._outbound.whole(live, verdict)
        if refusal is not None:
            return refusal
        if verdict.metered:
            return await self._admit(live, verdict)
        return await self._route(live.connection, live.flow, verdict.host)

    async def _by_body(self, live: Live, verdict: Allow) -> Refusal | None:
        request = live.flow.request
        said = decide_body(verdict, request.headers.get("content-encoding", ""), request.raw_content or b"")
        if said is None:
            return None
        named = self.sightings.refused(live.connection.slot, live.connection.source, said, live.facts)
        if named is not None:
            await named
        return said.status, said.error

    async def _admit(self, live: Live, verdict: Allow) -> Refusal | None:
        """Hold, look up, prepare; None where the request may go."""
        endpoint, provider, request = verdict.endpoint, verdict.provider, live.flow.request
        assert endpoint is not None and provider is not None
        slot, name = live.bottle.view.slot, live.bottle.view.bottle
        raw = request.raw_content or b""
        coding = request.headers.get("content-encoding", "")
        body = decode_all(coding, raw, _DECODED_BYTES) if coding else raw
        if body is None:
            return 400, bodies.egress_denied("The request's body does not decode.", verdict.host)
        whose = Whose(slot, name, provider.name, verdict.host, next(self._keys))
        live.exchange = Exchange(self.accounts, whose)
        read = read_request(verdict.path, body)
        asked, count = estimate.of(provider, endpoint, read), self._counts.of(live, verdict, read)
        refusal = await live.exchange.reserve(asked, lambda: self._wanted(live), count=count)
        if refusal is None:
            refusal = await self._route(live.connection, live.flow, verdict.host)
        now = self.bottles.at(slot)
        if refusal is None and (now is None or now.cut):
            refusal = 403, bodies.cut_off(now.spent if now is not None else {}, verdict.host, name)
        if refusal is not None:
            live.exchange.finish(sent=False, status=None, usage=None)
            return refusal
        if provider.signing is Signing.UNSIGNED:
            request.headers["accept-encoding"] = "identity"
        if endpoint.rewrite is not None:
            body, live.strip_usage = endpoint.rewrite(body)
            if live.strip_usage:
                for header in ("content-encoding", "transfer-encoding"):
                    request.headers.pop(header, None)
                request.raw_content = body
                request.headers["content-length"] = str(len(body))
        return None

    def _wanted(self, live: Live) -> bool:
        """Whether somebody still waits for this request's hold."""
        now = self.bottles.at(live.connection.slot)
        return live.awaited and now is not None and not now.cut

    # ── answers ──

    def on_responseheaders(self, connection: Connection, flow: http.HTTPFlow) -> None:
        live = self.live.get(flow.id)
        if live is None or flow.response is None:
            kill(flow)
            return
        if live.ours:
            return
        live.status = flow.response.status_code
        if live.status == 101 and not self._sockets.agreed(live):
            raise UpstreamRefused("the server answered with another protocol than was asked for")
        flow.response.stream = True
        if live.exchange is not None:
            live.tap = flow.response.stream = self._tap(live, live.exchange, flow.response)
            if self._unreadable.head(live):
                return
            if live.tap.may_change_length:
                without_length(flow)
        if isinstance(live.verdict, Allow) and live.verdict.secret is not None:
            live.echo = Echo(live.verdict.secret)
            flow.response.headers.fields = live.echo.without_in(flow.response.headers.fields)
        self._inbound.head(live)
        now = self.bottles.at(connection.slot)
        if now is None or now.cut:  # the cut came while this one could not be ended
            self.accounts.spawn(self._cut_late(connection))

    def _tap(self, live: Live, exchange: Exchange, response: http.Response) -> Tap:
        assert isinstance(live.verdict, Allow) and live.verdict.endpoint is not None
        assert live.verdict.endpoint.parser is not None
        headers = {name.lower(): response.headers[name] for name in response.headers}
        coding = headers.get("content-encoding", "")
        coding = "" if coding.lower() == "identity" else coding
        kind = headers.get("content-type", "")
        sse = "text/event-stream" in kind or not kind  # without a type: a stream where it turns out to be one
        gate = EventGate(without_usage) if live.strip_usage and sse and not coding else None
        return Tap(
            live.verdict.endpoint.parser(headers),
            Answer(coding, sse),
            gate,
            exchange.progress,
            self._unreadable.breaker(live),
        )

    def on_response(self, connection: Connection, flow: http.HTTPFlow) -> None:
        live = self.live.get(flow.id)
        if live is not None and flow.websocket is None:
            self._inbound.whole(live)
            if live.held is not None:
                self._unreadable.whole(live)
            if live.echo is not None and flow.response is not None and flow.response.trailers:
                flow.response.trailers.fields = live.echo.without_in(flow.response.trailers.fields)
            if live.tap is not None:
                live.tap.ended()
            self._finish(live)

    def on_error(self, connection: Connection, flow: http.HTTPFlow) -> None:
        if flow.id in self.live:
            self._finish(self.live[flow.id])

    # ── WebSockets ──

    def on_websocket_start(self, connection: Connection, flow: http.HTTPFlow) -> None:
        self._sockets.start(self.live[flow.id])

    async def on_websocket_message(self, connection: Connection, flow: http.HTTPFlow) -> None:
        await self._sockets.message(self.live[flow.id])

    async def on_websocket_end(self, connection: Connection, flow: http.HTTPFlow) -> None:
        live = self.live[flow.id]
        self._finish(live)
        await self._sockets.end(live)

    def _finish(self, live: Live) -> None:
        if self.live.pop(live.flow.id, None) is None:
            return
        live.over()
        if isinstance(live.verdict, Allow) and live.sent:
            took_ns = time.monotonic_ns() - live.began_ns
            self.sightings.passed(live.bottle, live.verdict, live.facts, live.status, took_ns)
        if live.meter is not None:
            live.meter.close()
        if live.exchange is not None:
            usage = live.tap.close() if live.tap is not None else None
            seen = live.tap.output_seen if live.tap is not None else 0
            unread = live.tap.failed if live.tap is not None else ""
            live.exchange.finish(sent=live.sent, status=live.status, usage=usage, seen=seen, unread=unread)

    # ── ending ──

    async def cut(self, slot: int) -> tuple[int, int]:
        """End every stream of this bottle; (how many, CLOCK_MONOTONIC of the last)."""
        results = [(await c.cut(self._ending), c) for c in list(self.connections.get(slot, ()))]  # all bytes first
        await asyncio.gather(*(c.closed() for n, c in results if n))
        return sum(n for n, _ in results), time.monotonic_ns()

    def rejudge(self, slot: int) -> None:
        """The bottle has another policy: what it would not permit any more ends. An HTTP/2 connection ends where
        none of its streams is left."""
        against: dict[str, Ending] = {}
        for live in self.live.values():
            now = self._against(live) if live.connection.slot == slot else None
            if now is not None:
                against[live.flow.id] = live.ending_with(now.status, now.error)
        for connection in {self.live[number].connection for number in against}:
            mine = {number for number, live in self.live.items() if live.connection is connection}
            if mine <= against.keys():
                self.accounts.spawn(self._end(connection, against))

    def _against(self, live: Live) -> Refuse | None:
        """What the bottle's policy of now has against a request that an earlier one permitted."""
        bottle = self.bottles.at(live.connection.slot)
        if bottle is None or live.ours or not isinstance(live.verdict, Allow):
            return None
        if bottle.view is live.bottle.view or bottle.view.run != live.bottle.view.run:
            return None
        now = decide(bottle, live.facts, self.providers)
        return now if isinstance(now, Refuse) and now.reason in _POLICY else None

    async def _end(self, connection: Connection, endings: Mapping[str, Ending]) -> None:
        await connection.cut(lambda flow: endings.get(flow.id))

    async def _too_long(self, live: Live) -> None:
        """Answer at once, and close: the body would be thrown away."""
        error = bodies.egress_denied(f"Request bodies here have at most {BODY_BYTES} bytes.", live.facts.sni or "")
        response = answer(413, error)
        response.headers["connection"] = "close"
        await live.connection.cut(lambda flow: Ending(response, None) if flow is live.flow else None)

    async def _cut_late(self, connection: Connection) -> None:
        await connection.cut(self._ending)

    def _ending(self, flow: http.HTTPFlow) -> Ending | None:
        live = self.live.get(flow.id)
        return None if live is None else live.ending(self.bottles.at(live.connection.slot) or live.bottle)

    def close(self, slot: int) -> None:
        """The bottle is gone: so are its connections."""
        for connection in list(self.connections.get(slot, ())):
            connection.abort()


class UpstreamRefused(Exception):
    """The server did what no rule permits; nothing of it reaches the client."""


async def _wait(named: Awaitable[None]) -> None:
    await named


def _clean(request: http.Request, verdict: Allow) -> None:
    """Origin form, whatever the client wrote; the credentials that the route says, and no others."""
    request.method = request.method  # as it was judged: mitmproxy reads it in capitals, and sends what was written
    if request.authority and not request.is_http2:
        request.authority = ""
    if verdict.holds_method:
        for header in _METHOD_HEADERS:
            request.headers.pop(header, None)
    route = verdict.route
    if route is None or not inject.strips(route):
        return
    for header in inject.own_headers(list(request.headers), route):
        request.headers.pop(header, None)
    request.path = inject.without_keys(request.path)
    if verdict.secret is not None:
        request.headers[route.auth_header] = inject.header_value(route, verdict.secret)
        request.headers["accept-encoding"] = "identity"  # so that an answer that repeats it can be read
