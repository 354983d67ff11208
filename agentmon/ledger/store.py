"""The only place that writes the ledger's file: apsw, WAL, synchronous=FULL, one transaction per batch.

    run(batch): BEGIN IMMEDIATE ─▶ Book decides ─▶ rows, totals, holds ─▶ COMMIT (fsync) ─▶ Outcome
                     └ any error: ROLLBACK, memory forgotten and read again, LedgerTrouble; nothing half-done

A second writer is kept out by a lock on the directory, and a change by anybody else is noticed (data_version).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apsw
import msgspec

from agentmon import errors, wire
from agentmon.ledger import migrations, retention
from agentmon.ledger.book import HOLD_BLOCK, Asked, Book
from agentmon.ledger.budget import Weights
from agentmon.ledger.sizes import Key, Steps
from agentmon.ledger.state import Changes, Defined, Hold, Now, Owner, Place, Row, Run, Snapshot, TotalKey
from agentmon.ledger.transaction import transaction

HOLD_NS = 3600 * 1_000_000_000
_QUICK_CHECK_BYTES = 256 << 20  # a larger file would hold up a restart for seconds

_SQL = {
    "run_open": "INSERT INTO runs (id, run, slot, bottle, agent, weights, opened_ns) VALUES (?, ?, ?, ?, ?, ?, ?)",
    "run_reopen": "UPDATE runs SET closed_ns = NULL, slot = ? WHERE id = ?",
    "run_close": "UPDATE runs SET closed_ns = ? WHERE id = ?",
    "run_scope": "INSERT INTO run_scopes VALUES (?, ?, ?, ?)",
    "budget_clear": "DELETE FROM budgets WHERE (scope, name, run, provider) = (?, ?, ?, ?)",
    "budget_put": "INSERT INTO budgets VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    "enforcement": "INSERT INTO enforcement VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)",
    "audit": "INSERT INTO audit VALUES (NULL, ?, ?, ?, ?, ?)",
    "approval": "INSERT INTO approvals VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    "decision": "INSERT INTO decisions VALUES (?, ?, ?, ?, ?)",
}
_USAGE = "INSERT INTO usage VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_TOTAL = "INSERT INTO totals VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET used = excluded.used"
_HOLD = "INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_OWN_FAULT = (  # not the file's: one question that the book or the schema cannot take
    apsw.ConstraintError, ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError,
)  # fmt: skip
_ROW = """SELECT run_id, request_id, coalesce(hold, 0), provider, model, input, cache_read, cache_write_5m,
                 cache_write_1h, output, reasoning, source, complete FROM usage WHERE """


class LedgerTrouble(errors.AgentmonError):
    """The file cannot be read or written now; the same call may succeed later."""


@dataclass(frozen=True, slots=True)
class Outcome:
    answers: list[wire.Message | None]  # one per question
    crossed: list[wire.Crossed]  # with at_ns, CLOCK_MONOTONIC after the commit


class Store:
    """One open ledger file and its Book. All methods from one thread.

    :param alter: called after the last write of a batch, before its commit: tests fail or kill there.
    """

    def __init__(
        self, path: str, *, hold_ns: int = HOLD_NS, busy_ms: int = 1000, alter: Callable[[], None] | None = None
    ) -> None:
        self.path = path
        self._hold_ns = hold_ns
        self._busy_ms = busy_ms
        self._alter = alter
        self._db: apsw.Connection | None = None
        self._file = (0, 0)
        self._data_version = 0
        self._book: Book | None = None

    def open(self) -> None:
        """Open or create the file, check it, bring it to the newest schema.

        :raises LedgerTrouble: not possible now. :raises migrations.SchemaTooNew, migrations.NotALedger: never possible.
        """
        if self._db is not None:
            return
        if self._file != (0, 0):
            self._same_file()
        try:
            self._db = self._connect()
        except apsw.Error as e:
            raise trouble(self.path, e) from e
        self._file = _identity(self.path)

    def _connect(self) -> apsw.Connection:
        db = apsw.Connection(self.path)
        try:
            db.set_busy_timeout(self._busy_ms)
            if db.pragma("journal_mode", "wal") != "wal":
                raise apsw.ReadOnlyError("the write-ahead log cannot be created")
            db.pragma("synchronous", "full")
            db.pragma("foreign_keys", True)
            if os.stat(self.path).st_size <= _QUICK_CHECK_BYTES:
                found = db.execute("PRAGMA quick_check(1)").get
                if found != "ok":
                    raise apsw.CorruptError(str(found))
            migrations.migrate(db)
        except BaseException:
            db.close()
            raise
        return db

    def close(self) -> None:
        self._book = None
        if self._db is not None:
            with contextlib.suppress(apsw.Error):  # a full disk fails the last checkpoint; the log keeps the rows
                self._db.close()
            self._db = None

    def owners(self) -> set[Owner]:
        """Who holds something; empty while the file cannot be read."""
        return self._book.owners() if self._book is not None else set()

    def quiet(self) -> bool:
        """Whether nothing is held, and that is known: nobody needs to be looked after until the next question."""
        return self._book is not None and not self._book.holds

    def run(self, asked: Sequence[tuple[Asked, Owner]], now: Now) -> Outcome:
        """Decide and record a batch; when it returns all of it is on the disk.

        :raises LedgerTrouble: nothing of it was recorded.
        """
        self.open()
        try:
            return self._transact(asked, now)
        except _OWN_FAULT:
            return self._singly(asked, now)
        except apsw.Error as e:
            if not isinstance(e, apsw.BusyError):
                self.close()
            raise trouble(self.path, e) from e

    def fold(self, before_ns: int) -> int:
        """Make sums of some rows of usage older than `before_ns`; returns how many, 0 when there are none.

        :raises LedgerTrouble: all of them are still there.
        """
        self.open()
        db = self._db
        assert db is not None
        self._same_file()
        try:
            with transaction(db):
                folded = retention.fold(db, before_ns)
                if self._alter is not None:
                    self._alter()
        except apsw.Error as e:
            if not isinstance(e, apsw.BusyError):
                self.close()
            raise trouble(self.path, e) from e
        return folded

    def _singly(self, asked: Sequence[tuple[Asked, Owner]], now: Now) -> Outcome:
        """One question broke the batch: each has its own transaction, so that only that one fails, loudly."""
        out = Outcome([], [])
        for question, owner in asked:
            try:
                one = self._transact([(question, owner)], now)
            except _OWN_FAULT as e:
                traceback.print_exc(file=sys.stderr)
                failed = wire.Failed(getattr(question, "id", 0), "AgentmonError", f"the ledger failed on this: {e}")
                one = Outcome([failed], [])
            except apsw.Error as e:
                raise trouble(self.path, e) from e
            out.answers.extend(one.answers)
            out.crossed.extend(one.crossed)
        return out

    def _transact(self, asked: Sequence[tuple[Asked, Owner]], now: Now) -> Outcome:
        db = self._db
        assert db is not None
        self._same_file()
        begun = False
        try:
            with transaction(db):
                begun = True
                book = self._current_book(db)
                book.begin(now)
                answers = [book.ask(question, owner) for question, owner in asked]
                changes, crossed = book.take()
                if not changes.empty():
                    _write(db, changes)
                if self._alter is not None:
                    self._alter()
        except BaseException:
            if begun:  # a file that is only locked leaves the memory true
                self._book = None
            raise
        at_ns = time.monotonic_ns()
        return Outcome(answers, [msgspec.structs.replace(c, at_ns=at_ns) for c in crossed])

    def _current_book(self, db: apsw.Connection) -> Book:
        version = db.pragma("data_version")
        if self._book is None or version != self._data_version:
            self._book = Book(_snapshot(db), _File(db), hold_ns=self._hold_ns)
            self._data_version = version
        return self._book

    def _same_file(self) -> None:
        """SQLite would go on writing to a file that was deleted or replaced under it."""
        if _identity(self.path) != self._file:
            self.close()
            raise LedgerTrouble(
                f"{self.path} was deleted or replaced while the ledger was using it",
                "put the original back, or stop agentmon and start it again to begin with this one",
            )


def _identity(path: str) -> tuple[int, int]:
    try:
        info = os.stat(path)
    except OSError:
        return -1, -1
    return info.st_dev, info.st_ino


def _write(db: apsw.Connection, changes: Changes) -> None:
    for name, values in changes.statements:
        db.execute(_SQL[name], values)
    if changes.usage:
        db.executemany(_USAGE, changes.usage)
    if changes.accounts:
        db.executemany(_TOTAL, [(*total.key, total.used) for total in changes.totals()])
    if changes.gone_holds:
        db.executemany("DELETE FROM holds WHERE id = ?", [(hold,) for hold in changes.gone_holds])
    if changes.new_holds:
        db.executemany(_HOLD, [_hold_row(hold) for hold in changes.new_holds.values()])
    if changes.next_hold:
        db.execute("UPDATE meta SET value = ? WHERE name = 'next_hold'", (changes.next_hold,))
    for key, steps in changes.sizes.items():
        db.execute("DELETE FROM answer_sizes WHERE (provider, model) = (?, ?)", key)
        if steps is not None:  # behind all others: rows are read in the order of their last use
            db.execute("INSERT INTO answer_sizes VALUES (NULL, ?, ?, ?)", (*key, json.dumps(steps)))


def _hold_row(h: Hold) -> tuple[Any, ...]:
    who = h.owner
    return (
        h.id, h.key, h.run.id, h.provider, h.model, h.input, h.output, h.tokens,
        who.boot, who.pid, who.start, h.expires_ns,
    )  # fmt: skip


def _snapshot(db: apsw.Connection) -> Snapshot:
    file = _File(db)
    open_runs = "SELECT id FROM runs INDEXED BY runs_open WHERE closed_ns IS NULL"  # sorted by SQLite: reads all
    ids: Any = db.execute(open_runs).fetchall()
    runs = {id: file.run(id) for (id,) in sorted(ids)}
    budgets: dict[Place, dict[str, list[tuple[wire.BudgetDef, str, str]]]] = {}
    live = """SELECT scope, name, run, provider, per, tokens, shadow, origin, declared FROM budgets
              WHERE run IN (SELECT '' UNION ALL SELECT run FROM runs WHERE closed_ns IS NULL)"""
    for scope, name, run, provider, per, tokens, shadow, origin, declared in db.execute(live):
        b = wire.BudgetDef(provider, tokens, per, bool(shadow))
        budgets.setdefault((scope, name, run), {}).setdefault(provider, []).append((b, origin, declared))
    holds = [
        Hold(id, key, runs[run_id], provider, model, input, output, tokens, Owner(boot, pid, start), expires)
        for id, key, run_id, provider, model, input, output, tokens, boot, pid, start, expires in db.execute(
            "SELECT * FROM holds ORDER BY id"
        )
    ]
    given = int(db.execute("SELECT value FROM meta WHERE name = 'next_hold'").get)
    return Snapshot(
        tuple(runs.values()),
        {
            place: {p: Defined(tuple(b for b, _, _ in rows), rows[0][1], rows[0][2]) for p, rows in at.items()}
            for place, at in budgets.items()
        },
        tuple(holds),
        int(db.execute("SELECT coalesce(max(id), 0) + 1 FROM runs").get),
        -(-given // HOLD_BLOCK) * HOLD_BLOCK,
        tuple(_sizes(db)),
    )


def _sizes(db: apsw.Connection) -> Iterator[tuple[Key, Steps]]:
    for provider, model, steps in db.execute("SELECT provider, model, steps FROM answer_sizes ORDER BY id"):
        yield (provider, model), {int(step): int(count) for step, count in json.loads(steps).items()}


class _File:
    """state.Lookup on the open file."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db

    def total(self, key: TotalKey) -> int:
        sql = """SELECT used FROM totals WHERE (scope, name, provider, per, "window") = (?, ?, ?, ?, ?)"""
        return int(self._db.execute(sql, key).get or 0)

    def by_hold(self, hold: int) -> Row | None:
        return self._row("hold = ?", (hold,))

    def by_request(self, provider: str, request_id: str) -> Row | None:
        return self._row("provider = ? AND request_id = ?", (provider, request_id))

    def _row(self, where: str, values: tuple[Any, ...]) -> Row | None:
        found: Any = self._db.execute(_ROW + where, values).fetchone()
        if found is not None:
            run_id, request_id, hold, provider, model, *rest = found
            usage = wire.Usage(provider, model, request_id, *rest)
            return Row(run_id, request_id, hold, usage)
        return None

    def run(self, run_id: int) -> Run:
        found = self._run("id = ?", run_id)
        if found is None:
            raise LookupError(f"run {run_id} is not in the ledger")
        return found

    def run_named(self, run: str) -> Run | None:
        return self._run("run = ?", run)

    def last_approval(self) -> int:
        return int(self._db.execute("SELECT coalesce(max(id), 0) FROM approvals").get)

    def approval_state(self, number: int) -> str | None:
        found: Any = self._db.execute("SELECT state FROM approvals_v WHERE id = ?", (number,)).fetchone()
        return None if found is None else str(found[0])

    def undecided(self, run: str) -> tuple[int, ...]:
        sql = "SELECT id FROM approvals WHERE run = ? AND id NOT IN (SELECT approval FROM decisions) ORDER BY id"
        return tuple(id for (id,) in self._db.execute(sql, (run,)))

    def _run(self, where: str, value: int | str) -> Run | None:
        sql = f"SELECT id, run, slot, bottle, agent, weights FROM runs WHERE {where}"
        found: Any = self._db.execute(sql, (value,)).fetchone()
        if found is not None:
            id, run, slot, bottle, agent, weights = found
            charged = "SELECT scope, name FROM run_scopes WHERE run_id = ? ORDER BY position"
            scopes: Any = self._db.execute(charged, (id,)).fetchall()
            seen = """SELECT provider FROM totals WHERE scope = 'bottle' AND name = ? AND per = 'run' AND "window" = ?
                      AND provider <> '*'"""
            providers: Any = {p for (p,) in self._db.execute(seen, (bottle, run))}
            return Run(id, run, slot, bottle, agent, tuple(scopes), Weights.of(json.loads(weights)), providers)
        return None


def trouble(path: str, e: apsw.Error) -> LedgerTrouble:
    """The one place where SQLite's errors become sentences."""
    what, hint = next(
        ((what, hint) for kind, what, hint in _TROUBLES if isinstance(e, kind)), ("failed", "look at the disk")
    )
    return LedgerTrouble(f"{path}: {what} ({e})", hint)


_RESTORE = "agentmon ledger check; restore a copy made by agentmon ledger backup"
_TROUBLES: tuple[tuple[type[apsw.Error], str, str], ...] = (
    (apsw.FullError, "the disk is full", "free some space; metered requests are refused until then"),
    (apsw.ReadOnlyError, "the file or its directory is read-only", "make it writable for user agentmon-ledger"),
    (apsw.BusyError, "another process keeps the file locked", "end it: fuser shows which one has the file open"),
    (apsw.CorruptError, "the file is damaged", _RESTORE),
    (apsw.NotADBError, "the file is not a database", _RESTORE),
    (apsw.CantOpenError, "the file cannot be opened", "the directory must belong to user agentmon-ledger, mode 0700"),
    (apsw.IOError, "the disk failed", "see the kernel's log: dmesg"),
)
