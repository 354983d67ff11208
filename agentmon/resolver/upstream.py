"""Asks upstream servers: UDP from a fresh port with a random id, TCP when the answer was cut short.

The socket is connected, so the kernel drops what does not come from the server asked; id and question must
match as well. What fails is skipped: a forged datagram costs nothing but its reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Mapping, Sequence

import dns.exception
import dns.flags
import dns.message
import dns.rdatatype

from agentmon.resolver.chain import Chain, Unusable, follow

Server = tuple[str, int]

ATTEMPT_S = 1.2
ROUNDS = 2
MAX_IN_FLIGHT = 256
_PAYLOAD = 1232


class Upstream:
    """`servers` for every name but those below one of `suffixes`, whose own servers are asked instead (split DNS; the
    longest suffix wins). `sent` counts packets and connections, for tests and posture."""

    def __init__(self, servers: Sequence[Server], suffixes: Mapping[str, Sequence[Server]]) -> None:
        self._servers = list(servers)
        self._suffixes = {k.strip(".").lower(): list(v) for k, v in suffixes.items()}
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
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
        async with self._slots:
            for server in list(servers) * ROUNDS:
                try:
                    return follow(await self._ask(server, name, rdtype), name, rdtype)
                except TimeoutError as e:
                    failed = e
                except (OSError, Unusable, dns.exception.DNSException, EOFError) as e:
                    failed = failed if isinstance(failed, TimeoutError) else Unusable(f"{server[0]}: {e}")
                if servers[0] == server:  # the next question starts at another server
                    servers.append(servers.pop(0))
        raise failed

    async def _ask(self, server: Server, name: str, rdtype: int) -> dns.message.Message:
        query = dns.message.make_query(name, dns.rdatatype.RdataType.make(rdtype), use_edns=0, payload=_PAYLOAD)
        query.id = secrets.randbits(16)
        async with asyncio.timeout(ATTEMPT_S):
            response = await self._udp(server, query)
            if response.flags & dns.flags.TC:
                response = await self._tcp(server, query)
        return response

    async def _udp(self, server: Server, query: dns.message.Message) -> dns.message.Message:
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.connect(server)
            self.sent += 1
            await loop.sock_sendall(sock, query.to_wire())
            while True:
                data = await loop.sock_recv(sock, 65535)
                with contextlib.suppress(dns.exception.DNSException, ValueError):
                    response = dns.message.from_wire(data, ignore_trailing=True, raise_on_truncation=False)
                    if query.is_response(response):
                        return response

    async def _tcp(self, server: Server, query: dns.message.Message) -> dns.message.Message:
        self.sent += 1
        reader, writer = await asyncio.open_connection(*server)
        try:
            wire = query.to_wire()
            writer.write(len(wire).to_bytes(2, "big") + wire)
            length = int.from_bytes(await reader.readexactly(2), "big")
            response = dns.message.from_wire(await reader.readexactly(length), ignore_trailing=True)
        except ValueError as e:
            raise Unusable(str(e)) from e
        finally:
            writer.close()
        if not query.is_response(response):
            raise Unusable("an answer to another question over TCP")
        return response
