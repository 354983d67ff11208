"""What a request costs the file does not depend on how much history the file has."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw

from agentmon import wire
from agentmon.ledger.book import Sweep
from tests.support.ledger_book import Book
from tests.support.ledger_rig import A, scope, usage
from tests.support.ledger_rig import budget as of

BUDGETS = (of("claude", 1 << 40), of("*", 1 << 40, "day"))
SCOPES = (scope("agent", "a", *BUDGETS), scope("bottle", "b1"), scope("parent", "p", *BUDGETS), scope("host", "host"))
SMALL, LARGE = 20, 4000


class Counted:
    """Virtual machine steps and rows passed over in full scans, of all statements of one store."""

    def __init__(self, db: apsw.Connection) -> None:
        self.steps = self.scanned = 0
        self.sql: set[str] = set()
        db.trace_v2(apsw.SQLITE_TRACE_PROFILE, self._profile)

    def _profile(self, told: dict[str, Any]) -> None:
        self.sql.add(told["sql"])
        self.steps += told["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"]
        self.scanned += told["stmt_status"]["SQLITE_STMTSTATUS_FULLSCAN_STEP"]


def with_history(path: Path, rows: int) -> Book:
    """`rows` settled requests of earlier runs, at other times, of other names."""
    path.mkdir()
    book = Book(path)
    random_s = random.Random(rows)
    for start in range(0, rows, 500):
        book.open(1, *SCOPES, run=f"old{start}")
        count = min(500, rows - start)
        keys = [f"{random_s.getrandbits(64):x}" for _ in range(count)]
        holds = book.all([(wire.Reserve(1, 1, "claude", "m", 1, 1, key), A) for key in keys])
        pairs = zip(holds, keys, strict=True)
        book.all([(wire.Settle(1, hold.hold, usage(3, 4, key)), A) for hold, key in pairs])
    book.open(1, *SCOPES, run="now")
    book.spend(1, 5, "first of this run")  # the sums of its windows are in memory from here on
    return book


def calls(book: Book) -> dict[str, Callable[[], Any]]:
    """Everything that a metered request asks of the ledger, one transaction each."""
    held = book.reserve(1, 5, 5, "held").hold
    late = book.reserve(1, 5, 5, "late").hold
    released = book.reserve(1, 5, 5, "released").hold
    book.ask(wire.Settle, late, usage(1, 1, source="estimate"))
    return {
        "reserve": lambda: book.reserve(1, 5, 5, "new"),
        "progress": lambda: book.ask(wire.Progress, held, usage(1, 1)),
        "settle": lambda: book.ask(wire.Settle, held, usage(7, 7, "settled")),
        "replay by hold": lambda: book.ask(wire.Settle, held, usage(7, 7, "settled")),
        "replay by request": lambda: book.spend(1, 1, "settled"),
        "correct an estimate": lambda: book.ask(wire.Settle, late, usage(2, 2, "true")),
        "release": lambda: book.ask(wire.Release, released),
        "totals": lambda: book.ask(wire.Totals, 1),
        "sweep": lambda: book.all([(Sweep(frozenset({A})), A)]),
    }


def measured(book: Book) -> tuple[dict[str, tuple[int, int]], set[str]]:
    """(call → steps, rows scanned), and the statements"""
    db = book.store._db
    assert db is not None
    counted = Counted(db)
    found: dict[str, tuple[int, int]] = {}
    for name, call in calls(book).items():
        steps, scanned = counted.steps, counted.scanned
        call()
        found[name] = counted.steps - steps, counted.scanned - scanned
    db.trace_v2(0, None)
    return found, counted.sql


def test_a_request_takes_as_many_steps_with_a_long_history_as_with_a_short_one(tmp_path: Path) -> None:
    small, large = (with_history(tmp_path / str(rows), rows) for rows in (SMALL, LARGE))
    few, _ = measured(small)
    many, sql = measured(large)
    assert {name for name, (_, scanned) in many.items() if scanned} == set()
    for name, (steps, _) in many.items():
        assert steps <= few[name][0] + 16, (name, few[name], many[name])  # sizes of numbers, not of tables
    assert few["settle"][0] > 100
    db = large.store._db
    assert db is not None
    explained = [
        (statement, detail)
        for statement in sorted(sql)
        for _, _, _, detail in db.execute("EXPLAIN QUERY PLAN " + statement, _blanks(statement))
    ]
    assert any("usage_request" in str(detail) for _, detail in explained)  # also those of the triggers
    assert [pair for pair in explained if str(pair[1]).startswith("SCAN") and "CONSTANT ROW" not in str(pair[1])] == []
    for book in (small, large):
        book.store.close()


def test_a_scan_would_be_noticed(tmp_path: Path) -> None:
    """The test above, with the index gone that it relies on."""
    book = with_history(tmp_path / "broken", 100)
    db = book.store._db
    assert db is not None
    db.execute("DROP INDEX usage_request")
    found, _ = measured(book)
    assert found["settle"][1] >= 100
    book.store.close()


def _blanks(statement: str) -> tuple[None, ...]:
    return (None,) * statement.count("?")


def steps_of_a_start(path: Path, runs: int) -> int:
    """Of everything that a new ledger process reads before its first answer, after so many runs have ended."""
    path.mkdir()
    book = Book(path)
    for number in range(runs):
        book.open(1, *SCOPES, run=f"old{number}")  # with budgets of its own, which stay in the file
        book.ask(wire.CloseRun, 1, f"old{number}")
    book.open(1, *SCOPES, run="now")
    book.store.close()
    book.store.open()
    db = book.store._db
    assert db is not None
    counted = Counted(db)
    assert book.line(1, "agent")["used"] == 0
    assert any("FROM budgets" in statement for statement in counted.sql)
    book.store.close()
    return counted.steps


def test_a_start_reads_what_is_open_and_not_what_has_ended(tmp_path: Path) -> None:
    few, many = (steps_of_a_start(tmp_path / str(runs), runs) for runs in (2, 200))
    assert many <= few + 16
