"""The authoritative server for every name of world.py, over UDP and TCP; counts what it is asked."""

from __future__ import annotations

import asyncio
from collections import Counter

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from tests.internet import world

_CNAME_DEPTH = 8


class DnsServer:
    """`queries` counts by "name TYPE transport"."""

    def __init__(self) -> None:
        self.queries: Counter[str] = Counter()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        for address in world.DNS:
            await loop.create_datagram_endpoint(lambda: _Udp(self), local_addr=(address, 53))
            await asyncio.start_server(self._tcp, address, 53)

    def answer(self, wire: bytes, transport: str) -> bytes | None:
        """The response to one query; None where the name is silent or the query no query."""
        try:
            query = dns.message.from_wire(wire)
        except dns.exception.DNSException:
            return None
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        self.queries[f"{name} {dns.rdatatype.to_text(question.rdtype)} {transport}"] += 1
        entry = world.lookup(name)
        if entry is not None and entry.fault == "silent":
            return None
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA
        if entry is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif entry.fault == "servfail":
            response.set_rcode(dns.rcode.SERVFAIL)
        else:
            _fill(response, question.name, entry, question.rdtype)
        limit = 65535 if transport == "tcp" else max(512, query.payload if query.edns >= 0 else 512)
        try:
            return response.to_wire(max_size=limit)
        except dns.exception.TooBig:
            truncated = dns.message.make_response(query)
            truncated.flags |= dns.flags.TC
            return truncated.to_wire()

    async def _tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(2), "big")
                reply = self.answer(await reader.readexactly(size), "tcp")
                if reply is not None:
                    writer.write(len(reply).to_bytes(2, "big") + reply)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def _fill(response: dns.message.Message, owner: dns.name.Name, entry: world.Name, rdtype: int) -> None:
    for _ in range(_CNAME_DEPTH):
        if not entry.cname:
            break
        target = dns.name.from_text(entry.cname)
        response.answer.append(dns.rrset.from_text(owner, entry.ttl, "IN", "CNAME", target.to_text()))
        found = world.lookup(entry.cname)
        if found is None:
            return
        owner, entry = target, found
    family = {dns.rdatatype.A: False, dns.rdatatype.AAAA: True}.get(dns.rdatatype.RdataType(rdtype))
    addresses = [a for a in entry.addresses if family is not None and (":" in a) == family]
    if addresses:
        response.answer.append(dns.rrset.from_text(owner, entry.ttl, "IN", dns.rdatatype.to_text(rdtype), *addresses))


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        reply = self._server.answer(data, "udp")
        if reply is not None:
            self._transport.sendto(reply, address)  # type: ignore[attr-defined]
