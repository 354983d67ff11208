"""Where packets end that ask for no web page: the echo of the open hosts and the sink of the forbidden ones.

The sink answers, so that a leak succeeds for who tries it; bytes are counted in the kernel before that (links.py).
"""

from __future__ import annotations

import asyncio

from tests.internet import world


async def start() -> None:
    loop = asyncio.get_running_loop()
    for port in (world.ECHO_PORT, world.SINK_PORT):
        await asyncio.start_server(_echo, ["0.0.0.0", "::"], port)
        for pair in (world.WEB, world.DIRECT) if port == world.ECHO_PORT else (world.DNS,):
            for address in pair:
                await loop.create_datagram_endpoint(_EchoUdp, local_addr=(address, port))


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


class _EchoUdp(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        self._transport.sendto(data, address)  # type: ignore[attr-defined]
