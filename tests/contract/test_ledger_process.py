"""The ledger as its peers meet it: a real process, a real socket."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agentmon import errors, wire
from agentmon.ledger.client import LedgerClient, LedgerUnavailable
from agentmon.ledger.reader import Reader
from agentmon.ledger.state import Now
from tests.support.ledger_rig import ROOT, A, LedgerProcess, Peer, budget, database, ledger, scope, until, usage
from tests.support.rounds import rounds


@pytest.fixture
def process(tmp_path: Path, ledger_url: str) -> Iterator[LedgerProcess]:
    with ledger(tmp_path, **database(ledger_url)) as process:
        yield process


@pytest.fixture
def filed(tmp_path: Path) -> Iterator[LedgerProcess]:
    """Of a file, for what a database does in other ways."""
    with ledger(tmp_path) as process:
        yield process


@pytest.fixture
def daemon(process: LedgerProcess) -> Iterator[Peer]:
    peer = Peer(process.socket)
    yield peer
    peer.close()


def in_loop(body: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(body(), 60))


def open_run(daemon: Peer, *scopes: wire.ScopeDef, slot: int = 1) -> None:
    assert isinstance(daemon.ask(wire.OpenRun, slot, f"b{slot}", f"run{slot}", "", scopes, {}), wire.Done)


def test_the_daemon_hears_of_a_crossing_before_the_answer_and_another_one_when_it_connects(
    process: LedgerProcess, daemon: Peer
) -> None:
    open_run(daemon, scope("bottle", "b1", budget("claude", 100)))
    hold = daemon.ask(wire.Reserve, 1, "claude", "m", 10, 10, "k")
    before = time.monotonic_ns()
    settled = daemon.ask(wire.Settle, hold.hold, usage(90, 30, "msg"))
    assert settled.crossed
    (crossed,) = daemon.unasked
    assert (crossed.slots, crossed.used, crossed.threshold) == ((1,), 120, 100)
    assert before < crossed.at_ns < time.monotonic_ns()
    second = Peer(process.socket)
    assert second.hear(1)[0].slots == (1,)
    second.close()


def test_client_and_daemon_see_the_same_numbers(process: LedgerProcess, daemon: Peer) -> None:
    open_run(daemon, scope("bottle", "b1", budget("claude", 1000)))

    async def proxy() -> None:
        client = LedgerClient(process.socket)
        granted = await client.reserve(1, "claude", "m", input=100, output=200, key="a")
        assert isinstance(granted, wire.Granted)
        assert await client.progress(granted.hold, usage(100, 50)) is False
        assert not (await client.settle(granted.hold, usage(100, 150, "msg"))).crossed
        assert (await client.settle(granted.hold, usage(100, 150, "msg"))).duplicate
        other = await client.reserve(1, "claude", "m", input=100, output=200, key="b")
        assert isinstance(other, wire.Granted)
        await client.release(other.hold)
        with pytest.raises(errors.Refused, match="no open run"):
            await client.reserve(7, "claude", "m", input=1, output=1, key="c")
        (line,) = await client.totals(1)
        assert (line["used"], line["held"], line["remaining"]) == (250, 0, 750)
        await client.close()

    in_loop(proxy)
    assert daemon.ask(wire.Totals, 1).value[0]["used"] == 250


def test_fifty_parallel_requests_and_room_for_ten_with_a_worker_killed_while_holding(
    process: LedgerProcess, daemon: Peer
) -> None:
    """Three workers; two settle exactly what they held, the third dies: used ≤ budget, nothing stays held."""
    open_run(daemon, scope("bottle", "b1", budget("claude", 1000)))
    code = f"""
