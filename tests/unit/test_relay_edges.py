"""dial.py, pump.py, server.py on loopback: losers are closed, back-pressure holds, errors end a flow."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from ipaddress import IPv4Network
from typing import Any

import pytest

from agentmon.addresses import Pool
from agentmon.relay import dial as dial_module
from agentmon.relay.dial import dial
from agentmon.relay.pump import Pump
from agentmon.relay.server import Server


def listener(address: str = "127.0.0.1", port: int = 0, backlog: int = 8) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    sock.listen(backlog)
    return sock


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def full(address: str, port: int) -> list[socket.socket]:
    """A listener whose backlog is full: a connect to it gets no answer."""
    sock = listener(address, port, 0)
    fill = []
    for _ in range(3):
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex((address, port))
        fill.append(one)
    return [sock, *fill]


def test_the_first_address_that_answers_wins() -> None:
    async def body() -> None:
        with listener("127.0.0.3") as good:
            port = good.getsockname()[1]
            held = full("127.0.0.2", port)
            before = descriptors()
            sock = await dial(["127.0.0.1", "127.0.0.2", "127.0.0.3"], port)  # refused, silent, good
            assert sock.getpeername() == ("127.0.0.3", port)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert not sock.getblocking()
            sock.close()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert descriptors() == before
            for one in held:
                one.close()

    asyncio.run(asyncio.wait_for(body(), 10))


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial_module, "ATTEMPT_S", 0.2)

    async def body() -> None:
        with listener() as taken:
            port = taken.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            await dial(["127.0.0.1"], port)
        with pytest.raises(OSError, match="no address"):
            await dial([], 443)
        held = full("127.0.0.2", port)
        with pytest.raises(TimeoutError):
            await dial(["127.0.0.2"], port)
        for one in held:
            one.close()

    asyncio.run(asyncio.wait_for(body(), 10))


def test_a_dial_that_is_given_up_leaves_nothing() -> None:
    async def body() -> None:
        with listener("127.0.0.3") as reserved:
            port = reserved.getsockname()[1]
        held = full("127.0.0.2", port)
        before = descriptors()
        task = asyncio.ensure_future(dial(["127.0.0.2"], port))
        while descriptors() == before:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while descriptors() > before:
            await asyncio.sleep(0.01)
        for one in held:
            one.close()

    asyncio.run(asyncio.wait_for(body(), 10))


def pumped() -> tuple[socket.socket, socket.socket, socket.socket, socket.socket]:
    """(writer, source, sink, reader), all non-blocking."""
    writer, source = socket.socketpair()
    sink, reader = socket.socketpair()
    for sock in (writer, source, sink, reader):
        sock.setblocking(False)
    return writer, source, sink, reader


def test_pump_keeps_what_the_sink_does_not_take_and_stops_reading() -> None:
    async def body() -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[OSError | None] = loop.create_future()
        writer, source, sink, reader = pumped()
        pump = Pump(loop, source, sink, ended.set_result)
        pump.start()
        data = os.urandom(4 << 20)
        sending = asyncio.ensure_future(loop.sock_sendall(writer, data))
        moved = -1
        while moved != pump.moved_bytes:  # until the reader's buffer is full
            moved = pump.moved_bytes
            await asyncio.sleep(0.05)
        assert 0 < moved < len(data)
        assert not sending.done()
        got = bytearray()
        while len(got) < len(data):
            got += await loop.sock_recv(reader, 1 << 20)
        await sending
        assert got == data
        writer.close()
        assert await ended is None
        assert await loop.sock_recv(reader, 1) == b""
        assert pump.moved_bytes == len(data)
        for sock in (source, sink, reader):
            sock.close()

    asyncio.run(asyncio.wait_for(body(), 20))


@pytest.mark.parametrize("how", ["at once", "while it is blocked", "at its end"])
def test_pump_reports_a_broken_sink(how: str) -> None:
    async def body() -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[OSError | None] = loop.create_future()
        writer, source, sink, reader = pumped()
        pump = Pump(loop, source, sink, ended.set_result)
        pump.start()
        if how == "at once":
            reader.close()
            writer.send(b"x")
        elif how == "at its end":
            sink.shutdown(socket.SHUT_RDWR)
            sink.close()
            sink = socket.socket()  # not connected: cannot be shut down
            pump._sink = sink
            writer.close()
        else:
            moved = -1
            while moved != pump.moved_bytes:
                moved = pump.moved_bytes
                with contextlib.suppress(BlockingIOError):
                    writer.send(bytes(1 << 20))
                await asyncio.sleep(0.02)
            reader.close()
        assert isinstance(await ended, OSError)
        for sock in (writer, source, sink, reader):
            sock.close()

    asyncio.run(asyncio.wait_for(body(), 20))


def test_pump_reports_a_source_that_was_reset() -> None:
    async def body() -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[OSError | None] = loop.create_future()
        with listener() as listening:
            client = socket.create_connection(listening.getsockname())
            source, _ = listening.accept()
        source.setblocking(False)
        sink, reader = socket.socketpair()
        pump = Pump(loop, source, sink, ended.set_result)
        pump.start()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        assert isinstance(await ended, ConnectionResetError)
        for sock in (source, sink, reader):
            sock.close()

    asyncio.run(asyncio.wait_for(body(), 20))


class Taken:
    """Collects what the server hands over."""

    def __init__(self) -> None:
        self.got: list[tuple[socket.socket, int]] = []

    def accept(self, client: socket.socket, slot: int, port: int) -> None:
        assert port == client.getpeername()[1]
        self.got.append((client, slot))


def test_server_names_the_bottle_and_survives_a_lack_of_descriptors() -> None:
    async def body() -> None:
        flows: Any = Taken()
        with listener("127.213.0.3") as listening:
            listening.setblocking(False)
            Server(flows, Pool(IPv4Network("127.213.0.0/16"), None)).serve([listening])
            clients = [socket.socket() for _ in range(3)]
            for client, source in zip(clients, ("127.213.0.16", "127.213.0.20", "127.0.0.1"), strict=True):
                client.setblocking(False)
                client.bind((source, 0))
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            most = max(int(fd) for fd in os.listdir("/proc/self/fd")) + 1
            plug = []
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            try:
                while True:
                    try:
                        plug.append(os.open("/dev/null", os.O_RDONLY))
                    except OSError:
                        break
                for client in clients:
                    client.connect_ex(listening.getsockname())
                await asyncio.sleep(0.05)
                assert flows.got == []
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                for fd in plug:
                    os.close(fd)
            while len(flows.got) < 2:
                await asyncio.sleep(0.01)
            assert sorted(slot for _, slot in flows.got) == [16, 20]
            assert await asyncio.get_running_loop().sock_recv(clients[2], 1) == b""
            asyncio.get_running_loop().remove_reader(listening)
            for sock in (*clients, *(client for client, _ in flows.got)):
                sock.close()

    asyncio.run(asyncio.wait_for(body(), 20))
