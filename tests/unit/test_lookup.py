"""lookup.py: one connection, made again when the resolver was restarted; refusals by name."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from agentmon import wire
from agentmon.channel import Channel
from agentmon.lookup import LookupRefused, Lookups


class Resolver:
    """The other end: answers what `say` says; counts connections."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connections = 0
        self.say = lambda q: wire.Looked(q.id, ("203.0.113.1",), 30)
        self.channels: list[Channel] = []
        self._tasks: list[Any] = []

    async def start(self) -> asyncio.AbstractServer:
        self.path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(self.path))
        return await asyncio.start_unix_server(self._serve, sock=sock)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        channel = Channel(reader, writer)
        self.channels.append(channel)
        async for message in channel.messages():
            answer = self.say(message)
            if answer is not None:
                channel.send(answer)


def test_lookups(tmp_path: Path) -> None:
    async def body() -> None:
        resolver = Resolver(tmp_path / "s")
        server = await resolver.start()
        lookups = Lookups(str(tmp_path / "s"), 0.2)
        results = await asyncio.gather(*(lookups.lookup(16, f"h{i}.example", 443) for i in range(20)))
        assert results == [["203.0.113.1"]] * 20
        assert resolver.connections == 1

        for say, reason in (
            (lambda q: wire.Looked(q.id, error="denied"), "denied"),
            (lambda q: wire.Looked(q.id), "servfail"),
            (lambda q: None, "timeout"),
        ):
            resolver.say = say
            with pytest.raises(LookupRefused) as refused:
                await lookups.lookup(16, "x.example", 443)
            assert refused.value.reason == reason

        resolver.say = lambda q: wire.Looked(q.id, ("203.0.113.2",), 30)
        resolver.channels[0].close()  # the resolver was restarted
        assert await lookups.lookup(16, "x.example", 443) == ["203.0.113.2"]
        assert resolver.connections == 2

        def hang_up(question: wire.Lookup) -> None:
            resolver.channels[-1].close()

        resolver.say = hang_up
        with pytest.raises(LookupRefused, match="unavailable"):
            await lookups.lookup(16, "x.example", 443)
        server.close()
        (tmp_path / "s").unlink(missing_ok=True)
        with pytest.raises(LookupRefused, match="unavailable"):
            await lookups.lookup(16, "x.example", 443)
        await lookups.close()

    asyncio.run(asyncio.wait_for(body(), 20))


def test_close_before_use(tmp_path: Path) -> None:
    asyncio.run(Lookups(str(tmp_path / "s")).close())
