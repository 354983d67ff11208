"""Old usage becomes sums: no report changes by it, nothing else may delete, nothing is lost when it is cut short."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmon import wire
from agentmon.ledger import retention
from agentmon.ledger.book import Sweep
from agentmon.ledger.reader import BY, Reader
from agentmon.ledger.state import Now
from agentmon.ledger.store import LedgerTrouble, Store
from tests.support.ledger_book import Book
from tests.support.ledger_rig import HOUR_NS, ROOT, START, A, LedgerProcess, Peer, scope, until, usage
from tests.support.ledger_rig import budget as of

DAY_NS = 24 * HOUR_NS


def at(hours: float) -> Now:
    return Now(START.wall_ns + int(hours * HOUR_NS), START.boot_ns + int(hours * HOUR_NS))


def history(path: Path, hours: list[int], url: str = "") -> Book:
    """A row after each of so many hours: two bottles, three providers, estimates and their corrections."""
    book = Book(path, url)
    for slot in (1, 2):
        book.open(slot, scope("agent", f"a{slot}"), scope("parent", "p", of("*", 1 << 40, "month")))
    for n, hour in enumerate(hours):
        book.now = at(hour)
        slot, provider = 1 + n % 2, ("claude", "codex", "gemini")[n % 3]
        hold = book.reserve(slot, 10, 20, f"k{n}", provider)
        if n % 4 == 0:
            book.all([(Sweep(frozenset({A})), A)])
        row = wire.Usage(
            provider, f"m{n % 2}", f"r{n}", n, cache_read=100 + n, cache_write_5m=1, output=3 * n, reasoning=n,
            complete=n % 5 > 0,
        )  # fmt: skip
        book.ask(wire.Settle, hold.hold, row)
    return book


def reports(path: str) -> dict[str, Any]:
    with Reader(path) as reader:
        assert reader.check() == []
        found: dict[str, Any] = {by: reader.usage(by) for by in BY}
        return found | {run: reader.usage_of_run(run) for run in ("run1", "run2")} | {"budgets": reader.budgets()}


def counts(book: Book) -> tuple[int, int]:
    """(rows, sums)"""
    ((rows, sums),) = book.reads("SELECT (SELECT count(*) FROM usage), (SELECT count(*) FROM usage_folded)")
    return rows, sums


@given(
    hours=st.lists(st.integers(0, 24 * 40), min_size=1, max_size=40),
    cut=st.integers(-24, 24 * 45),
    rows=st.integers(1, 9),
)
@settings(max_examples=40, deadline=None)
def test_no_report_changes(hours: list[int], cut: int, rows: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        book = history(Path(directory), sorted(hours))
        before = reports(book.path)
        db = book.store._db
        assert db is not None
        limit, had = at(cut).wall_ns, counts(book)[0]
        while True:
            db.execute("BEGIN IMMEDIATE")
            done = retention.fold(db, limit, rows)
            db.execute("COMMIT")
            assert done <= rows
            if not done:
                break
        left = book.reads("SELECT ts_ns FROM usage ORDER BY id")
        assert reports(book.path) == before
        assert len(left) >= 1 and all(ts >= limit for (ts,) in left[:-1])
        assert (had == len(left)) == (counts(book)[1] == 0)
        assert book.spend(1, 5, "after").duplicate is False
        book.store.close()


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    """Twelve rows with their corrections, three of them recent."""
    book = history(tmp_path, [0, 1, 2, 3, 30, 31, 32, 60, 61, 1000, 1001, 1002])
    yield book
    book.store.close()


def test_days_are_whole_and_the_rest_stays_as_rows(book: Book) -> None:
    limit = retention.before(at(1003).wall_ns, 30 * 86400)
    assert datetime.fromtimestamp(limit / 1e9).time() == datetime.min.time()
    before = reports(book.path)
    assert book.store.fold(limit) == 12
    assert book.store.fold(limit) == 0
    assert counts(book)[0] == 3 and counts(book)[1] > 0
    assert reports(book.path) == before
    with Reader(book.path) as reader:
        assert {row["bottle"] for row in reader.export("folded")} == {"b1", "b2"}
        assert sum(row["rows"] for row in reader.export("folded")) == 12


def test_a_day_of_23_hours_begins_at_its_midnight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        noon_after = datetime(2026, 3, 30, 12).timestamp()
        limit = retention.before(int(noon_after) * 10**9, 86400)
        assert datetime.fromtimestamp(limit / 1e9) == datetime(2026, 3, 29)
        assert datetime(2026, 3, 30).timestamp() - limit / 1e9 == 23 * 3600
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_newest_row_stays_so_that_no_id_is_given_twice(book: Book) -> None:
    far = at(10**6).wall_ns
    while book.store.fold(far):
        pass
    ((kept,),) = book.reads("SELECT id FROM usage")
    book.spend(1, 1, "next")
    assert [id for (id,) in book.reads("SELECT id FROM usage ORDER BY id")] == [kept, kept + 1]


def test_a_row_from_the_future_holds_back_those_after_it(tmp_path: Path) -> None:
    book = history(tmp_path, [1, 5000, 2, 3])
    assert book.store.fold(at(100).wall_ns) == 2  # the first and its correction
    assert book.store.fold(at(100).wall_ns) == 0
    book.store.close()


FORGED = [
    "DELETE FROM usage WHERE id = 1",
    "UPDATE meta SET value = 3 WHERE name = 'folded'",
    "UPDATE OR REPLACE meta SET name = 'folded', value = 3 WHERE name = 'next_hold'",
    "UPDATE meta SET name = 'was' WHERE name = 'folded'",
    "INSERT OR REPLACE INTO meta VALUES ('folded', 3)",
    "DELETE FROM meta WHERE name = 'folded'",
    # sums that leave something out
    """INSERT INTO usage_folded SELECT NULL, 3, 'd', 1, run_id, provider, model, source, complete, 1, input, cache_read,
       cache_write_5m, cache_write_1h, 0, reasoning, weighted, 0, 0, 0 FROM usage WHERE id <= 3;
       UPDATE meta SET value = 3 WHERE name = 'folded'""",
]
AFTER_A_FOLD = [
    "UPDATE usage_folded SET weighted = 0",
    "DELETE FROM usage_folded",
    """INSERT OR REPLACE INTO usage_folded SELECT id, upto, day, ts_ns, run_id, provider, model, source, complete,
       "rows", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 FROM usage_folded""",
    "UPDATE meta SET value = 0 WHERE name = 'folded'",
    "UPDATE meta SET value = 14 WHERE name = 'folded'",
    "DELETE FROM usage",
]


@pytest.mark.parametrize("sql", [*FORGED, *AFTER_A_FOLD])
def test_nothing_else_makes_a_row_go(book: Book, sql: str) -> None:
    if sql in AFTER_A_FOLD:
        assert book.store.fold(at(100).wall_ns)
    before = book.reads("SELECT * FROM usage"), book.reads("SELECT * FROM usage_folded")
    db = apsw.Connection(book.path)
    db.execute("BEGIN")
    with pytest.raises(apsw.ConstraintError, match="append-only"):
        db.execute(sql)
    db.execute("ROLLBACK")
    db.close()
    assert (book.reads("SELECT * FROM usage"), book.reads("SELECT * FROM usage_folded")) == before


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("DROP TRIGGER meta_folded; UPDATE meta SET value = 3 WHERE name = 'folded'", "3 rows of usage are counted in"),
        ("DROP TRIGGER meta_delete; DELETE FROM meta WHERE name = 'folded'", "does not say how far usage was folded"),
    ],
)
def test_check_finds_rows_that_are_counted_twice(book: Book, sql: str, said: str) -> None:
    db = apsw.Connection(book.path)
    db.execute(sql)
    db.close()
    with Reader(book.path) as reader:
        assert any(said in problem for problem in reader.check())


def test_a_fold_that_fails_leaves_every_row(book: Book) -> None:
    before, had = reports(book.path), counts(book)
    book.store.close()
    failing: list[apsw.Error] = [apsw.FullError("full")]

    def alter() -> None:
        if failing:
            raise failing.pop()

    store = Store(book.path, alter=alter)
    with pytest.raises(LedgerTrouble, match="the disk is full"):
        store.fold(at(100).wall_ns)
    assert reports(book.path) == before and counts(book) == had
    assert store.fold(at(100).wall_ns)
    assert reports(book.path) == before
    other = apsw.Connection(book.path)
    other.execute("BEGIN IMMEDIATE")
    locked = Store(book.path, busy_ms=1)
    with pytest.raises(LedgerTrouble, match="locked"):
        locked.fold(at(10**6).wall_ns)
    other.close()
    assert locked.fold(at(10**6).wall_ns)
    store.close()
    locked.close()


def test_killed_in_the_middle_of_a_fold(book: Book) -> None:
    before, had = reports(book.path), counts(book)
    book.store.close()
    code = f"""
