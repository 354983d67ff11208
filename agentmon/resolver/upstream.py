"""Asks upstream servers: UDP from a fresh port with a random id and case, TCP when the answer was cut short.

The socket is connected, so the kernel drops what does not come from the server asked; id and question must match
letter by letter. What does not is skipped: a forged datagram costs nothing but its reading. A response that matches
but for the letters' case is either a careless server's or a good guess: the question is asked again over TCP, which
cannot be guessed into. Over TLS (tls.py) the certificate says who answers.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from agentmon.resolver import records
from agentmon.resolver.chain import Chain, Unusable, follow
from agentmon.resolver.records import Malformed, Match, Question
from agentmon.resolver.tls import TlsServer

ATTEMPT_S = 1.2
ROUNDS = 2
TOTAL_S = 4.0  # with turns.PATIENCE_S less than the 5 s after which a stub asks again


class Server(NamedTuple):
    """`tls`: asked over TLS, with a certificate for this name or address; "": over UDP and TCP."""

    address: str
    port: int
    tls: str = ""


class Upstream:
    """`servers` for every name but those below one of `suffixes`, whose own servers are asked instead (split DNS; the
    longest suffix wins). `tls` is needed where a server has a name for it. `sent` counts packets and connections."""

    def __init__(
        self,
        servers: Sequence[Server],
        suffixes: Mapping[str, Sequence[Server]],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        every = {*servers, *(server for some in suffixes.values() for server in some)}
        self._over_tls = {s: TlsServer(*s, tls) for s in every if s.tls and tls is not None}
        self._servers = list(servers)
        self._suffixes = {k.strip(".").lower(): list(v) for k, v in suffixes.items()}
        self.sent = 0

    def servers_for(self, name: str) -> list[Server]:
        rest = name
        while rest:
            if rest in self._suffixes:
                return self._suffixes[rest]
            _, _, rest = rest.partition(".")
        return self._servers

    async def ask(self, name: str, rdtype: int) -> Chain:
        """What the first server that knows says about `name`.

        :raises TimeoutError: no server answered. :raises Unusable: none gave a usable answer.
        """
        servers = self.servers_for(name)
        failed: Exception = Unusable("no upstream DNS server is configured")
        loop = asyncio.get_running_loop()
        end = loop.time() + TOTAL_S
        for server in list(servers) * ROUNDS:
            try:
                async with asyncio.timeout_at(min(end, loop.time() + ATTEMPT_S)):
                    return await self._ask(server, records.question(name, rdtype))
            except TimeoutError as e:
                failed = e
            except (OSError, Unusable, Malformed, EOFError) as e:
                failed = failed if isinstance(failed, TimeoutError) else Unusable(f"{server.address}: {e}")
            if servers[0] == server:  # the next question starts at another server
                servers.append(servers.pop(0))
            if loop.time() >= end:
                break
        raise failed

    async def _ask(self, server: Server, asked: Question) -> Chain:
        if server.tls:
            data: bytes | None = await self._over_tls[server].ask(asked)
        else:
            data = await self._udp(server, asked)
        if data is None:
            data = await self._tcp(server, asked)
        return follow(records.read(data, asked), asked)

    async def _udp(self, server: Server, asked: Question) -> bytes | None:
        """The response; None: it is to be asked for over TCP."""
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in server.address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.connect((server.address, server.port))
            self.sent += 1
            sock.send(asked.wire)
            while True:
                data = await loop.sock_recv(sock, 65535)
                matches = records.match(data, asked)
                if matches is not Match.NO:
                    return data if matches is Match.YES and not records.truncated(data) else None

    async def _tcp(self, server: Server, asked: Question) -> bytes:
        self.sent += 1
        reader, writer = await asyncio.open_connection(server.address, server.port)
        try:
            writer.write(len(asked.wire).to_bytes(2, "big") + asked.wire)
            data = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        finally:
            writer.close()
        if records.match(data, asked) is Match.NO:
            raise Unusable("an answer to another question over TCP")
        return data
