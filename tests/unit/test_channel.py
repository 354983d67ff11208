"""channel.py: answers find their question, nobody waits for ever, descriptors travel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentmon import wire
from agentmon.channel import BlockingChannel, Channel, peer_of


@contextlib.asynccontextmanager
async def pair(handler: Any = None) -> AsyncIterator[tuple[Channel, BlockingChannel]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(5)
    channel = Channel(*await asyncio.open_unix_connection(sock=ours), handler)
    other = BlockingChannel(theirs)
    try:
        yield channel, other
    finally:
        channel.close()
        other.close()


def test_answers_find_their_question_in_any_order() -> None:
    async def body() -> None:
        async with pair() as (channel, other):
            reading = asyncio.ensure_future(channel.run())
            calls = [
                asyncio.ensure_future(channel.call(wire.Commit(channel.next_id(), 16, n, (), 1))) for n in ("a", "b")
            ]
            first, second = [await asyncio.to_thread(other.recv) for _ in range(2)]
            other.send(wire.Committed(second.id, reason="b"))
            other.send(wire.Committed(99, reason="nobody asked"))
            other.send(wire.Committed(first.id, reason="a"))
            assert [(await call).reason for call in calls] == ["a", "b"]
            other.close()
            await asyncio.wait_for(reading, 5)

    asyncio.run(body())


def test_the_handler_gets_what_is_unasked_also_with_the_id_of_a_question() -> None:
    async def body() -> None:
        got: list[Any] = []

        async def handler(message: Any) -> None:
            got.append(message)

        async with pair(handler) as (channel, other):
            reading = asyncio.ensure_future(channel.run())
            call = asyncio.ensure_future(channel.call(wire.Commit(1, 16, "a", (), 1)))
            drop = wire.DropBottle(1, 16)  # the peer's own numbering
            other.send(drop)
            other.send(wire.Committed(1))
            assert await call == wire.Committed(1)
            assert got == [drop]
            other.close()
            await reading

    asyncio.run(body())


def test_a_closed_peer_fails_open_and_later_calls() -> None:
    async def body() -> None:
        async with pair() as (channel, other):
            reading = asyncio.ensure_future(channel.run())
            call = asyncio.ensure_future(channel.call(wire.Lookup(1, 16, "a", 443)))
            await asyncio.to_thread(other.recv)
            other.close()
            with pytest.raises(ConnectionError):
                await call
            await reading
            assert channel.closed
            with pytest.raises(ConnectionError):
                await channel.call(wire.Lookup(2, 16, "a", 443))
            channel.send(wire.Ack(1))  # dropped, not an error

    asyncio.run(body())


def test_a_silent_peer_times_out_and_its_late_answer_is_unasked() -> None:
    async def body() -> None:
        got: list[Any] = []

        async def handler(message: Any) -> None:
            got.append(message)

        async with pair(handler) as (channel, other):
            reading = asyncio.ensure_future(channel.run())
            with pytest.raises(TimeoutError):
                await channel.call(wire.Lookup(1, 16, "a", 443), 0.05)
            other.send(wire.Looked(1))
            other.close()
            await reading
            assert got == [wire.Looked(1)]

    asyncio.run(body())


def test_junk_ends_the_channel() -> None:
    async def body() -> None:
        async with pair() as (channel, other):
            other.sock.sendall(b"\xff" * 8)
            with pytest.raises(wire.WireError):
                await channel.run()
            assert channel.closed

    asyncio.run(body())


def test_backlog_is_what_the_peer_has_not_taken() -> None:
    async def body() -> None:
        async with pair() as (channel, _other):
            assert channel.backlog_bytes == 0
            for _ in range(64):
                channel.send(wire.Report({"kind": "x" * 65536}))
            assert channel.backlog_bytes > 1 << 20

    asyncio.run(body())


def test_connect(tmp_path: Path) -> None:
    async def body() -> None:
        with pytest.raises(OSError):
            await Channel.connect(str(tmp_path / "none"))
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        channel = await Channel.connect(str(tmp_path / "s"))
        client, _ = listener.accept()
        assert (channel.peer.pid, channel.peer.uid) == (os.getpid(), os.getuid())
        channel.send(wire.Ack(7))
        await channel.drain()
        assert BlockingChannel(client).recv() == wire.Ack(7)
        for sock in (client, listener):
            sock.close()
        channel.close()

    asyncio.run(body())


def test_peer_of_knows_all_groups() -> None:
    a, b = socket.socketpair()
    with a, b:
        peer = peer_of(a)
        assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.getuid(), os.getgid())
        assert peer.groups == frozenset({os.getgid(), *os.getgroups()})
    with socket.socket(socket.AF_UNIX) as alone:
        assert peer_of(alone).pid == 0
    with socket.socket(socket.AF_INET) as inet:
        assert peer_of(inet).uid == -1


# ── blocking ──


@pytest.fixture
def two() -> Any:
    a, b = socket.socketpair()
    a.settimeout(5)
    b.settimeout(5)
    left, right = BlockingChannel(a), BlockingChannel(b)
    yield left, right
    left.close()
    right.close()


def test_call_skips_what_is_not_the_answer(two: tuple[BlockingChannel, BlockingChannel]) -> None:
    left, right = two

    def answer() -> None:
        question = right.recv()
        right.send(wire.Report({"kind": "x"}))
        right.send(wire.SetBottle(question.id, wire.BottleView(16, "b", "r", "")))
        right.send(wire.Done(question.id + 1))
        right.send(wire.Done(question.id, "yes"))

    thread = threading.Thread(target=answer)
    thread.start()
    assert left.call(wire.Totals(left.next_id(), 16)).value == "yes"
    thread.join()


def test_stream_yields_values_then_the_reply(two: tuple[BlockingChannel, BlockingChannel]) -> None:
    left, right = two
    for message in (wire.Item(9, "other"), wire.Item(1, "a"), wire.Item(1, "b"), wire.Reply(1, value=2)):
        right.send(message)
    assert list(left.stream(wire.Request(1, "events"))) == ["a", "b", wire.Reply(1, value=2)]


def test_descriptors_travel_with_a_large_message(two: tuple[BlockingChannel, BlockingChannel]) -> None:
    left, right = two
    read, write = os.pipe()
    request = wire.Request(1, "run", {"env": "x" * 500_000})
    thread = threading.Thread(target=left.send, args=(request, (read, write)))
    thread.start()
    assert right.recv() == request
    thread.join()
    assert len(right.fds) == 2
    os.write(right.fds[1], b"ok")
    assert os.read(read, 2) == b"ok"
    for fd in (read, write, *right.fds):
        os.close(fd)


def test_recv_says_when_the_peer_is_gone_or_silent(two: tuple[BlockingChannel, BlockingChannel]) -> None:
    left, right = two
    right.send(wire.Ack(1))
    right.send(wire.Ack(2))
    assert left.recv() == wire.Ack(1)
    if not left.pending():
        left.sock.settimeout(5)
    assert left.recv() == wire.Ack(2)
    assert not left.pending()
    left.sock.settimeout(0.05)
    with pytest.raises(TimeoutError):
        left.recv()
    right.close()
    with pytest.raises(ConnectionError):
        left.recv()


def test_blocking_connect(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        BlockingChannel.connect(str(tmp_path / "none"), 1)
