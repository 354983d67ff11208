"""Hosts that share a ledger: one budget for all of them, cuts that reach each, and the database away, hung, killed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmon import wire
from agentmon.ledger.client import LedgerClient
from agentmon.ledger.postgres import Database
from tests.support.budget_race import request
from tests.support.ledger_rig import LedgerProcess, Peer, budget, scope, until, usage
from tests.support.postgres_rig import Server

HOSTS = 8
CALLS = 6  # at once, of each host
POOL = 1000
Hosts = list[LedgerProcess]


def start(directory: Path, url: str, count: int, **config: Any) -> Hosts:
    """Ledgers of so many hosts: each its own process, directory, outbox."""
    made = []
    for number in range(count):
        place = directory / f"host{number}"
        place.mkdir()
        made.append(LedgerProcess(place, database={"url": url}, **config).start(ready=False))
    for process in made:
        until(process._listening, f"a ledger on {process.socket}: {process.said()}")
    return made


@pytest.fixture
def hosts(tmp_path: Path, postgres: Server) -> Iterator[Callable[..., Hosts]]:
    made: Hosts = []

    def start_some(count: int, url: str = "", **config: Any) -> Hosts:
        made.extend(start(tmp_path, url or postgres.new(), count, **config))
        return made

    yield start_some
    for process in made:
        process.close()


@pytest.fixture
def own_server() -> Iterator[Server]:
    """One that a test may kill: the others' stays."""
    server = Server()
    yield server
    with contextlib.suppress(ProcessLookupError):
        server.send(signal.SIGCONT)
    server.close()


def opened(process: LedgerProcess, run: str, tokens: int = POOL, per: str = "month") -> Peer:
    """The daemon of a host, with a bottle that the budget of all hosts governs."""
    daemon = Peer(process.socket)
    shared = scope("host", "host", budget("claude", tokens, per))
    done = daemon.ask(wire.OpenRun, 1, "b1", run, "", (scope("bottle", run), shared), {})
    assert isinstance(done, wire.Done), done
    return daemon


def line(daemon: Peer) -> dict[str, Any]:
    return next(line for line in daemon.ask(wire.Totals, 1).value if line["scope"] == "host")


def reserve(daemon: Peer, key: str, tokens: int = 20) -> Any:
    return daemon.ask(wire.Reserve, 1, "claude", "m", 0, tokens, key)


def test_eight_hosts_and_one_budget_with_one_of_them_killed_while_holding(hosts: Callable[..., Hosts]) -> None:
    """Used is at most the budget and what settlements exceeded their holds. The killed host's holds are charged by the
    others once nobody has heard of it for as long as a hold may live."""
    some = hosts(HOSTS, hold_ns=6 * 10**9)
    daemons = [opened(process, f"run{n}") for n, process in enumerate(some)]
    for n in range(2):
        assert isinstance(reserve(daemons[0], f"dead{n}", 100), wire.Granted)
    some[0].kill()

    async def race() -> list[Any]:
        clients = [LedgerClient(process.socket) for process in some[1:]]
        calls = [request(c, 1, f"{n}.{k}", k) for n, c in enumerate(clients) for k in range(CALLS)]
        random.shuffle(calls)
        found = await asyncio.gather(*calls)
        for client in clients:
            await client.close()
        return list(found)

    found = asyncio.run(asyncio.wait_for(race(), 150))
    above = sum(each for each in found if isinstance(each, int))
    refusals = [each for each in found if isinstance(each, dict)]
    until(lambda: line(daemons[1])["held"] == 0, "the killed host's holds are charged")
    used = line(daemons[1])["used"]
    assert POOL <= used <= POOL + above, (used, above)
    assert refusals and not [r for r in refusals if "held" in r]
    assert {line(daemon)["used"] for daemon in daemons[1:]} == {used}
    with some[1].reader() as reader:
        assert reader.check() == []
        rows = reader.rows()
    assert sum(row["weighted"] for row in rows) == used
    assert len([row for row in rows if row["source"] == "estimate"]) == 2
    raised = daemons[2].ask(wire.SetBudget, "host", "host", "", budget("claude", 5000, "month"), 0)
    assert isinstance(raised, wire.Done)
    assert isinstance(reserve(daemons[5], "after", 500), wire.Granted)
    for daemon in daemons:
        daemon.close()


def test_a_cut_reaches_the_other_hosts(hosts: Callable[..., Hosts], capsys: pytest.CaptureFixture[str]) -> None:
    """From the commit on one host to the word to the daemon of another; how long it took is printed, not asserted."""
    one, other = hosts(2)
    spender, hearer = opened(one, "run0", 100), opened(other, "run1", 100)
    took_ms = []
    for n in range(1, 11):
        hold = reserve(spender, f"k{n}")
        assert isinstance(hold, wire.Granted), hold
        spender.unasked.clear()
        assert spender.ask(wire.Settle, hold.hold, usage(100, request_id=f"r{n}")).crossed
        cut = next(c for c in spender.hear(1) if c.threshold == 100)
        heard = hearer.hear(n)[n - 1]
        assert (heard.slots, heard.scope, heard.used, heard.threshold) == ((1,), "host", 100 * n, 100), heard
        took_ms.append((heard.at_ns - cut.at_ns) / 1e6)
        raised = spender.ask(wire.SetBudget, "host", "host", "", budget("claude", 100 * (n + 1), "month"), 0)
        assert isinstance(raised, wire.Done)
        assert isinstance(reserve(hearer, f"free{n}", 1), wire.Granted | wire.Denied)
        until(lambda: line(hearer)["tokens"] == 100 * (n + 1), "the other host has the new budget")  # noqa: B023
        for free in [h for h in [reserve(hearer, f"free{n}", 1)] if isinstance(h, wire.Granted)]:
            hearer.ask(wire.Release, free.hold)
    with capsys.disabled():
        print(f"\n  a cut reached the other host after {statistics.median(took_ms):.1f} ms, {max(took_ms):.1f} at most")
    spender.close()
    hearer.close()


