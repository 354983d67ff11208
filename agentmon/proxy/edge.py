"""The hooks: what happens at each point of a request's life. Decisions are in decide.py and settlement.py.

clienthello   SNI must be a name the policy allows; its certificate is made only then
requestheaders  decide → unmetered: look up, stream through │ metered: collect the body │ refused: answer at its end
request       metered: estimate → hold → look up → ask for identity and usage → forward
responseheaders  tap (metered) or pass through
response, error  settle or release, once
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from mitmproxy import http, tls
from mitmproxy.proxy import layer, server_hooks
from mitmproxy.proxy.layers.http import HTTPMode

from agentmon.events import Event
from agentmon.lookup import LookupRefused, Lookups
from agentmon.policy.rules import RuleError, canonical_host
from agentmon.providers.body import Choice
from agentmon.providers.declaration import Provider
from agentmon.providers.decoding import decode_all
from agentmon.providers.openai import is_usage_chunk
from agentmon.providers.sse import EventGate
from agentmon.proxy import bodies, introspect
from agentmon.proxy.bottles import Bottle, Bottles
from agentmon.proxy.decide import Allow, Facts, Refuse, Tell, Verdict, decide
from agentmon.proxy.edge_connection import BODY_BYTES, Connection, kill
from agentmon.proxy.edge_layers import Ending, Layer
from agentmon.proxy.edge_tls import Tls
from agentmon.proxy.exchange import Accounts, Exchange, Whose
from agentmon.proxy.tap import Answer, Tap
from agentmon.reporting import Reporter

_DECODED_BYTES = 64 << 20
_BAD_ADDRESS_S = 10.0
_AUTH_HEADERS = ("authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie")


@dataclass
class Live:
    """A request under way."""

    bottle: Bottle
    verdict: Verdict
    facts: Facts
    refusal: tuple[int, bodies.Error] | None = None  # answer with this instead of forwarding
    exchange: Exchange | None = None
    tap: Tap | None = None
    strip_usage: bool = False
    ours: bool = False  # the answer is agentmon's own
    status: int | None = None  # of the upstream's answer
    streams: bool = False  # the request's body passes through
    buffers: bool = False


@dataclass
class Hooks:
    """Called by edge_connection.Connection; `live` is every request under way, by flow id."""

    bottles: Bottles
    providers: Mapping[str, Provider]
    lookups: Lookups
    accounts: Accounts
    reporter: Reporter
    handshakes: Tls
    connections: dict[int, set[Connection]] = field(default_factory=dict)
    live: dict[str, tuple[Connection, Live]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._keys = (f"{os.getpid():x}-{time.monotonic_ns():x}-{n}" for n in itertools.count(1))
        self._bad: dict[str, float] = {}  # address → when it may be tried again

    # ── connections ──

    def came(self, connection: Connection) -> None:
        self.connections.setdefault(connection.slot, set()).add(connection)

    def gone(self, connection: Connection) -> None:
        """Nothing of a closed connection stays open, whatever hooks did or did not run."""
        mine = self.connections.get(connection.slot, set())
        mine.discard(connection)
        if not mine:
            self.connections.pop(connection.slot, None)
        for id, (owner, live) in list(self.live.items()):
            if owner is connection:
                self._finish(id, live, sent=live.status is not None)

    def failed(self, connection: Connection, what: str, error: str) -> None:
        bottle = self.bottles.at(connection.slot)
        name = bottle.view.bottle if bottle else ""
        event = Event(
            "request", "refused", name, reason=what, layer="proxy", host=connection.sni or "", port=connection.port,
            hint="the connection was closed", detail={"error": error[:300]},
        )  # fmt: skip
        self.reporter.note(connection.slot, event)

    def on_next_layer(self, connection: Connection, nextlayer: layer.NextLayer) -> None:
        context = nextlayer.context
        if context.server.address is None:
            context.server.address = ("", connection.port)
        http_layer = Layer(context, HTTPMode.transparent)
        http_layer.failure = self._upstream_failure
        nextlayer.layer = http_layer

    # ── TLS ──

    def on_tls_clienthello(self, connection: Connection, data: tls.ClientHelloData) -> None:
        bottle = self.bottles.at(connection.slot)
        try:
            host = canonical_host(data.client_hello.sni or "")
        except RuleError:
            host = ""
        said = bottle.policy.decide_name(host, connection.port) if bottle and host else None
        observe = bottle is not None and bottle.view.mode == "observe" and said is not None and said.reason == "default"
        if said is None or not (said.allowed or observe):
            self._refused(connection, host, "sni" if not host else (said.reason if said is not None else "unknown"))
            connection.abort()
            return
        connection.sni = host
        data.context.client.sni = host
        data.context.server.address = (host, connection.port)
        data.context.server.tls = True

    def on_tls_start_client(self, connection: Connection, data: tls.TlsData) -> None:
        if connection.sni is not None:
            self.handshakes.start_client(data)

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
        if data.server.address is not None:
            self._bad[data.server.address[0]] = time.monotonic() + _BAD_ADDRESS_S
            for host, address in list(connection.dialled.items()):
                if address == data.server.address[0]:
                    del connection.dialled[host]

    async def _route(self, connection: Connection, flow: http.HTTPFlow, host: str) -> tuple[int, bodies.Error] | None:
        """Send the flow to a vetted address of `host`; (status, error) where there is none."""
        try:
            addresses = await self.lookups.lookup(connection.slot, host, connection.port)
        except LookupRefused as e:
            return 502, bodies.upstream_failed(host, f"its name does not resolve ({e.reason})")
        now = time.monotonic()
        known = connection.dialled.get(host)
        if known not in addresses:
            good = [a for a in addresses if self._bad.get(a, 0.0) < now]
            known = connection.dialled[host] = (good or addresses)[0]
        flow.request.data.host = known
        flow.request.data.port = connection.port
        return None

    def _upstream_failure(self, flow: http.HTTPFlow, why: str) -> http.Response:
        known = self.live.get(flow.id)
        host = known[1].verdict.host if known and isinstance(known[1].verdict, Allow) else ""
        if known:
            known[1].ours = True
        response = _answer(502, bodies.upstream_failed(host, why[:300]))
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
        facts = _facts(flow.request, connection)
        verdict = decide(bottle, facts, self.providers)
        live = Live(bottle, verdict, facts)
        self.live[flow.id] = (connection, live)
        if isinstance(verdict, Refuse):
            live.refusal = (verdict.status, verdict.error)
            self._refused(connection, verdict.host, verdict.reason, verdict, facts)
        elif isinstance(verdict, Allow):
            self._noted(bottle, verdict, facts)
            if verdict.strip_auth:
                for header in _AUTH_HEADERS:
                    flow.request.headers.pop(header, None)
            if flow.request.authority and not (flow.request.is_http2 or flow.request.is_http3):
                flow.request.authority = ""  # origin form, whatever the client wrote
            if not verdict.metered:
                live.refusal = await self._route(connection, flow, verdict.host)
                live.streams = live.refusal is None
                flow.request.stream = live.streams
        length = flow.request.headers.get("content-length", "")
        if not live.streams and length.isdigit() and int(length) > BODY_BYTES:
            message = f"Request bodies here have at most {BODY_BYTES} bytes."
            live.refusal = 413, bodies.egress_denied(message, facts.sni or "")
        live.buffers = not live.streams
        connection.streaming += live.streams
        connection.buffering += live.buffers
        connection.allow()

    async def on_request(self, connection: Connection, flow: http.HTTPFlow) -> None:
        known = self.live.get(flow.id)
        if known is None:
            kill(flow)
            return
        live = known[1]
        self._body_came(connection, live)
        if isinstance(live.verdict, Tell):
            await self._tell(connection, flow, live, live.verdict)
        elif live.refusal is None and isinstance(live.verdict, Allow) and live.verdict.metered:
            live.refusal = await self._admit(connection, flow, live, live.verdict)
        if live.refusal is not None:
            live.ours = True
            flow.response = _answer(*live.refusal)

    def _body_came(self, connection: Connection, live: Live) -> None:
        connection.streaming -= live.streams
        connection.buffering -= live.buffers
        live.streams = live.buffers = False
        connection.allow()

    async def _tell(self, connection: Connection, flow: http.HTTPFlow, live: Live, verdict: Tell) -> None:
        totals = None
        if verdict.path == introspect.BUDGET:
            totals = await self.accounts.totals(connection.slot)
        status, body = introspect.tell(live.bottle, verdict.path, totals)
        live.ours = True
        flow.response = http.Response.make(status, body, bodies.HEADERS)

    async def _admit(
        self, connection: Connection, flow: http.HTTPFlow, live: Live, verdict: Allow
    ) -> tuple[int, bodies.Error] | None:
        """Hold, look up, prepare; None where the request may go."""
        endpoint, provider, request = verdict.endpoint, verdict.provider, flow.request
        assert endpoint is not None and provider is not None and endpoint.estimate is not None
        raw = request.raw_content or b""
        coding = request.headers.get("content-encoding", "")
        body = decode_all(coding, raw, _DECODED_BYTES) if coding else raw
        if body is None:
            return 400, bodies.egress_denied("The request's body does not decode.", verdict.host)
        whose = Whose(connection.slot, live.bottle.view.bottle, provider.name, verdict.host, next(self._keys))
        live.exchange = Exchange(self.accounts, whose)
        refusal = await live.exchange.reserve(endpoint.estimate(body))
        if refusal is None:
            refusal = await self._route(connection, flow, verdict.host)
        now = self.bottles.at(connection.slot)
        if refusal is None and (now is None or now.cut):
            spent = now.spent if now is not None else {}
            refusal = 403, bodies.cut_off(spent, verdict.host, live.bottle.view.bottle)
        if refusal is not None:
            live.exchange.finish(sent=False, status=None, usage=None)
            return refusal
        request.headers["accept-encoding"] = "identity"
        if endpoint.rewrite is not None:
            new, live.strip_usage = endpoint.rewrite(body)
            if live.strip_usage:
                request.headers.pop("content-encoding", None)
                request.headers.pop("transfer-encoding", None)
                request.raw_content = new
                request.headers["content-length"] = str(len(new))
        return None

    # ── answers ──

    def on_responseheaders(self, connection: Connection, flow: http.HTTPFlow) -> None:
        known = self.live.get(flow.id)
        if known is None or flow.response is None:
            kill(flow)
            return
        live = known[1]
        if live.ours:
            return
        live.status = flow.response.status_code
        exchange, verdict = live.exchange, live.verdict
        if exchange is None or not isinstance(verdict, Allow) or verdict.endpoint is None:
            flow.response.stream = True
        else:
            headers = {name.lower(): flow.response.headers[name] for name in flow.response.headers}
            assert verdict.endpoint.parser is not None
            parser = verdict.endpoint.parser(headers)
            sse = "text/event-stream" in headers.get("content-type", "") or (
                isinstance(parser, Choice) and "content-type" not in headers
            )
            coding = headers.get("content-encoding", "")
            coding = "" if coding.lower() == "identity" else coding
            gate = EventGate(is_usage_chunk) if live.strip_usage and sse and not coding else None
            live.tap = Tap(parser, Answer(coding, sse), gate, exchange.progress)
            flow.response.stream = live.tap
            if live.tap.can_end_with_event and "content-length" in flow.response.headers:
                _without_length(flow)
        now = self.bottles.at(connection.slot)
        if now is None or now.cut:  # the cut came while this one could not be ended
            self.accounts.spawn(self._cut_late(connection))

    def on_response(self, connection: Connection, flow: http.HTTPFlow) -> None:
        known = self.live.get(flow.id)
        if known is not None:
            self._finish(flow.id, known[1], sent=True)

    def on_error(self, connection: Connection, flow: http.HTTPFlow) -> None:
        known = self.live.get(flow.id)
        if known is not None:
            self._finish(flow.id, known[1], sent=flow.server_conn.timestamp_tcp_setup is not None)

    def _finish(self, id: str, live: Live, *, sent: bool) -> None:
        connection, _ = self.live.pop(id)
        self._body_came(connection, live)
        if live.exchange is not None:
            usage = live.tap.close() if live.tap is not None else None
            live.exchange.finish(sent=sent, status=live.status, usage=usage)

    # ── cut ──

    async def cut(self, slot: int) -> tuple[int, int]:
        """End every stream of this bottle; (how many, CLOCK_MONOTONIC of the last)."""
        results = [await connection.cut(self._ending) for connection in list(self.connections.get(slot, ()))]
        return sum(n for n, _ in results), max((at for _, at in results), default=0) or time.monotonic_ns()

    async def _cut_late(self, connection: Connection) -> None:
        await connection.cut(self._ending)

    def _ending(self, flow: http.HTTPFlow) -> Ending | None:
        known = self.live.get(flow.id)
        if known is None or known[1].ours:
            return None
        connection, live = known
        bottle = self.bottles.at(connection.slot) or live.bottle
        verdict = live.verdict
        host = verdict.host if isinstance(verdict, Allow) else ""
        error = bodies.cut_off(bottle.spent, host, bottle.view.bottle)
        answer = _answer(403, error)
        answer.headers["connection"] = "close"
        provider = verdict.provider if isinstance(verdict, Allow) else None
        tail = None
        if live.tap is not None and live.tap.can_end_with_event and provider and provider.error_body:
            tail = live.tap.before_event() + provider.error_body(error)
        return Ending(answer, tail)

    def close(self, slot: int) -> None:
        """The bottle is gone: so are its connections."""
        for connection in list(self.connections.get(slot, ())):
            connection.abort()

    # ── events ──

    def _refused(
        self, connection: Connection, host: str, reason: str, verdict: Refuse | None = None, facts: Facts | None = None
    ) -> None:
        bottle = self.bottles.at(connection.slot)
        if bottle is None or bottle.view.log == "off":
            return
        detail: dict[str, object] = {}
        if verdict is not None and facts is not None:
            detail = {"method": facts.method[:20], "path": verdict.path[:200], "status": verdict.status}
        event = Event(
            "request", "refused", bottle.view.bottle, reason, "proxy", proto="tcp", host=host, port=connection.port,
            rule=verdict.rule if verdict else "", hint=verdict.hint if verdict else "", epoch=bottle.view.epoch,
            detail=detail,
        )  # fmt: skip
        self.reporter.note(connection.slot, event)

    def _noted(self, bottle: Bottle, verdict: Allow, facts: Facts) -> None:
        if bottle.view.log != "full" and not verdict.observed:
            return
        detail = {"method": facts.method[:20], "path": verdict.path[:200]}
        event = Event(
            "request", "observed" if verdict.observed else "allowed", bottle.view.bottle, "", "proxy", proto="tcp",
            host=verdict.host, port=facts.port, rule=verdict.rule, epoch=bottle.view.epoch, detail=detail,
        )  # fmt: skip
        self.reporter.note(bottle.view.slot, event)


def _answer(status: int, error: bodies.Error) -> http.Response:
    return http.Response.make(status, bodies.encode(error), bodies.HEADERS)


def _facts(request: http.Request, connection: Connection) -> Facts:
    headers = request.headers
    upgrade = headers.get("upgrade", "") if not request.is_http2 else ""
    return Facts(
        request.method, request.path, connection.port, connection.sni, tuple(headers.get_all("host")),
        request.authority, upgrade,
    )  # fmt: skip


def _without_length(flow: http.HTTPFlow) -> None:
    """Let a body's end be told by its framing: an event of ours may have to follow, or a chunk to be left out."""
    assert flow.response is not None
    del flow.response.headers["content-length"]
    if flow.request.http_version == "HTTP/1.1":
        flow.response.headers["transfer-encoding"] = "chunked"
