"""The responses of one WebSocket as exchanges: each has its own hold and its own row. No mitmproxy here.

client: asks      → hold, then the message goes on      waiting
provider: begins  → the oldest that waits, or a new hold (it began by itself)      open
provider: ends    → settled with its usage
provider: error   → released: it was not begun
the socket ends   → what waits or is open is charged as an estimate
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from agentmon import wire
from agentmon.providers.declaration import Said, SocketParser
from agentmon.proxy import bodies
from agentmon.proxy.exchange import Exchange

Refusal = tuple[int, bodies.Error]
MOST = 32  # responses under way on one socket
_STEP = 256  # tokens of text between two estimates


@dataclass
class _Open:
    exchange: Exchange
    seen: int = 0  # tokens of text so far
    told: int = 0


class SocketMeter:
    """:param new: a fresh exchange, charged to the bottle. :param wanted: as in Exchange.reserve()."""

    def __init__(self, parser: SocketParser, new: Callable[[], Exchange], wanted: Callable[[], bool]) -> None:
        self._parser = parser
        self._new = new
        self._wanted = wanted
        self._waiting: deque[tuple[str, Exchange]] = deque()
        self._open: dict[str, _Open] = {}
        self._closed = False

    @property
    def under_way(self) -> int:
        return len(self._waiting) + len(self._open)

    async def asked(self, data: bytes) -> Refusal | None:
        """A message of the client; the refusal where it must not go on."""
        asked = self._parser.asked(data)
        if asked is None:
            return None
        if self.under_way >= MOST:
            return 403, bodies.egress_denied(f"More than {MOST} responses are under way on this socket.", "")
        exchange = self._new()
        refusal = await exchange.reserve(asked.estimate, self._wanted)
        if refusal is not None or self._closed:
            exchange.finish(sent=False, status=None, usage=None)
            return refusal or (403, bodies.egress_denied("The socket has been closed.", ""))
        self._waiting.append((asked.event, exchange))
        return None

    async def said(self, data: bytes) -> Refusal | None:
        """A message of the provider, which goes on in any case; a refusal ends the socket after it."""
        said = self._parser.said(data)
        if said is None:
            return None
        if said.kind == "text":
            self._grow(said)
        elif said.kind == "error":
            self._error(said.event)
        elif said.kind == "begun":
            return await self._begin(said.number)
        else:
            return await self._end(said)
        return None

    def close(self) -> None:
        """The socket has ended; may be called again."""
        self._closed = True
        for _, exchange in self._waiting:
            exchange.finish(sent=True, status=None, usage=None)
        for under_way in self._open.values():
            under_way.exchange.finish(sent=True, status=None, usage=None, seen=under_way.seen)
        self._waiting.clear()
        self._open.clear()

    async def _begin(self, number: str) -> Refusal | None:
        if number in self._open:
            return None
        if self._waiting:
            self._open[number] = _Open(self._waiting.popleft()[1])
            return None
        if self.under_way >= MOST:
            return 403, bodies.egress_denied(f"More than {MOST} responses are under way on this socket.", "")
        exchange = self._new()
        refusal = await exchange.reserve(self._parser.begun(), self._wanted)
        if refusal is not None:
            exchange.unheld()
            return refusal
        self._open[number] = _Open(exchange)
        if self._closed:
            self.close()
        return None

    async def _end(self, said: Said) -> Refusal | None:
        """A row without a response that was asked for or begun (speech written down) takes a hold of its own."""
        known = self._open.pop(said.number, None)
        exchange, seen = (known.exchange, known.seen) if known is not None else (None, 0)
        if exchange is None and said.kind == "ended" and self._waiting:
            exchange = self._waiting.popleft()[1]
        refusal = None
        if exchange is None:
            if said.usage is None:
                return None
            exchange = self._new()
            refusal = await exchange.reserve(self._parser.begun(), self._wanted)
            if refusal is not None:
                exchange.unheld(said.usage)
        exchange.finish(sent=True, status=200, usage=said.usage, seen=seen)
        return refusal

    def _error(self, event: str) -> None:
        """The provider turned down what it names, or, naming nothing, the last that was asked for."""
        found = next((entry for entry in self._waiting if event and entry[0] == event), None)
        if found is None and self._waiting and not event:
            found = self._waiting[-1]
        if found is not None:
            self._waiting.remove(found)
            found[1].finish(sent=True, status=400, usage=None)

    def _grow(self, said: Said) -> None:
        number = said.number if said.number in self._open else next(iter(self._open), "")
        under_way = self._open.get(number)
        if under_way is None:
            return
        under_way.seen += said.tokens
        if under_way.seen >= under_way.told + _STEP:
            under_way.told = under_way.seen
            under_way.exchange.progress(
                wire.Usage("", output=under_way.seen * 3 // 4, source="estimate", complete=False)
            )
