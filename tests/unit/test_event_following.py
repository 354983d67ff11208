"""`events` over a real control connection and a real store: readers that sleep, floods, no gap where history ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmon import wire
from agentmon.daemon import following
from agentmon.daemon.connection import Connection
from agentmon.daemon.eventlog import EventLog
from agentmon.events import Event
from agentmon.ledger.events_store import EventsTrouble
from agentmon.wanted import Wanted


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    made = EventLog(str(tmp_path / "events.db"), max_bytes=256 << 20, max_age_s=3600)
    try:
        yield made
    finally:
        made.close()


class Reader:
    """The command line's end of a control connection, and the daemon's, which tells it events."""

    def __init__(self, log: EventLog, **args: Any) -> None:
        theirs, self._sock = socket.socketpair()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # little hides in the kernel
        self._sock.setblocking(False)
        self._frames = wire.Frames()
        self._heard: list[Any] = []
        self.connection = Connection(theirs)
        self.telling = asyncio.ensure_future(
            following.tell(log, self.connection, wire.Request(1, "events", {"follow": True} | args))
        )
        self._listening = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        async for _ in self.connection.messages():
            pass

    async def read(self) -> Any:
        """The next message's value."""
        while not self._heard:
            data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self._sock, 1 << 16), 20)
            assert data, "the daemon has cut this reader off"
            self._heard += self._frames.feed(data)
        return self._heard.pop(0).value

    async def leave(self) -> None:
        self._sock.close()
        await asyncio.wait_for(self.telling, 20)
        await self._listening
        await self.connection.close()


def numbered(first: int, end: int) -> Iterator[Event]:
    return (Event("connect", "refused", "b", port=n, layer="bpf", reason="default") for n in range(first, end))


def flood(log: EventLog, first: int, end: int) -> None:
    for event in numbered(first, end):
        log.add(event)


async def stored(log: EventLog, first: int, end: int) -> None:
    """At a pace that the store follows."""
    for start in range(first, end, 5_000):
        flood(log, start, min(start + 5_000, end))
        await log.flushed()


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.01)


def test_a_long_history_waits_for_its_reader_who_gets_all_of_it(log: EventLog) -> None:
    async def scenario() -> None:
        await stored(log, 1, 25_001)
        sleeper = Reader(log, follow=False)
        await until(lambda: sleeper.connection.waiting)  # its socket is full
        other = Reader(log, follow=False, since_ns=0)  # meanwhile another one is served to its end
        assert [(await other.read())["port"] for _ in range(25_000)] == list(range(1, 25_001))
        assert await other.read() == {"lost": 0}
        assert 0 < sleeper.connection.waiting <= following.PAGE
        assert [(await sleeper.read())["port"] for _ in range(25_000)] == list(range(1, 25_001))
        assert await sleeper.read() == {"lost": 0}
        await sleeper.leave()
        await other.leave()

    asyncio.run(scenario())


def test_a_follower_who_sleeps_through_a_flood_is_told_what_it_missed_and_goes_on(log: EventLog) -> None:
    async def scenario() -> None:
        log.add(next(numbered(1, 2)))
        sleeper, other = Reader(log), Reader(log, bottle="quiet")
        assert (await sleeper.read())["port"] == 1
        await until(lambda: len(log.followers) == 2)
        flood(log, 2, 15_001)
        log.add(Event("policy", bottle="quiet"))
        assert (await other.read())["kind"] == "policy"
        assert sleeper.connection.waiting <= following.ROOM + 1
        got = 1
        while (event := await sleeper.read())["kind"] == "connect":
            got += 1
            assert event["port"] == got
        assert (event["kind"], event["layer"], got + event["count"]) == ("lost", "daemon", 15_001)  # the policy's too
        flood(log, 15_001, 15_002)
        assert (await sleeper.read())["port"] == 15_001
        await sleeper.leave()
        await other.leave()
        assert not log.followers

    asyncio.run(scenario())


def test_what_comes_follows_history_without_a_gap_or_a_double(log: EventLog) -> None:
    """Events come all the time, while the reader is between the two."""

    async def scenario() -> None:
        await stored(log, 1, 5_001)
        last, got = 5_000, 0

        async def come() -> None:
            nonlocal last
            while True:
                if last - got < following.ROOM:
                    flood(log, last + 1, last + 4)
                    last += 3
                await asyncio.sleep(0)

        coming = asyncio.ensure_future(come())
        reader = Reader(log)
        end = 100_000
        while got < end:
            got += 1
            assert (await reader.read())["port"] == got
            if log.followers and end == 100_000:
                end = last + 1_000
        coming.cancel()
        await reader.leave()

    asyncio.run(scenario())


def test_a_reader_that_leaves_in_the_middle_ends_its_telling(log: EventLog) -> None:
    async def scenario() -> None:
        await stored(log, 1, 10_001)
        reader = Reader(log)
        await until(lambda: reader.connection.waiting)
        await reader.leave()
        assert not log.followers

    asyncio.run(scenario())


def test_a_store_that_cannot_be_read_is_an_error_and_no_silence(log: EventLog, tmp_path: Path) -> None:
    async def scenario() -> None:
        await log.flushed()
        for file in tmp_path.glob("events.db*"):
            file.unlink()
        reader = Reader(log)
        with pytest.raises(EventsTrouble, match=r"events\.db"):
            await asyncio.wait_for(reader.telling, 20)
        with contextlib.suppress(EventsTrouble):
            await reader.leave()

    asyncio.run(scenario())


def test_a_writer_that_does_not_answer_is_an_error_and_no_silence(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmon.daemon.eventlog._FLUSH_S", 0.05)
    log.close()
    with pytest.raises(EventsTrouble, match="events are not written"):
        asyncio.run(log.flushed())


EVENT = {"kind": "dns", "bottle": "b", "verdict": "refused", "layer": "resolver", "host": "a.x.example", "dst": "::1"}


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        ({}, True),
        ({"bottle": "b", "kind": "dns", "verdict": "refused", "layer": "resolver", "host": "a.x.example"}, True),
        ({"bottle": "c"}, False),
        ({"kind": "connect"}, False),
        ({"verdict": "allowed"}, False),
        ({"layer": "bpf"}, False),
        ({"host": "x.example"}, False),
        ({"host": "*.x.example"}, True),
        ({"host": "*.a.x.example"}, False),
        ({"host": "::1"}, True),
    ],
)
def test_what_is_wanted(asked: dict[str, str], fits: bool) -> None:
    assert Wanted.of(asked | {"follow": True})(EVENT) is fits
