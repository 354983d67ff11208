"""DNS over TLS (RFC 7858): one connection a server, kept, questions under way side by side; whatever fails closes it.

The certificate must be valid for the name that the settings give, or for the server's address: there is no
opportunistic mode. There is no way back to plain DNS either: a server that cannot be verified answers nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from agentmon.resolver import records
from agentmon.resolver.records import Match, Question

CONNECT_S = 5.0  # one attempt may take longer than a question waits: the next question finds the connection made


def context(extra: Sequence[str]) -> ssl.SSLContext:
    """The system's authorities and those in the PEM files `extra`. :raises OSError: a file cannot be read."""
    made = ssl.create_default_context()
    for file in extra:
        made.load_verify_locations(file)
    made.set_alpn_protocols(["dot"])
    return made


@dataclass(slots=True, eq=False)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    waiting: dict[bytes, tuple[Question, asyncio.Future[bytes]]] = field(default_factory=dict)
    heard: int = 0  # messages

    def fail(self, error: Exception) -> None:
        self.writer.transport.abort()
        for _, future in self.waiting.values():
            if not future.done():
                future.set_exception(error)
        self.waiting.clear()


class TlsServer:
    """:param name: what its certificate must be valid for: a host name, or the address itself."""

    def __init__(self, address: str, port: int, name: str, tls: ssl.SSLContext) -> None:
        self._where = (address, port)
        self._name = name
        self._tls = tls
        self._connection: _Connection | None = None
        self._connecting: asyncio.Task[_Connection] | None = None
        self._reading: set[asyncio.Task[None]] = set()
        self.connections = 0  # made so far

    async def ask(self, asked: Question) -> bytes:
        """The response's bytes. :raises OSError, EOFError: no connection, none that can be trusted, or it ended."""
        connection = self._connection
        if connection is None:
            connection = await asyncio.shield(self._connect())
        while asked.wire[:2] in connection.waiting:
            asked = replace(asked, wire=secrets.token_bytes(2) + asked.wire[2:])
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        connection.waiting[asked.wire[:2]] = (asked, future)
        heard = connection.heard
        connection.writer.write(len(asked.wire).to_bytes(2, "big") + asked.wire)
        try:
            return await future
        except (
            asyncio.CancelledError
        ):  # the caller's patience is over; a connection that said nothing meanwhile is dead
            if connection.heard == heard:
                self._drop(connection, TimeoutError("nothing was heard"))
            raise
        finally:
            connection.waiting.pop(asked.wire[:2], None)

    def _connect(self) -> asyncio.Task[_Connection]:
        if self._connecting is None:
            self._connecting = asyncio.ensure_future(self._open())
            self._connecting.add_done_callback(self._connected)
        return self._connecting

    def _connected(self, task: asyncio.Task[_Connection]) -> None:
        self._connecting = None
        if not task.cancelled() and task.exception() is None:
            self._connection = connection = task.result()
            reading = asyncio.ensure_future(self._read(connection))
            self._reading.add(reading)
            reading.add_done_callback(self._reading.discard)

    async def _open(self) -> _Connection:
        self.connections += 1
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(*self._where, ssl=self._tls, server_hostname=self._name)
        return _Connection(reader, writer)

    async def _read(self, connection: _Connection) -> None:
        error: Exception = EOFError("the server closed the connection")
        with contextlib.suppress(EOFError):
            try:
                while True:
                    length = int.from_bytes(await connection.reader.readexactly(2), "big")
                    data = await connection.reader.readexactly(length)
                    connection.heard += 1
                    asked, future = connection.waiting.get(data[:2], (None, None))
                    if asked is None or future is None or future.done():
                        continue  # what nobody waits for any more
                    if records.match(data, asked) is Match.NO:
                        error = OSError("an answer to another question over TLS")
                        break
                    future.set_result(data)
            except OSError as e:
                error = e
        self._drop(connection, error)

    def _drop(self, connection: _Connection, error: Exception) -> None:
        if self._connection is connection:
            self._connection = None
        connection.fail(error)
