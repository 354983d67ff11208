"""A store that hosts share: the same batches as store.py's, each in its turn, committed by a PostgreSQL server.

    run(batch): outbox first ─▶ turn taken, others' changes read ─▶ SharedBook decides ─▶ rows, totals, pools ─▶ COMMIT
         └ database away: settlements and records go to the outbox (this host's disk), what would cost anew is refused

A COMMIT whose answer is lost is looked up by the host's batch number, so that nothing is done twice or told wrongly. An
error in a turn forgets the memory, which is then read again.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import msgspec
import psycopg

from agentmon import errors, wire
from agentmon.ledger import postgres_migrations, retention
from agentmon.ledger import postgres_rows as rows
from agentmon.ledger import postgres_write as write
from agentmon.ledger.book import HOLD_BLOCK, Asked, Refresh, Spent, Sweep
from agentmon.ledger.migrations import SchemaTooNew
from agentmon.ledger.outbox import Entry, Outbox
from agentmon.ledger.postgres import Database, is_lost, trouble, zone
from agentmon.ledger.postgres_line import Line
from agentmon.ledger.postgres_reader import SharedReader
from agentmon.ledger.shared import SharedBook
from agentmon.ledger.state import Hold, Now, Owner
from agentmon.ledger.store import HOLD_NS, LedgerTrouble, Outcome

BEAT_S = 30.0  # a host that holds something says so as often
_MINUTE_NS = 60 * 10**9
_SENT_AT_ONCE = 500  # entries of the outbox
_KEPT = (wire.Settle, wire.Release, wire.OpenRun, wire.CloseRun, wire.Enforced, wire.Audit, wire.Undecided)
_ONLY_READS = (wire.Totals, Spent, Refresh)
_OWN_FAULT = (  # one question that the book or the schema cannot take
    ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError,
    psycopg.IntegrityError, psycopg.DataError, psycopg.errors.DatatypeMismatch,
)  # fmt: skip
_AGAIN = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)


@dataclass(slots=True)
class _Unsure:
    """A batch whose COMMIT was sent and not answered."""

    batch: int
    outcome: Outcome
    asked: Sequence[tuple[Asked, Owner]]


class PostgresStore:
    """One host's connection, book and outbox. All methods from one thread.

    :param name: of the machine, for people. :param alter: called after the last write of a batch, before its commit.
    """

    def __init__(
        self, database: Database, outbox: Outbox, *, name: str = "", hold_ns: int = HOLD_NS,
        alter: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self.database = database
        self._outbox = outbox
        self._name = name or os.uname().nodename
        self._hold_ns = hold_ns
        self._beat_s = min(BEAT_S, hold_ns / 4e9)
        self._alter = alter
        self._line: Line | None = None
        self._db: rows.Db | None = None
        self._book: SharedBook | None = None
        self._turn = self._terms = self._batch = self._block_end = 0
        self._beat_at_s = self._strange_at_s = 0.0
        self._unsure: _Unsure | None = None
        self._said = ""

    def listen(self, poke: Callable[[], None]) -> None:
        """Have `poke` called, by another thread, when another host has changed something or the database is back."""
        self._line = Line(self.database, lambda: self._outbox.host, poke)
        self._line.start()

    def reader(self) -> SharedReader:
        """A connection of its own, for reports; from any thread. :raises LedgerTrouble: none can be made."""
        return SharedReader(self.database, self._outbox.host)

    def open(self) -> None:
        """Connect, if it is not; bring the database to the newest schema.

        :raises LedgerTrouble: not possible now. :raises SchemaTooNew, NotALedger: never possible.
        """
        self._outbox.open()
        if self._db is not None:
            return
        if self._line is not None and not self._line.up.is_set():
            raise LedgerTrouble(self._said or f"{self.database.place}: cannot be reached", self._line.hint)
        try:
            db = self.database.connect()
        except psycopg.Error as e:
            raise trouble(self.database, e) from e
        try:
            with self._watched(db):
                postgres_migrations.migrate(db)
                self._be_alone(db)
                write.register(db, self._outbox.host, self._name, zone())
        except BaseException as e:
            db.close()
            if isinstance(e, psycopg.Error):
                raise trouble(self.database, e) from e
            raise
        self._db = db

    def _be_alone(self, db: rows.Db) -> None:
        """Wait a moment for a predecessor's session to end.

        :raises LedgerTrouble: another process has this host's name.
        """
        try:
            with db.transaction():
                db.execute(b"SET LOCAL lock_timeout TO '1s'")
                db.execute(b"SELECT pg_advisory_lock(hashtextextended(%s, 0))", (self._outbox.host,))
        except psycopg.errors.LockNotAvailable as e:
            raise LedgerTrouble(
                f"{self.database.place}: another ledger has the name of this host ({self._outbox.host})",
                f"on a copied machine: stop agentmon, delete {self._outbox.path}, start it",
            ) from e

    def close(self) -> None:
        if self._line is not None:
            self._line.stop()
        self._disconnect()
        self._outbox.close()

    def _disconnect(self) -> None:
        self._book = None
        if self._db is not None:
            with contextlib.suppress(psycopg.Error):
                self._db.close()
            self._db = None

    def owners(self) -> set[Owner]:
        return self._book.owners() if self._book is not None else set()

    def quiet(self) -> bool:
        """Whether nothing is held and nothing waits, and that is known."""
        return self._book is not None and not self._book.holds and not self._outbox.count

    # ── batches ──────────────────────────────────────────────────────────────

    def run(self, asked: Sequence[tuple[Asked, Owner]], now: Now) -> Outcome:
        """Decide and record a batch. While the database is away: record what can wait, refuse the rest.

        :raises LedgerTrouble: not even the outbox can be written. :raises SchemaTooNew, NotALedger: see open().
        """
        if self._idle(asked, now):
            return Outcome([None] * len(asked), [])
        if self._line is not None:
            self._line.heard()  # whatever this batch is, it looks at what others did until now
        try:
            out = self._with_retry(asked, now)
        except LedgerTrouble as e:
            self._say(e)
            return self._offline(asked, now, e)
        self._say(None)
        return out

    def _idle(self, asked: Sequence[tuple[Asked, Owner]], now: Now) -> bool:
        """Whether it is only the sweep of every second, with nothing to sweep."""
        book = self._book
        if book is None or self._db is None or self._outbox.count or time.monotonic() > self._beat_at_s:
            return False
        return all(isinstance(a, Sweep) and not a.dead for a, _ in asked) and not any(
            hold.expires_ns <= now.boot_ns for hold in book.holds.values()
        )

    def _with_retry(self, asked: Sequence[tuple[Asked, Owner]], now: Now) -> Outcome:
        """A connection that breaks is made again once, at once: a server that was restarted is not noticed."""
        for last in (False, True):
            try:
                self.open()
                if (known := self._sure(asked)) is not None:
                    return known
                crossed = self._send(now)
                out = self._batch_of(asked, now)
                return Outcome(out.answers, crossed + out.crossed)
            except psycopg.Error as e:
                self._disconnect()
                if last or not (is_lost(e) or isinstance(e, _AGAIN)):
                    raise trouble(self.database, e) from e
        raise AssertionError("unreachable")

    def _sure(self, asked: Sequence[tuple[Asked, Owner]]) -> Outcome | None:
        """After a new connection: what the lost COMMIT of this very batch did, if it came through."""
        db, unsure = self._db, self._unsure
        assert db is not None
        if unsure is None or unsure.asked is not asked:  # of the outbox: hosts.sent tells
            return None
        with self._watched(db):
            found = db.execute(b"SELECT batch FROM hosts WHERE id = %s", (self._outbox.host,)).fetchone()
        self._unsure = None
        return unsure.outcome if found is not None and found[0] >= unsure.batch else None

    def _batch_of(self, asked: Sequence[tuple[Asked, Owner]], now: Now) -> Outcome:
        try:
            if all(isinstance(a, _ONLY_READS) for a, _ in asked):
                return self._read(asked, now)
            return self._transact(asked, now)
        except _OWN_FAULT:
            self._roll_back()
        out = Outcome([], [])
        for question, owner in asked:
            try:
                one = self._transact([(question, owner)], now)
            except _OWN_FAULT as e:
                self._roll_back()
                traceback.print_exc(file=sys.stderr)
                failed = wire.Failed(getattr(question, "id", 0), "AgentmonError", f"the ledger failed on this: {e}")
                one = Outcome([failed], [])
            out.answers.extend(one.answers)
            out.crossed.extend(one.crossed)
        return out

    def _roll_back(self) -> None:
        self._book = None
        if self._db is not None:
            self._db.execute(b"ROLLBACK")

    def _transact(self, asked: Sequence[tuple[Asked, Owner]], now: Now, sent: int = 0) -> Outcome:
        """:param sent: the last entry of the outbox among `asked`, 0 for none."""
        db = self._db
        assert db is not None
        host, outcome = self._outbox.host, None
        try:
            with self._watched(db):
                turn = rows.take_turn(db, host, self._turn, self._beat_s)
                self._check_version(turn.version)
                book = self._current(db, turn, now)
                book.next_run = turn.next_run
                next_hold = self._next_hold(book, turn, len(asked))
                strange = self._strange(db)
                book.lookup.expect(book.will_ask(question for question, _ in asked))
                answers = [book.ask(question, owner) for question, owner in asked]
                book.charge_strange(hold for _, hold in strange)
                book.watch()
                changes, crossed = book.take()
                at_ns = time.monotonic_ns()
                outcome = Outcome(answers, [msgspec.structs.replace(c, at_ns=at_ns) for c in crossed])
                pools, progressed = book.touched(), book.took_progress()
                if changes.empty() and not pools and not sent and not turn.is_stale:
                    db.execute(b"ROLLBACK")
                    self._turn, self._unsure = turn.turn - 1, None
                    if next_hold != turn.next_hold:
                        self._block_end = 0  # the block was not taken
                    return outcome
                self._batch = turn.batch + 1
                struck = sorted({whose for whose, _ in strange})
                written = write.Written(
                    turn.turn, host, self._batch, max(sent, turn.sent), changes, pools, progressed, struck,
                    book.next_run, next_hold,
                )  # fmt: skip
                write.write(db, written)
                if self._alter is not None:
                    self._alter()
                self._unsure = _Unsure(self._batch, outcome, asked)
                db.execute(b"COMMIT")
                self._unsure = None
                self._turn = turn.turn
                self._beat_at_s = time.monotonic() + self._beat_s
        except psycopg.Error as e:
            self._book = None
            if not is_lost(e):
                self._unsure = None
            raise
        except BaseException:
            self._book = None
            raise
        at_ns = time.monotonic_ns()
        return Outcome(outcome.answers, [msgspec.structs.replace(c, at_ns=at_ns) for c in outcome.crossed])

    def _read(self, asked: Sequence[tuple[Asked, Owner]], now: Now) -> Outcome:
        """Questions that change nothing: as of one moment, without waiting for the turn."""
        db = self._db
        assert db is not None
        try:
            with self._watched(db):
                turn = rows.look(db, self._outbox.host, self._turn, self._beat_s)
                self._check_version(turn.version)
                book = self._current(db, turn, now)
                answers = [book.ask(question, owner) for question, owner in asked]
                book.watch()
                crossed, book.crossed = book.crossed, []
                db.execute(b"COMMIT")
                self._turn = turn.turn
        except BaseException:
            self._book = None
            raise
        at_ns = time.monotonic_ns()
        return Outcome(answers, [msgspec.structs.replace(c, at_ns=at_ns) for c in crossed])

    def _current(self, db: rows.Db, turn: rows.Turn, now: Now) -> SharedBook:
        """The book with all that others have done, at the beginning of a batch."""
        lookup, book = rows.Rows(db), self._book
        if book is None or turn.struck > self._turn:
            old, book = book, SharedBook(rows.snapshot(db, self._outbox.host, turn), lookup, hold_ns=self._hold_ns)
            if old is not None:
                book.learned, book.queue = old.learned, old.queue
            self._book, self._block_end, self._terms = book, 0, turn.terms
            book.begin(now)
            book.crossed += book.spent()  # what was crossed while nobody looked
        else:
            book.lookup = lookup
            book.others(turn.totals, turn.pools)
            if turn.terms > self._terms:
                book.shared_budgets_are(rows.shared_budgets(db))
                self._terms = turn.terms
            book.begin(now)
        book.watch()
        return book

    def _next_hold(self, book: SharedBook, turn: rows.Turn, count: int) -> int:
        """What the database says next; this host takes ids from a block of its own."""
        if book.next_hold + count < self._block_end:
            return turn.next_hold
        book.next_hold, self._block_end = turn.next_hold, turn.next_hold + HOLD_BLOCK - 1
        return turn.next_hold + HOLD_BLOCK

    def _strange(self, db: rows.Db) -> list[tuple[str, Hold]]:
        """Looked for now and then, whatever is asked: whoever waits for such a hold to go asks."""
        if time.monotonic() < self._strange_at_s:
            return []
        self._strange_at_s = time.monotonic() + self._beat_s
        return rows.strange_holds(db, self._outbox.host, self._hold_ns / 1e9)

    def _check_version(self, version: int) -> None:
        """Another host may have brought the schema to a version that this one does not know.

        :raises SchemaTooNew: it has.
        """
        newest = postgres_migrations.MIGRATIONS[-1].version
        if version > newest:
            raise SchemaTooNew(
                f"{self.database.place} has schema version {version} now; this agentmon knows versions up to {newest}",
                "install the agentmon of the other hosts: all hosts of a ledger have the same version",
            )

    def fold(self, before_ns: int) -> int:
        """Make sums of some rows older than `before_ns`, of all hosts; returns how many.

        :raises LedgerTrouble: all of them are still there.
        """
        self.open()
        db = self._db
        assert db is not None
        try:
            with self._watched(db):
                db.execute(b"BEGIN")
                db.execute(b"SELECT 1 FROM turn FOR UPDATE")
                folded = write.fold(db, before_ns, retention.ROWS)
                if self._alter is not None:
                    self._alter()
                db.execute(b"COMMIT")
        except psycopg.Error as e:
            self._disconnect()
            raise trouble(self.database, e) from e
        return folded

    # ── while it is away ─────────────────────────────────────────────────────

    def _offline(self, asked: Sequence[tuple[Asked, Owner]], now: Now, e: LedgerTrouble) -> Outcome:
        """What may wait is on this host's disk when it is answered; everything else is refused.

        Holds that a lost COMMIT may have made are given back: their requests are refused now.
        """
        unsure, self._unsure = self._unsure, None
        if unsure is not None and unsure.asked is not asked:
            unsure = None
        batch = unsure.batch if unsure is not None else 0
        kept = [question for question, _ in asked if isinstance(question, _KEPT)]
        if kept:
            self._outbox.add(kept, now.wall_ns, batch)
        granted = [a.hold for a in unsure.outcome.answers if isinstance(a, wire.Granted)] if unsure is not None else []
        if granted:
            self._outbox.add([wire.Release(0, hold) for hold in granted], now.wall_ns)
        return Outcome([_told_offline(question, e) for question, _ in asked], [])

    def _send(self, now: Now) -> list[wire.Crossed]:
        """Record what waits in the outbox, oldest first, in the windows of its time; each entry once."""
        crossed: list[wire.Crossed] = []
        while self._outbox.count:
            db = self._db
            assert db is not None
            found = db.execute(b"SELECT batch, sent FROM hosts WHERE id = %s", (self._outbox.host,)).fetchone()
            batch, sent = found or (0, 0)
            entries = self._outbox.entries(_SENT_AT_ONCE)
            left = [e for e in entries if e.seq > sent and not 0 < e.batch <= batch]
            for _, some in groupby(left, key=lambda e: e.wall_ns // _MINUTE_NS):
                crossed += self._send_minute(list(some), now)
            self._outbox.drop(entries[-1].seq)
        return crossed

    def _send_minute(self, entries: list[Entry], now: Now) -> list[wire.Crossed]:
        me = Owner("", 0, 0)  # questions that need an owner never wait
        then = Now(entries[0].wall_ns, now.boot_ns)
        try:
            out = self._transact([(e.message, me) for e in entries], then, sent=entries[-1].seq)
        except _OWN_FAULT:
            self._roll_back()
            if len(entries) > 1:
                return [c for e in entries for c in self._send_minute([e], now)]
            traceback.print_exc(file=sys.stderr)
            self._transact([], then, sent=entries[-1].seq)
            return []
        for entry, answer in zip(entries, out.answers, strict=True):
            if isinstance(answer, wire.Failed):
                what = f"{type(entry.message).__name__} of an outage was refused: {answer.message}"
                print(f"warning: ledger: {what}", file=sys.stderr, flush=True)
        return out.crossed

    def _say(self, e: LedgerTrouble | None) -> None:
        """Once when it goes away, once when it is back."""
        if e is not None and e.message != self._said:
            print(f"error: ledger: {e.message}\nhint: {e.hint}", file=sys.stderr, flush=True)
        elif e is None and self._said:
            print("ledger: recording again", file=sys.stderr, flush=True)
        self._said = e.message if e is not None else ""

    @contextlib.contextmanager
    def _watched(self, db: rows.Db) -> Iterator[None]:
        """A server that hangs in the middle of this is hung up on."""
        if self._line is None:
            yield
            return
        self._line.busy(db)
        try:
            yield
        finally:
            self._line.busy(None)


def _told_offline(question: Any, e: errors.AgentmonError) -> wire.Message | None:
    id = getattr(question, "id", 0)
    match question:
        case wire.Settle():
            return wire.Settled(id)
        case wire.Progress():
            return wire.Done(id, False)
        case wire.Release() | wire.OpenRun() | wire.CloseRun() | wire.Enforced() | wire.Audit() | wire.Undecided():
            return wire.Done(id)
        case Spent():
            return wire.Done(0, [])
        case Sweep() | Refresh():
            return None
    return wire.Failed(id, "unavailable", e.message, e.hint)