import asyncio, sys
from agentmon.ledger.client import LedgerClient
async def main():
    client = LedgerClient({process.socket!r})
    got = [await client.reserve(1, "claude", "m", input=50, output=50, key=f"dead{{i}}") for i in range(3)]
    print(sum(getattr(g, "tokens", 0) for g in got), flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    dead = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert dead.stdout is not None
    assert dead.stdout.readline() == "300\n"

    async def workers() -> list[Any]:
        clients = [LedgerClient(process.socket) for _ in range(2)]

        async def request(n: int) -> Any:
            answer = await clients[n % 2].reserve(1, "claude", "m", input=50, output=50, key=f"r{n}")
            if isinstance(answer, wire.Granted):
                await asyncio.sleep(0)
                return await clients[n % 2].settle(answer.hold, usage(50, answer.tokens - 50, f"msg{n}"))
            return answer

        answers = await asyncio.gather(*[request(n) for n in range(50)])
        for client in clients:
            await client.close()
        return answers

    answers = in_loop(workers)
    dead.kill()
    dead.wait(20)
    dead.stdout.close()
    assert sum(isinstance(a, wire.Settled) for a in answers) == 7
    until(lambda: daemon.ask(wire.Totals, 1).value[0]["held"] == 0, "the dead worker's holds settled")
    (line,) = daemon.ask(wire.Totals, 1).value
    assert line["used"] == 1000
    with process.reader() as reader:
        assert sorted(row["source"] for row in reader.rows()) == ["estimate"] * 3 + ["wire"] * 7
        assert reader.check() == []


def test_no_phantom_refusal_after_holds_are_gone(daemon: Peer) -> None:
    open_run(daemon, scope("bottle", "b1", budget("claude", 100)))
    hold = daemon.ask(wire.Reserve, 1, "claude", "m", 0, 100, "a")
    denied = daemon.ask(wire.Reserve, 1, "claude", "m", 0, 500, "b")
    assert (denied.used, denied.held, denied.waits) == (0, 100, True)
    daemon.ask(wire.Settle, hold.hold, usage(0, 10, "msg"))
    assert daemon.ask(wire.Reserve, 1, "claude", "m", 0, 500, "b").tokens == 90


def test_a_restart_is_not_seen_by_the_proxy(process: LedgerProcess, daemon: Peer) -> None:
    open_run(daemon, scope("bottle", "b1", budget("claude", 1000)))

    async def proxy() -> None:
        client = LedgerClient(process.socket)
        one = await client.reserve(1, "claude", "m", input=10, output=10, key="a")
        assert isinstance(one, wire.Granted)
        await asyncio.to_thread(process.kill)
        await asyncio.to_thread(process.start, ready=False)
        again = await client.reserve(1, "claude", "m", input=10, output=10, key="a")
        assert again == wire.Granted(again.id, one.hold, one.tokens)
        assert not (await client.settle(one.hold, usage(10, 5, "msg"))).duplicate
        await client.close()

    in_loop(proxy)
    with process.reader() as reader:
        assert [row["weighted"] for row in reader.rows()] == [15]


def test_holds_of_a_worker_that_died_with_the_ledger_are_settled_without_being_asked(
    process: LedgerProcess, daemon: Peer
) -> None:
    open_run(daemon)
    code = f"""
from agentmon import wire
from tests.support.ledger_rig import Peer
print(Peer({process.socket!r}).ask(wire.Reserve, 1, "claude", "m", 50, 50, "k").tokens)
"""
    worker = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert worker.stdout == "100\n"
    process.kill()
    process.start(ready=False)

    def rows() -> list[str]:
        with process.stored() as reader:
            return [row["source"] for row in reader.rows()]

    until(lambda: rows() == ["estimate"], "the dead worker's hold settled")


def test_nobody_listens(tmp_path: Path) -> None:
    async def proxy() -> None:
        client = LedgerClient(str(tmp_path / "none.sock"), timeout_s=0.2, settle_s=0.2)
        with pytest.raises(LedgerUnavailable, match="does not answer"):
            await client.reserve(1, "claude", "m", input=1, output=1, key="a")
        with pytest.raises(LedgerUnavailable):
            await client.settle(1, usage(1))
        await client.close()

    in_loop(proxy)


def test_a_hold_that_was_granted_too_late_is_given_back(process: LedgerProcess, daemon: Peer) -> None:
    open_run(daemon, scope("bottle", "b1", budget("claude", 1000)))
    assert process.process is not None
    ledger = process.process

    async def proxy() -> None:
        client = LedgerClient(process.socket, timeout_s=0.3)
        kept = await client.reserve(1, "claude", "m", input=0, output=50, key="kept")
        assert isinstance(kept, wire.Granted)
        ledger.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(LedgerUnavailable, match="does not answer"):
                await client.reserve(1, "claude", "m", input=0, output=400, key="late")
        finally:
            ledger.send_signal(signal.SIGCONT)
        end = time.monotonic() + 20
        while (await client.totals(1))[0]["held"] != 50:
            assert time.monotonic() < end, "what nobody was told of is still held"
            await asyncio.sleep(0.02)
        assert isinstance(await client.reserve(1, "claude", "m", input=0, output=950, key="next"), wire.Granted)
        await client.close()

    in_loop(proxy)
    with process.reader() as reader:
        assert reader.rows() == []


def test_a_peer_that_speaks_something_else_is_cut_off_and_others_go_on(process: LedgerProcess, daemon: Peer) -> None:
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00\x02\xc1\xc1"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(process.socket)
            sock.sendall(noise)
            try:
                while sock.recv(4096):
                    pass
            except ConnectionResetError:
                pass
    open_run(daemon)


def test_a_message_of_the_wrong_direction_is_refused(daemon: Peer) -> None:
    assert daemon.ask(wire.Granted, 1, 1).error == "Refused"


def test_a_peer_that_reads_nothing_is_not_read_for_ever(process: LedgerProcess, daemon: Peer) -> None:
    """It stops being served when its answers pile up; the others do not notice."""
    open_run(daemon)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(process.socket)
        sock.setblocking(False)
        data = wire.encode(wire.Totals(1, 1)) * 1000
        stuck = 0
        end = time.monotonic() + 20
        while stuck < 50 and time.monotonic() < end:
            try:
                sock.send(data)
                stuck = 0
            except BlockingIOError:
                stuck += 1
                daemon.ask(wire.Totals, 1)
        assert stuck == 50


def test_sigterm_records_what_was_asked_and_a_second_ledger_is_kept_out(process: LedgerProcess, tmp_path: Path) -> None:
    daemon = Peer(process.socket)
    open_run(daemon)
    second = subprocess.run(
        [sys.executable, "-m", "agentmon.ledger", str(second_config(process, tmp_path))],
        cwd=ROOT, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert second.returncode == 1
    assert "another ledger is working in" in second.stderr and "hint: " in second.stderr
    assert isinstance(daemon.ask(wire.Reserve, 1, "claude", "m", 1, 1, "a"), wire.Granted)
    assert process.stop() == 0
    assert "Traceback" not in process.said()
    assert not Path(process.path + "-wal").exists()
    daemon.close()


def second_config(process: LedgerProcess, tmp_path: Path) -> Path:
    other = tmp_path / "second.json"
    other.write_text(process.config.read_text().replace("{", '{"lock_wait_s": 0.1, ', 1))
    return other


def test_started_by_hand_and_without_a_directory(tmp_path: Path) -> None:
    run = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 30}
    bare = subprocess.run([sys.executable, "-m", "agentmon.ledger"], **run)
    assert bare.returncode == 2 and "started by the agentmon daemon" in bare.stderr
    config = tmp_path / "c.json"
    config.write_text(f'{{"socket": "{tmp_path}/s", "path": "{tmp_path}/none/l.db"}}')
    none = subprocess.run([sys.executable, "-m", "agentmon.ledger", str(config)], **run)
    assert none.returncode == 4 and "No such file" in none.stderr


def test_hour_day_week_and_month_end_while_many_settle(
    tmp_path: Path, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger whose clock is set to half an hour, then a second before the end of a month that ends with a Sunday. No
    row is lost between the windows, none is in both, and what was spent in the old ones is free in the new ones."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    end_ns = int(datetime(2026, 5, 31, 22, tzinfo=UTC).timestamp()) * 10**9
    ahead = tmp_path / "ahead"

    def set_clock(to_ns: int) -> int:
        offset = to_ns - time.time_ns()
        (tmp_path / "new").write_text(str(offset))
        (tmp_path / "new").rename(ahead)
        return offset

    set_clock(end_ns - 1800 * 10**9)
    clock = f"import time, pathlib; real, ahead = time.time_ns, pathlib.Path({str(ahead)!r})"
    told = "time.time_ns = lambda: real() + int(ahead.read_text())"
    process = LedgerProcess(tmp_path, **database(ledger_url))
    run = "import runpy; runpy.run_module('agentmon.ledger', None, '__main__')"
    process.command = [sys.executable, "-c", f"{clock}; {told}; {run}"]
    periods = ("hour", "day", "week", "month")
    try:
        daemon = Peer(process.start().socket)
        limits = [budget("codex", 5, per) for per in periods]
        open_run(daemon, scope("host", "host", budget("claude", 1 << 40), *limits))
        spent = daemon.ask(wire.Reserve, 1, "codex", "m", 5, 0, "spent")
        daemon.ask(wire.Settle, spent.hold, usage(5, 0, "spent", provider="codex"))
        assert isinstance(daemon.ask(wire.Reserve, 1, "codex", "m", 1, 0, "refused"), wire.Denied)
        offset_ns = set_clock(end_ns - 10**9)

        def settle(worker: int) -> int:
            peer, count = Peer(process.socket), 0
            while time.time_ns() + offset_ns < end_ns + 2 * 10**8:
                count += 1
                hold = peer.ask(wire.Reserve, 1, "claude", "m", 1, 1, f"{worker}.{count}")
                assert not peer.ask(wire.Settle, hold.hold, usage(worker, 1, f"{worker}.{count}")).duplicate
            peer.close()
            return count

        with ThreadPoolExecutor(4) as pool:
            counts = list(pool.map(settle, range(1, 5)))
        assert isinstance(daemon.ask(wire.Reserve, 1, "codex", "m", 1, 0, "in the new ones"), wire.Granted)
        daemon.close()
    finally:
        process.close()
    with process.reader() as reader:
        rows = [row for row in reader.rows() if row["provider"] == "claude"]
        assert reader.check() == []
        sums = reader.dicts(
            "SELECT per, used FROM totals WHERE (scope, provider) = ('host', 'claude') ORDER BY \"window\"", ()
        )
    assert len(rows) == sum(counts)
    before = sum(row["weighted"] for row in rows if row["ts_ns"] < end_ns)
    after = sum(row["weighted"] for row in rows if row["ts_ns"] >= end_ns)
    for per in periods:
        assert [line["used"] for line in sums if line["per"] == per] == [before, after] and before and after, per


def _old_rows(process: LedgerProcess, count: int) -> dict[str, Any]:
    """Rows of a year ago; returns what `usage` says of them."""
    store, now = process.store(), Now(time.time_ns() - 366 * 86400 * 10**9, 1)
    store.run([(wire.OpenRun(1, 9, "old", "old", "", (), {}), A)], now)
    holds = store.run([(wire.Reserve(n, 9, "claude", "m", 1, 1, str(n)), A) for n in range(count)], now).answers
    settled = [(wire.Settle(1, hold.hold, usage(n, 1, f"old{n}")), A) for n, hold in enumerate(holds)]
    store.run(settled, now)
    store.close()
    with process.reader() as reader:
        return reader.usage()[0]


def test_a_copy_made_while_others_settle_is_one_moment(filed: LedgerProcess, tmp_path: Path) -> None:
    process, daemon = filed, Peer(filed.socket)
    open_run(daemon, scope("parent", "p", budget("*", 1 << 40, "day")))
    done = threading.Event()

    def settle(worker: int) -> None:
        peer, n = Peer(process.socket), 0
        while not done.is_set():
            n += 1
            hold = peer.ask(wire.Reserve, 1, "claude", "m", 1, 1, f"{worker}.{n}")
            peer.ask(wire.Settle, hold.hold, usage(n, 1, f"{worker}.{n}"))
        peer.close()

    seen = [0]
    with ThreadPoolExecutor(2) as pool:
        working = [pool.submit(settle, worker) for worker in range(2)]
        try:
            for number in range(8):
                copy = str(tmp_path / f"copy{number}")
                until(lambda: daemon.ask(wire.Totals, 1).value[0]["used"] > seen[-1], "others settle")
                with Reader(process.path) as reader:
                    reader.backup(copy)
                with Reader(copy) as reader:
                    assert reader.check() == []
                    seen.append(sum(line["weighted"] for line in reader.usage()))
        finally:
            done.set()
        for worker in working:
            worker.result(20)
    assert sorted(seen) == seen and seen[1] and seen[-1] > seen[1]
    daemon.close()


def test_kill_nine_at_any_moment_loses_nothing_and_counts_nothing_twice(tmp_path: Path, ledger_url: str) -> None:
    """Rounds of: settle as fast as it goes, SIGKILL at a random moment, start again; meanwhile old rows become sums.
    What was answered is there once; what was not is asked again and is there once afterwards; the old stay what they
    were."""
    count, random_s = rounds(10), random.Random()
    process = LedgerProcess(tmp_path, usage_age_s=1, **database(ledger_url))
    old = _old_rows(process, 200 * count)
    process.start()
    owed: dict[int, wire.Usage] = {}
    answered: set[str] = set()
    serial = 0
    try:
        for _ in range(count):
            daemon = Peer(process.socket)
            daemon.ask(wire.OpenRun, 1, "b1", "run1", "", (scope("bottle", "b1", budget("claude", 1 << 40)),), {})
            for hold, row in list(owed.items()):
                assert isinstance(daemon.ask(wire.Settle, hold, row), wire.Settled)
                answered.add(row.request_id)
                del owed[hold]
            killer = threading.Timer(random_s.uniform(0.0, 0.08), process.kill)
            killer.start()
            try:
                while True:
                    serial += 1
                    hold = daemon.ask(wire.Reserve, 1, "claude", "m", 1, 1, f"k{serial}")
                    owed[hold.hold] = usage(serial, 0, f"msg{serial}")
                    daemon.ask(wire.Settle, hold.hold, owed[hold.hold])
                    answered.add(owed.pop(hold.hold).request_id)
            except ConnectionError:
                daemon.close()
            killer.join()
            process.start()
        daemon = Peer(process.socket)
        for hold, row in owed.items():
            assert isinstance(daemon.ask(wire.Settle, hold, row), wire.Settled)
            answered.add(row.request_id)
        daemon.ask(wire.CloseRun, 1, "run1")  # holds whose answer was lost: charged as estimates
        daemon.close()
    finally:
        process.close()
    with process.reader() as reader:
        rows = [row for row in reader.rows() if row["bottle"] == "b1"]
        assert reader.check() == []
        assert {line["bottle"]: line for line in reader.usage()}["old"] == old
        assert next(reader.export("folded"), None) is not None
    wired = [row for row in rows if row["source"] == "wire"]
    assert {row["request_id"] for row in wired} == answered
    assert all(row["weighted"] == int(row["request_id"][3:]) for row in wired)
    assert len(wired) == len(answered) > count
    assert len(rows) - len(wired) <= count
