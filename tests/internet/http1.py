"""A small strict HTTP/1.1 server (h11 parses) that knows on which address and under which TLS name it was asked."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import h11

from tests.internet import http2

MAX_BODY_BYTES = 40 << 20


@dataclass
class Request:
    method: str
    target: str
    headers: dict[str, str]  # names in lower case
    body: bytes
    local: str  # the address that was dialled
    peer: str
    sni: str  # "" without TLS

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query))

    @property
    def host(self) -> str:
        return self.headers.get("host", "").partition(":")[0].lower()


class ClientGone(ConnectionError):
    """The client closed before the response was complete."""


class Response:
    """Writes one response: `send` a whole one, or `start`, `data` …, `end`. `status`, `sent_bytes` go to the log."""

    def __init__(self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connection, self._reader, self._writer = connection, reader, writer
        self.status = 0
        self.sent_bytes = 0

    async def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        await self.start(status, headers | {"content-length": str(len(body))})
        if body:
            await self.data(body)
        await self.end()

    async def json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value, ensure_ascii=False).encode()
        await self.send(status, body, {"content-type": "application/json"} | (headers or {}))

    async def start(self, status: int, headers: dict[str, str]) -> None:
        self.status = status
        fields = [(k.encode(), v.encode()) for k, v in headers.items()]
        await self._write(h11.Response(status_code=status, headers=fields))

    async def data(self, chunk: bytes) -> None:
        """:raises ClientGone: nobody is listening any more."""
        await self._write(h11.Data(data=chunk))
        self.sent_bytes += len(chunk)

    async def end(self) -> None:
        await self._write(h11.EndOfMessage())

    async def pause(self, seconds: float) -> None:
        """Wait, but not longer than the client stays. :raises ClientGone:"""
        deadline = asyncio.get_running_loop().time() + seconds
        while (left := deadline - asyncio.get_running_loop().time()) > 0:
            self._check()
            await asyncio.sleep(min(left, 0.05))
        self._check()

    def streams(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The connection itself, for the protocol that takes over."""
        self.status = 101
        return self._reader, self._writer

    def abort(self) -> None:
        """Reset the connection in the middle of the response: an upstream that dies."""
        transport = self._writer.transport
        transport.abort()
        raise ClientGone("aborted by script")

    def _check(self) -> None:
        if self._reader.at_eof() or self._writer.is_closing():
            raise ClientGone("client closed")

    async def _write(self, event: Any) -> None:
        self._check()
        raw = self._connection.send(event)
        if raw:
            self._writer.write(raw)
            await self._writer.drain()


class Framed(Response):
    """The same over HTTP/2: written as HTTP/1.1 to what frames it."""

    def __init__(self, method: str, reader: asyncio.StreamReader, stream: Any) -> None:
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(f"{method} / HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        connection.next_event()  # the request
        connection.next_event()  # its end
        super().__init__(connection, reader, stream)


App = Callable[[Request, Response], Awaitable[None]]


@dataclass
class HttpServer:
    """Serves `apps[local address]`, or `default`; `log` has every request, `connections` each TLS name."""

    apps: dict[str, App]
    default: App
    log: list[dict[str, Any]] = field(default_factory=list)
    connections: list[dict[str, str]] = field(default_factory=list)

    async def listen(self, port: int, tls: ssl.SSLContext | None) -> None:
        await asyncio.start_server(self._serve, ["0.0.0.0", "::"], port, ssl=tls, backlog=1024)

    async def _serve_h2(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, where: dict[str, str]
    ) -> None:
        async def answer(method: str, target: str, headers: dict[str, str], body: bytes, stream: Any) -> None:
            await self._answer(Request(method, target, headers, body, **where), Framed(method, reader, stream))

        await http2.Session(reader, writer, answer, lambda: None).serve()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        tls = writer.get_extra_info("ssl_object")
        where = {
            "local": writer.get_extra_info("sockname")[0],
            "peer": writer.get_extra_info("peername")[0],
            "sni": getattr(tls, "asked_name", "") if tls else "",
        }
        self.connections.append(where)
        if tls is not None and tls.selected_alpn_protocol() == "h2":
            await self._serve_h2(reader, writer, where)
            return
        try:
            while (request := await _read(connection, reader, where)) is not None:
                await self._answer(request, Response(connection, reader, writer))
                if connection.our_state is h11.MUST_CLOSE or connection.our_state is h11.ERROR:
                    break
                connection.start_next_cycle()
        except h11.RemoteProtocolError as error:
            await _refuse(connection, writer, error)
        except (ConnectionError, h11.LocalProtocolError, ssl.SSLError, TimeoutError):
            pass  # the client went away; the log has what it got
        finally:
            writer.close()

    async def _answer(self, request: Request, response: Response) -> None:
        entry: dict[str, Any] = {
            "host": request.host,
            "method": request.method,
            "path": request.path,
            "sni": request.sni,
            "local": request.local,
            "peer": request.peer,
            "version": "HTTP/2" if isinstance(response, Framed) else "HTTP/1.1",
            "body_bytes": len(request.body),
            "complete": False,
        }
        self.log.append(entry)
        try:
            await self.apps.get(request.local, self.default)(request, response)
            entry["complete"] = True
        finally:
            entry |= {"status": response.status, "sent_bytes": response.sent_bytes}


async def _read(connection: h11.Connection, reader: asyncio.StreamReader, where: dict[str, str]) -> Request | None:
    """The next whole request; None at a clean end."""
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(1 << 16))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_BODY_BYTES:
                raise h11.RemoteProtocolError("body too large", error_status_hint=413)
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            headers = {k.decode().lower(): v.decode("latin-1") for k, v in head.headers}
            return Request(head.method.decode(), head.target.decode(), headers, bytes(body), **where)
        else:
            return None


async def _refuse(connection: h11.Connection, writer: asyncio.StreamWriter, error: h11.RemoteProtocolError) -> None:
    if connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
        response = h11.Response(status_code=error.error_status_hint, headers=[("content-length", "0")])
        raw = (connection.send(response) or b"") + (connection.send(h11.EndOfMessage()) or b"")
        writer.write(raw)
        await writer.drain()