def test_the_database_away_what_is_reserved_is_spent_and_settled_once_when_it_is_back(
    hosts: Callable[..., Hosts], own_server: Server
) -> None:
    """The ledger itself is killed in the outage, too."""
    (host,) = hosts(1, own_server.new())
    daemon = opened(host, "run0")
    held = [reserve(daemon, f"k{n}") for n in range(3)]
    own_server.end()
    refused = reserve(daemon, "new")
    assert (refused.error, bool(refused.hint)) == ("unavailable", True), refused
    assert "PostgreSQL database ledger1 at" in refused.message
    assert isinstance(daemon.ask(wire.Settle, held[0].hold, usage(7, request_id="r0")), wire.Settled)
    assert isinstance(daemon.ask(wire.Release, held[2].hold), wire.Done)
    assert isinstance(daemon.ask(wire.Audit, 0, "cut", "b1", {}), wire.Done)
    daemon.close()
    host.kill()
    host.start()
    daemon = opened(host, "run0")  # as a daemon tells a ledger that has come back
    assert isinstance(daemon.ask(wire.Settle, held[1].hold, usage(9, request_id="r1")), wire.Settled)
    assert isinstance(daemon.ask(wire.Settle, held[1].hold, usage(9, request_id="r1")), wire.Settled)
    assert daemon.ask(wire.Totals, 1).error == "unavailable"
    own_server.start()
    until(lambda: isinstance(reserve(daemon, "new"), wire.Granted), f"it goes on: {host.said()}")
    assert (line(daemon)["used"], line(daemon)["held"]) == (16, 20)
    with host.reader() as reader:
        assert [(row["request_id"], row["weighted"]) for row in reader.rows()] == [("r0", 7), ("r1", 9)]
        assert len(reader.audit()) == 1
        assert reader.check() == []
    assert host.said().count("recording again") == 1, host.said()
    daemon.close()


def test_a_server_that_hangs_is_away_until_it_goes_on(hosts: Callable[..., Hosts], own_server: Server) -> None:
    """Nothing of TCP or libpq notices a stopped process."""
    (host,) = hosts(1, own_server.new())
    daemon = opened(host, "run0")
    held = reserve(daemon, "k")
    own_server.send(signal.SIGSTOP)
    began = time.monotonic()
    refused = reserve(daemon, "new")
    assert refused.error == "unavailable" and time.monotonic() - began < 18, refused
    assert isinstance(daemon.ask(wire.Settle, held.hold, usage(7, request_id="r0")), wire.Settled)
    own_server.send(signal.SIGCONT)
    until(lambda: isinstance(reserve(daemon, "new"), wire.Granted), f"it goes on: {host.said()}")
    assert line(daemon)["used"] == 7
    daemon.close()


def test_a_host_that_stops_in_its_turn_loses_it(hosts: Callable[..., Hosts], postgres: Server) -> None:
    url = postgres.new()
    (host,) = hosts(1, url)
    daemon = opened(host, "run0")
    with contextlib.closing(Database(url).connect()) as stopped:
        stopped.execute(b"BEGIN; UPDATE turn SET turn = turn + 1")
        assert isinstance(reserve(daemon, "k"), wire.Granted)
    daemon.close()


def test_a_server_that_is_killed_again_and_again_while_hosts_settle(
    hosts: Callable[..., Hosts], own_server: Server
) -> None:
    """Whenever it was: every settlement that was answered is there, once."""
    url = own_server.new()
    some = hosts(2, url)
    daemons = [opened(process, f"run{n}", 1 << 40) for n, process in enumerate(some)]
    settled: set[str] = set()

    async def settle(process: LedgerProcess, name: str, done: asyncio.Event) -> None:
        client, number = LedgerClient(process.socket), 0
        while not done.is_set():
            number += 1
            try:
                hold = await client.reserve(1, "claude", "m", input=1, output=1, key=f"{name}{number}")
            except Exception:  # noqa: BLE001 - away: asked again
                await asyncio.sleep(0.02)
                continue
            assert isinstance(hold, wire.Granted), hold
            await client.settle(hold.hold, usage(number, request_id=f"{name}{number}"))
            settled.add(f"{name}{number}")
        await client.close()

    async def body() -> None:
        done = asyncio.Event()
        tasks = [asyncio.create_task(settle(p, f"h{n}.", done)) for n, p in enumerate(some)]
        for _ in range(3):
            before = len(settled)
            while len(settled) < before + 20:
                await asyncio.sleep(0.01)
            await asyncio.sleep(random.random() * 0.05)
            await asyncio.to_thread(own_server.end)
            await asyncio.to_thread(own_server.start)
        done.set()
        await asyncio.gather(*tasks)

    asyncio.run(asyncio.wait_for(body(), 120))
    for daemon in daemons:
        until(lambda: isinstance(daemon.ask(wire.Totals, 1), wire.Done), "it answers")  # noqa: B023
    for n, daemon in enumerate(daemons):
        daemon.ask(wire.CloseRun, 1, f"run{n}")
        daemon.close()
    with some[0].stored() as reader:
        assert reader.check() == []
        rows = [row for row in reader.rows() if row["source"] == "wire"]
    assert {row["request_id"] for row in rows} >= settled and len(rows) == len({row["request_id"] for row in rows})
    assert all(row["weighted"] == int(row["request_id"].split(".")[1]) for row in rows)
