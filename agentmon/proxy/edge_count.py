"""Asks a provider's count endpoint what a request brings in: one short HTTP/1.1 exchange of the worker's own.

The request's own credentials, the address that was vetted for it, and the roots that mitmproxy verifies with. Nothing
of the answer but one number is kept; nothing of it, or of an error's text, is told.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterable
from functools import cached_property

import h11
import mitmproxy.ctx

from agentmon.lookup import LookupRefused
from agentmon.providers import asked_count
from agentmon.providers.declaration import Counting, Gate
from agentmon.providers.request import Request
from agentmon.proxy import inject
from agentmon.proxy.decide import Allow
from agentmon.proxy.edge_connection import Connection
from agentmon.proxy.edge_live import Live
from agentmon.proxy.sightings import Sightings

TIMEOUT_S = 2.0  # with the wait for a turn, lookup and handshake
_AT_ONCE = 8  # questions of one worker
_PIECE_BYTES = 16 << 10

Headers = Iterable[tuple[bytes, bytes]]


class _NoCount(Exception):
    """`args[0]`: why, in words of ours."""


class Counts:
    """For one worker.

    :param vetted: an address for the connection's bottle and a host; raises LookupRefused.
    :param wanted: whether the request is still to be admitted: its client there, its bottle not cut.
    """

    def __init__(
        self,
        vetted: Callable[[Connection, str], Awaitable[str]],
        wanted: Callable[[Live], bool],
        sightings: Sightings,
    ) -> None:
        self._vetted = vetted
        self._wanted = wanted
        self._sightings = sightings
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def of(self, live: Live, allow: Allow, request: Request) -> Callable[[], Awaitable[int | None]] | None:
        """What asks for this request, once; None where nobody opted in, or there is no question to ask.

        What is returned gives the tokens, or None after the failure was told. It raises nothing.
        """
        endpoint, provider = allow.endpoint, allow.provider
        if provider is None or endpoint is None or provider.gate is not Gate.COUNT or endpoint.counting is None:
            return None
        if live.connection.sni is None:  # credentials go into TLS only
            return None
        counting = endpoint.counting
        body = asked_count.question(counting, request)
        return None if body is None else lambda: self._told(live, allow, counting, body)

    async def _told(self, live: Live, allow: Allow, counting: Counting, body: bytes) -> int | None:
        try:
            async with asyncio.timeout(TIMEOUT_S), self._turns:
                return await self._count(live, allow, counting, body)
        except TimeoutError:
            why = "timeout"
        except _NoCount as e:
            why = str(e)
        except LookupRefused:
            why = "unresolved"
        except (OSError, ValueError):  # ssl's errors are of both
            why = "unreachable"
        except h11.ProtocolError:
            why = "protocol"
        if self._wanted(live):
            self._sightings.uncounted(live.bottle, allow, live.facts, why)
        return None

    async def _count(self, live: Live, allow: Allow, counting: Counting, body: bytes) -> int:
        address = await self._vetted(live.connection, allow.host)
        head = _head(live, allow, counting, len(body))
        if not self._wanted(live):
            raise _NoCount("cut")
        reader, writer = await asyncio.open_connection(
            address, live.connection.port, ssl=self._context, server_hostname=allow.host
        )
        try:
            if not self._wanted(live):
                raise _NoCount("cut")
            status, answer = await _exchange(reader, writer, head, body)
        finally:
            writer.transport.abort()
        if status != 200:
            raise _NoCount(f"status {status}")
        count = asked_count.tokens(counting, answer)
        if count is None:
            raise _NoCount("no count")
        return count

    @cached_property
    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies chain and name
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(mitmproxy.ctx.options.ssl_verify_upstream_trusted_ca)
        context.set_alpn_protocols(["http/1.1"])
        return context


def _head(live: Live, allow: Allow, counting: Counting, length: int) -> h11.Request:
    """:raises h11.LocalProtocolError: a header of the client's cannot be sent."""
    own = "" if allow.route is None else allow.route.auth_header
    passed = [
        (name, value)
        for name, value in live.flow.request.headers.fields
        if _passes(name.decode("latin-1").lower(), counting, own)
    ]
    fixed = [
        (b"host", allow.host.encode()), (b"content-type", b"application/json"), (b"accept", b"application/json"),
        (b"accept-encoding", b"identity"), (b"content-length", b"%d" % length), (b"connection", b"close"),
    ]  # fmt: skip
    return h11.Request(method=b"POST", target=counting.path.encode(), headers=fixed + passed)


def _passes(name: str, counting: Counting, own: str) -> bool:
    return name in counting.headers or inject.is_own(name) or (bool(own) and name == own.lower())


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: h11.Request, body: bytes
) -> tuple[int, bytes]:
    """(status, whole body). :raises _NoCount: it breaks off or is too long."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=asked_count.ANSWER_BYTES)
    for sent in (head, h11.Data(data=body), h11.EndOfMessage()):
        writer.write(connection.send(sent) or b"")
    await writer.drain()
    status, answer = 0, bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_PIECE_BYTES))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            answer += event.data
            if len(answer) > asked_count.ANSWER_BYTES:
                raise _NoCount("too long")
        elif isinstance(event, h11.EndOfMessage):
            return status, bytes(answer)
        elif not isinstance(event, h11.InformationalResponse):
            raise _NoCount("broken off")
