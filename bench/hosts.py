"""A ledger that hosts share, on a PostgreSQL server that syncs: settles of one host and of eight; how a cut spreads.

All are on this machine's cores, server included: what several machines would do at once, these do in turn.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from agentmon import wire
from bench.figure import Figure, median, quantile, spread
from bench.ledger import _line, _start
from bench.process import Failed, end
from tests.support.ledger_rig import LedgerProcess, Peer, budget, database, scope, until, usage
from tests.support.postgres_rig import Server, programs

HOSTS, WINDOW = 8, 64


def measure(tmp: Path, quick: bool) -> list[Figure]:
    rounds, rows, cuts = (2, 250, 20) if quick else (5, 1000, 100)
    if programs() is None:
        raise Failed("no PostgreSQL server is installed: apt-get install postgresql")
    with contextlib.ExitStack() as stack:
        server = Server(fsync="on")
        stack.callback(server.close)
        file = _host(stack, tmp / "file", "")
        url = server.new()
        hosts = [_host(stack, tmp / f"host{n}", url) for n in range(HOSTS)]
        ones, alls, files, slow, slows = [], [], [], [], []
        for _ in range(rounds):
            files.append(_rate([file], rows))
            ones.append(_rate(hosts[:1], rows))
            alls.append(_rate(hosts, rows))
            slow += _one_by_one(hosts[:1], 100)
            slows += _one_by_one(hosts, 25)
        spreads = _cuts(stack, server.new(), tmp, cuts)
        with hosts[0].reader() as reader:
            problems = reader.check()
    if problems:
        raise Failed(f"the ledger is not in order afterwards: {problems}")
    return [
        Figure(
            "ledger.hosts.settle_per_s", median(alls), "1/s", "", {"one host": median(ones), "file": median(files)},
            {"one host": median(alls) / median(ones), "file": median(alls) / median(files)}, spread(alls),
            note=f"{HOSTS} hosts, a settler each, {WINDOW} settles under way, two scopes; server and hosts share "
            f"{os.cpu_count()} cores",
        ),
        Figure(
            "ledger.hosts.settle.p99_ms", quantile(slows, 0.99), "ms", "", {"one host": quantile(slow, 0.99)}, {},
            spread(slows), note=f"a settle at a time on each of {HOSTS} hosts; p50 {median(slows):.1f}, one host's "
            f"{median(slow):.1f}",
        ),
        Figure(
            "ledger.hosts.cut_p99_ms", quantile(spreads, 0.99), "ms", "<= 200", {}, {}, spread(spreads),
            note=f"{cuts} cuts; from a commit on one host to what another tells its daemon, p50 {median(spreads):.1f}",
        ),
    ]  # fmt: skip


def _host(stack: contextlib.ExitStack, place: Path, url: str) -> LedgerProcess:
    place.mkdir()
    process = LedgerProcess(place, **database(url))
    stack.callback(process.close)
    daemon = Peer(process.start().socket)
    stack.callback(daemon.close)
    scopes = (scope("bottle", "b", budget("claude", 10**15)), scope("host", "host", budget("claude", 10**16, "month")))
    opened = daemon.ask(wire.OpenRun, 1, "b", place.name, "", scopes, {})
    if not isinstance(opened, wire.Done):
        raise Failed(f"the ledger did not open a run: {opened}")
    return process


def _rate(hosts: list[LedgerProcess], rows: int) -> float:
    """Rows a second of all together."""
    with contextlib.ExitStack() as stack:
        clients = [_start(process, 1, rows, WINDOW, 0) for process in hosts]
        for client in clients:
            stack.callback(end, client)
        for client in clients:
            _line(client)
        began = time.perf_counter()
        for client in clients:
            assert client.stdin is not None
            client.stdin.write("go\n")
            client.stdin.flush()
        for client in clients:
            _line(client)
        return len(hosts) * rows / (time.perf_counter() - began)


def _one_by_one(hosts: list[LedgerProcess], count: int) -> list[float]:
    """Milliseconds of settles that the hosts ask for one after the other: each finds that another one has written."""
    peers, took = [Peer(process.socket) for process in hosts], []
    for n in range(count):
        for peer in peers:
            hold = peer.ask(wire.Reserve, 1, "claude", "m", 1, 1, f"o{time.monotonic_ns()}")
            at = time.perf_counter()
            settled = peer.ask(wire.Settle, hold.hold, usage(n, 1))
            took.append((time.perf_counter() - at) * 1000)
            if not isinstance(settled, wire.Settled):
                raise Failed(f"not settled: {settled}")
    for peer in peers:
        peer.close()
    return took


def _cuts(stack: contextlib.ExitStack, url: str, tmp: Path, count: int) -> list[float]:
    """Milliseconds from a crossing's commit on one host to the crossing of the other, which is idle."""
    peers = []
    for name in ("spends", "hears"):
        (tmp / name).mkdir()
        process = LedgerProcess(tmp / name, **database(url))
        stack.callback(process.close)
        peers.append(Peer(process.start().socket))
        stack.callback(peers[-1].close)
        peers[-1].ask(wire.OpenRun, 1, "b", name, "", (scope("host", "host", budget("claude", 100, "month")),), {})
    spends, hears = peers
    took = []
    for n in range(1, count + 1):
        hold = spends.ask(wire.Reserve, 1, "claude", "m", 0, 20, f"k{n}")
        spends.unasked.clear()
        hears.unasked.clear()
        spends.ask(wire.Settle, hold.hold, usage(100, request_id=f"r{n}"))
        told = [next(c for c in peer.hear(1) if c.threshold == 100) for peer in (spends, hears)]
        took.append((told[1].at_ns - told[0].at_ns) / 1e6)
        spends.ask(wire.SetBudget, "host", "host", "", budget("claude", 100 * (n + 1), "month"), 0)
        want = 100 * (n + 1)
        until(lambda: hears.ask(wire.Totals, 1).value[0]["tokens"] == want, "the budget has spread")  # noqa: B023
    return took
