"""Answers and messages of servers, looked at for what is addressed to the agent: off | warn | block by route."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from mitmproxy import http

from agentmon.injection.watch import Finding
from agentmon.proxy import bodies, echo, inbound
from agentmon.proxy.decide import Allow
from agentmon.proxy.edge_frames import Close
from agentmon.proxy.edge_layers import Ending, Hold, hold_answer
from agentmon.proxy.edge_live import Live, answer, without_length
from agentmon.proxy.exchange import Accounts
from agentmon.proxy.inbound import Copy, Events, Held, Reader
from agentmon.proxy.sightings import Sightings


def mode(live: Live) -> str:
    """off | warn | block; a host without a route is warned of."""
    route = live.verdict.route if isinstance(live.verdict, Allow) else None
    return route.inbound if route is not None else "warn"


def asked(request: http.Request, allow: Allow) -> None:
    """Have an answer that is to be held come as it will be read."""
    if allow.route is not None and allow.route.inbound == "block":
        request.headers["accept-encoding"] = "identity"


class Inbound:
    def __init__(self, sightings: Sightings, accounts: Accounts) -> None:
        self._sightings = sightings
        self._accounts = accounts

    def head(self, live: Live) -> None:
        """Of an answer whose head has come: put what reads it into its stream, or hold it."""
        self._read(live)
        response = live.flow.response
        if live.echo is not None and response is not None and response.stream and response.status_code != 101:
            then = response.stream if callable(response.stream) else inbound.passed
            response.stream = echo.Stream(live.echo, then)

    def _read(self, live: Live) -> None:
        response, how = live.flow.response, mode(live)
        assert response is not None
        if how == "off" or response.status_code == 101:
            return
        coding = response.headers.get("content-encoding", "").strip()
        coding = "" if coding.lower() == "identity" else coding
        kind = response.headers.get("content-type", "").lower()
        events = "text/event-stream" in kind
        inner: inbound.Stream = live.tap if live.tap is not None else inbound.passed
        if how == "warn":
            if not kind.startswith(("image/", "audio/", "video/", "font/")):
                response.stream = Copy(Reader(coding, events), inner, self._teller(live, "observed"))
        elif events and not coding:
            without_length(live.flow)
            response.stream = Events(inner, self._ender(live))
        else:
            live.held = Held(coding, inner, self._ender(live))
            gate = live.held if live.echo is None else echo.Stream(live.echo, live.held)
            hold_answer(live.flow, Hold(gate, inbound.HOLD_BYTES, live.keep))

    def whole(self, live: Live) -> None:
        """Of an answer that was held and has come to its end: it goes on, or ours does."""
        response = live.flow.response
        if live.held is None or response is None or response.stream:
            return
        body = response.raw_content or b""
        if live.echo is not None and body:
            body = response.raw_content = live.echo.without(body)
        if live.tap is not None and body:
            live.tap(body)
        finding = live.held.whole(body) if body else None
        if finding is not None:
            self._tell(live, "refused", finding)
            live.flow.response = answer(403, bodies.inbound_blocked(live.host, finding.rule, finding.says))

    def message(self, live: Live, data: bytes) -> Close | None:
        """Of a server's message on a WebSocket; why it must not go on."""
        how = mode(live)
        if how == "off" or inbound.is_binary(data):
            return None
        found = live.messages.feed(data)
        for finding in found:
            self._tell(live, "refused" if how == "block" else "observed", finding)
        if not found or how != "block":
            return None
        error = bodies.inbound_blocked(live.host, found[0].rule, found[0].says)
        return Close(1008, f"{error['type']}: {error['message']}")

    def _teller(self, live: Live, verdict: str) -> Callable[[Finding], None]:
        return lambda finding: self._tell(live, verdict, finding)

    def _ender(self, live: Live) -> Callable[[Finding], None]:
        """Ends a stream before what was found in it: by the provider's typed error where it is one of events."""

        def end(finding: Finding) -> None:
            self._tell(live, "refused", finding)
            error = bodies.inbound_blocked(live.host, finding.rule, finding.says)
            tail = live.error_event(error) if live.held is None else None
            ending = Ending(None, tail)
            self._accounts.spawn(self._cut(live, ending))

        return end

    async def _cut(self, live: Live, ending: Ending) -> None:
        await live.connection.cut(lambda flow: ending if flow is live.flow else None)

    def _tell(self, live: Live, verdict: str, finding: Finding) -> None:
        assert isinstance(live.verdict, Allow)
        where = "message" if live.flow.websocket is not None else "response"
        named = self._sightings.injection(live.connection.slot, live.connection.source, live.verdict, live.facts.port,
                                          verdict, where, finding)  # fmt: skip
        if named is not None:
            self._accounts.spawn(_wait(named))


async def _wait(named: Awaitable[None]) -> None:
    await named
