"""The ledger by itself, on a file system that syncs: rows settled by eight processes, one settle among few; events."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path

from agentmon import wire
from agentmon.ledger.reader import Reader
from bench import ledger_history
from bench.figure import Figure, median, quantile, spread
from bench.process import Failed, cpu_ms, end
from ebpf import events
from tests.support.ledger_rig import LedgerProcess, Peer, budget, ledger, scope

SETTLER = Path(__file__).parent / "jobs/settler.py"
CLIENTS, WINDOW = 8, 64
SLOW_RATE = 500


def measure(tmp: Path, quick: bool) -> list[Figure]:
    rounds, rows = (2, 500) if quick else (5, 2000)
    rates: list[float] = []
    busy: list[float] = []
    with ledger(tmp) as process, contextlib.ExitStack() as stack:
        daemon = Peer(process.socket)
        stack.callback(daemon.close)
        for slot in range(1, CLIENTS + 1):
            scopes = (scope("bottle", f"b{slot}", budget("claude", 10**15)), scope("host", "host"))
            opened = daemon.ask(wire.OpenRun, slot, f"b{slot}", f"run{slot}", "", scopes, {})
            if not isinstance(opened, wire.Done):
                raise Failed(f"the ledger did not open a run: {opened}")
        for _ in range(rounds):
            rate, share = _together(process, rows)
            rates.append(rate)
            busy.append(share)
        synced = [_synced_ms(tmp / "synced", SLOW_RATE) for _ in range(rounds)]
        slow = [x for _ in range(rounds) for x in _paced(process, SLOW_RATE)]
        settled = rounds * (CLIENTS * rows + SLOW_RATE)
        with Reader(process.path) as reader:
            total = sum(line["requests"] for line in reader.usage())
    if total != settled:
        raise Failed(f"{total} rows in the ledger, {settled} were settled")
    return [
        Figure(
            "ledger.settle_per_s", median(rates), "1/s", ">= 20000", spread=spread(rates),
            note=f"{CLIENTS} Python processes, {WINDOW} settles each under way, synchronous=FULL, two scopes; "
            f"the ledger had {median(busy):.2f} of a core, clients and ledger share {os.cpu_count()}",
        ),
        Figure(
            "ledger.settle.p99_ms", quantile(slow, 0.99), "ms", "<= 5",
            {"4 KiB write + fdatasync": median(synced)}, {}, spread(slow),
            note=f"one settle, {SLOW_RATE} a second from one process, each a commit of its own; p50 {median(slow):.2f}",
        ),
        _decoding(rounds),
        *ledger_history.measure(tmp / "history", quick),
    ]  # fmt: skip


def _start(process: LedgerProcess, slot: int, *words: int) -> subprocess.Popen[str]:
    argv = [sys.executable, str(SETTLER), process.socket, str(slot), *map(str, words)]
    client = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return client


def _together(process: LedgerProcess, rows: int) -> tuple[float, float]:
    """(rows a second from the first process's start to the last one's end, cores that the ledger had)"""
    assert process.process is not None
    with contextlib.ExitStack() as stack:
        clients = [_start(process, slot, rows, WINDOW, 0) for slot in range(1, CLIENTS + 1)]
        for client in clients:
            stack.callback(end, client)
        for client in clients:
            _line(client)
        cpu, began = cpu_ms(process.process.pid), time.perf_counter()
        for client in clients:
            assert client.stdin is not None
            client.stdin.write("go\n")
            client.stdin.flush()
        for client in clients:
            _line(client)
        took = time.perf_counter() - began
        return CLIENTS * rows / took, (cpu_ms(process.process.pid) - cpu) / (took * 1000)


def _paced(process: LedgerProcess, rate: int) -> list[float]:
    """Milliseconds of each settle of one second."""
    client = _start(process, 1, rate, 1, rate)
    try:
        _line(client)
        assert client.stdin is not None
        client.stdin.write("go\n")
        client.stdin.flush()
        latency: list[float] = json.loads(_line(client))["latency_ms"]
        return latency
    finally:
        end(client)


def _synced_ms(path: Path, rate: int) -> float:
    """p99 of one second of writes that are synced one by one: what the disk allows."""
    took = []
    fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        began = time.perf_counter()
        for n in range(rate):
            time.sleep(max(0.0, began + n / rate - time.perf_counter()))
            at = time.perf_counter()
            os.pwrite(fd, bytes(4096), n * 4096)
            os.fdatasync(fd)
            took.append((time.perf_counter() - at) * 1000)
    finally:
        os.close(fd)
    return quantile(took, 0.99)


def _line(client: subprocess.Popen[str]) -> str:
    assert client.stdout is not None
    line = client.stdout.readline()
    if not line:
        raise Failed("a client of the ledger ended early")
    return line


def _decoding(rounds: int) -> Figure:
    """Records as the ring has them, over 256 destinations and 16 commands."""
    count = 20_000
    fields = struct.Struct(events.RECORD.format)
    records = b"".join(
        fields.pack(
            n, 1, 16, 1, n % 5000, n % 5000, 1000, 0, 1, 443, 6, 1, 1, 1, 2, 1,
            b"\0" * 10 + b"\xff\xff" + ip_address(0xCB007100 + n % 256).packed, b"worker-%02d" % (n % 16),
        )
        for n in range(count)
    )  # fmt: skip
    rates = []
    for _ in range(max(3, rounds)):
        began = time.perf_counter()
        decoded = events.decode(records)
        rates.append(len(decoded) / (time.perf_counter() - began))
    return Figure(
        "events.decode_per_s", median(rates), "1/s", ">= 100000", spread=spread(rates),
        note="ring records to Event values, one core",
    )  # fmt: skip