import os, signal
from agentmon.ledger.store import Store
Store({book.path!r}, alter=lambda: os.kill(os.getpid(), signal.SIGKILL)).fold({at(100).wall_ns})
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert reports(book.path) == before and counts(book) == had


def test_the_ledger_folds_by_itself_while_it_settles(tmp_path: Path) -> None:
    process = LedgerProcess(tmp_path, usage_age_s=3600)
    book = history(tmp_path / "db", list(range(300)))  # START lies in the past
    book.store.close()
    with Reader(process.path) as reader:
        before = reader.usage("model")
    try:
        process.start()
        daemon = Peer(process.socket)
        daemon.ask(wire.OpenRun, 9, "now", "now", "", (), {})
        settled = 0

        def all_folded() -> bool:
            nonlocal settled
            settled += 1
            hold = daemon.ask(wire.Reserve, 9, "claude", "m", 1, 1, f"n{settled}")
            assert not daemon.ask(wire.Settle, hold.hold, usage(1, 0, f"n{settled}")).duplicate
            return bool(book.reads("SELECT max(upto) > 300 FROM usage_folded")[0][0])

        until(all_folded, "hundreds of old rows are sums")
        daemon.close()
    finally:
        process.close()
    with Reader(book.path) as reader:
        assert reader.check() == []
        after = {line["model"]: line for line in reader.usage("model")}
        assert after.pop("model")["requests"] == settled
        assert list(after.values()) == before
