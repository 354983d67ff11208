"""The resolver's sockets: UDP and TCP on port 53 of each address. Who asks is known by the source address."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, cast

from agentmon.addresses import Pool
from agentmon.resolver.desk import Desk
from agentmon.resolver.shares import Shares
from agentmon.service import listen_tcp

PORT = 53
MAX_TASKS, MAX_TASKS_EACH = 2048, 128  # datagrams that wait for upstream or the daemon, of all bottles and of one
RESERVED, FEW = 512, 8
MAX_CONNECTIONS = 8  # TCP, of one bottle
MAX_TCP_BYTES = 4096  # of a query
IDLE_S = 10.0
_RCVBUF = 4 << 20


def listen_udp(address: str, port: int = PORT) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RCVBUF)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((address, port))
    return sock


class Server:
    """Sockets are given bound; serve() returns once they are read."""

    def __init__(self, desk: Desk, pool: Pool) -> None:
        self._desk = desk
        self._pool = pool
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = Shares(MAX_TASKS, MAX_TASKS_EACH, reserved=RESERVED, few=FEW)
        self._connections: Counter[int] = Counter()

    async def serve(self, sockets: list[socket.socket]) -> None:
        for sock in sockets:
            if sock.type == socket.SOCK_DGRAM:
                await asyncio.get_running_loop().create_datagram_endpoint(lambda: _Udp(self), sock=sock)
            else:
                await asyncio.start_server(self._tcp, sock=sock, limit=MAX_TCP_BYTES)

    def slot_of(self, source: str) -> int | None:
        return self._pool.slot_of(ip_address(source.partition("%")[0]))

    def datagram(self, data: bytes, source: Any, send: Callable[[bytes, Any], None]) -> None:
        slot = self.slot_of(source[0])
        if slot is None:
            return
        result = self._desk.answer(data, slot, udp=True, port=source[1])
        if isinstance(result, bytes):
            send(result, source)
        elif result is not None:
            if not self._waiting.take(slot):
                result.close()
                return

            async def later() -> None:
                try:
                    send(await result, source)
                finally:
                    self._waiting.give(slot)

            task = asyncio.ensure_future(later())
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.result()  # a bug shows in the log

    async def _tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        slot = self.slot_of(writer.get_extra_info("peername")[0])
        try:
            if slot is None or self._connections[slot] >= MAX_CONNECTIONS:
                return
            self._connections[slot] += 1
            try:
                with contextlib.suppress(TimeoutError, EOFError, OSError):
                    await self._conversation(reader, writer, slot, writer.get_extra_info("peername")[1])
            finally:
                self._connections[slot] -= 1
        finally:
            writer.close()

    async def _conversation(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, slot: int, port: int
    ) -> None:
        while True:
            async with asyncio.timeout(IDLE_S):
                length = int.from_bytes(await reader.readexactly(2), "big")
                if length > MAX_TCP_BYTES:
                    return
                data = await reader.readexactly(length)
            result = self._desk.answer(data, slot, udp=False, port=port)
            reply = result if isinstance(result, bytes) or result is None else await result
            if reply is None:
                return
            writer.write(len(reply).to_bytes(2, "big") + reply)
            async with asyncio.timeout(IDLE_S):
                await writer.drain()


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # before 3.12 it is not one by class

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if self._transport is not None:
            self._server.datagram(data, addr, self._transport.sendto)


def listen(addresses: list[str], port: int = PORT) -> list[socket.socket]:
    """UDP and TCP on each address. Needs CAP_NET_BIND_SERVICE."""
    out = []
    for address in addresses:
        out += [listen_udp(address, port), listen_tcp(address, port)]
    return out
