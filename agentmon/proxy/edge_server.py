"""The listeners of a worker: who is a bottle gets a Connection, everybody else is closed."""

from __future__ import annotations

import asyncio
import socket

from mitmproxy.options import Options

from agentmon.proxy.bottles import Bottles
from agentmon.proxy.edge import Hooks
from agentmon.proxy.edge_connection import Connection, peer_of

CONNECTIONS = 4096  # of one bottle to one worker


class Listener:
    def __init__(self, hooks: Hooks, bottles: Bottles, options: Options) -> None:
        self._hooks = hooks
        self._bottles = bottles
        self._options = options
        self._servers: list[asyncio.Server] = []

    async def listen(self, sock: socket.socket, port: int) -> None:
        """Accept on `sock`; `port` says what is spoken there: 443 TLS, 80 plain HTTP."""

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._accept(reader, writer, port)

        self._servers.append(await asyncio.start_server(accept, sock=sock))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        slot = self._bottles.slot_of(peer_of(writer))
        bottle = None if slot is None else self._bottles.at(slot)
        if slot is None or bottle is None:
            writer.transport.abort()
            return
        limit = bottle.view.limits.get("connections", CONNECTIONS)
        if len(self._hooks.connections.get(slot, ())) >= limit:
            writer.transport.abort()
            return
        connection = Connection(reader, writer, self._options, self._hooks, slot, port)
        self._hooks.came(connection)
        await connection.serve()

    def close(self) -> None:
        for server in self._servers:
            server.close()
