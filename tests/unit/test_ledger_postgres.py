"""What a shared ledger has that a file has not: its errors, its schema, two hosts, a COMMIT whose answer is lost."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from agentmon import wire
from agentmon.credentials.secret import Secret
from agentmon.ledger import migrations, postgres_migrations, postgres_write, store
from agentmon.ledger.book import Refresh
from agentmon.ledger.migrations import NotALedger, SchemaTooNew
from agentmon.ledger.outbox import Outbox
from agentmon.ledger.postgres import Database
from agentmon.ledger.postgres_reader import SharedReader
from agentmon.ledger.postgres_store import PostgresStore
from agentmon.ledger.reading import BY
from agentmon.ledger.store import LedgerTrouble
from tests.support.ledger_book import Book
from tests.support.ledger_rig import START, A, LedgerProcess, scope, usage
from tests.support.ledger_rig import budget as of
from tests.support.postgres_rig import ASKED, PASSWORD, Server, shared_store
from tests.unit.test_ledger_retention import at, history
from tests.unit.test_ledger_views import PROMISED


@pytest.fixture
def book(tmp_path: Path, postgres: Server) -> Iterator[Book]:
    book = Book(tmp_path, postgres.new())
    yield book
    book.store.close()


def other_host(book: Book, name: str = "other") -> Book:
    place = Path(book.path).parent / name
    place.mkdir()
    return Book(place, book.url)


def test_both_stores_have_the_same_versions_and_statements() -> None:
    """A migration of the one needs its counterpart in the other."""
    assert postgres_migrations.MIGRATIONS[-1].version == migrations.MIGRATIONS[-1].version
    assert postgres_write.SQL.keys() == store._SQL.keys()


# ── errors ───────────────────────────────────────────────────────────────────


def fails(database: Database, tmp_path: Path) -> LedgerTrouble:
    with pytest.raises(LedgerTrouble) as caught:
        PostgresStore(database, Outbox(str(tmp_path / "o.db"))).open()
    assert caught.value.hint
    return caught.value


def test_a_password_that_is_wrong_missing_or_right(tmp_path: Path, postgres: Server) -> None:
    url = postgres.new().replace("ledger@", f"{ASKED}@")
    wrong = fails(Database(url, Secret("guess")), tmp_path)
    assert "did not let us in" in wrong.message and "credentials/ledger" in wrong.hint
    assert "guess" not in wrong.message + wrong.hint + repr(Database(url, Secret("guess")))
    none = fails(Database(url), tmp_path)
    assert "asks for a password, and there is none" in none.message
    right = PostgresStore(Database(url, Secret(PASSWORD)), Outbox(str(tmp_path / "o.db")))
    right.open()
    right.close()


def test_nobody_there_and_no_such_database(tmp_path: Path, postgres: Server) -> None:
    assert "cannot be reached" in fails(Database(f"postgresql://x@/y?host={tmp_path}"), tmp_path).message
    assert "does not exist" in fails(Database(postgres.url("none")), tmp_path).message


def test_a_newer_schema_is_not_touched(book: Book, tmp_path: Path) -> None:
    """Neither at the start nor when another host brings it while this one works: that one ends, and says so."""
    book.open(1)
    with Database(book.url).connect() as db:
        db.execute(b"INSERT INTO migrations VALUES (99, 'from the future', 0)")
    with pytest.raises(SchemaTooNew, match="schema version 99"):
        book.reserve(1, 1, 1, "k")
    with pytest.raises(SchemaTooNew) as caught:
        other_host(book).store.open()
    assert "install" in caught.value.hint
    with pytest.raises(SchemaTooNew):
        SharedReader(Database(book.url))
    process = LedgerProcess(tmp_path, database={"url": book.url})
    process.start(ready=False)
    assert process.process is not None and process.process.wait(20) == 1
    assert "schema version 99" in process.said() and "hint: install" in process.said()
    assert "Traceback" not in process.said()


def test_the_schema_of_something_else(tmp_path: Path, postgres: Server) -> None:
    url = postgres.new()
    with psycopg.connect(url) as db:
        db.execute("CREATE SCHEMA agentmon; CREATE TABLE agentmon.mine (x int)")
    with pytest.raises(NotALedger, match="not a ledger"):
        PostgresStore(Database(url), Outbox(str(tmp_path / "o.db"))).open()


TROUBLES = [
    ("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'full' USING ERRCODE = '53100'; END $$;"
     "CREATE TRIGGER f BEFORE INSERT ON holds EXECUTE FUNCTION f()", "DROP FUNCTION f CASCADE", "its disk is full"),
    ("REVOKE INSERT ON holds FROM ledger", "GRANT INSERT ON holds TO ledger", "may not do that"),
    ("ALTER DATABASE {name} SET default_transaction_read_only TO on", "ALTER DATABASE {name} RESET ALL", "read-only"),
]  # fmt: skip


@pytest.mark.parametrize(("breaks", "mends", "said"), TROUBLES)
def test_what_cannot_be_written_is_refused_and_goes_on_by_itself(
    book: Book, postgres: Server, breaks: str, mends: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    book.open(1)
    held = book.reserve(1, 1, 1, "before").hold
    name = urlsplit(book.url).path.strip("/")
    with postgres.super(name) as db:
        db.execute("SET search_path TO agentmon")
        db.execute(breaks.format(name=name).encode())
        if "DATABASE" in breaks:
            book.store._disconnect()
        refused = book.reserve(1, 1, 1, "k")
        assert (refused.error, said in refused.message, bool(refused.hint)) == ("unavailable", True, True), refused
        assert not book.ask(wire.Settle, held, usage(5, request_id="r")).duplicate
        db.execute(mends.format(name=name).encode())
    if "DATABASE" in breaks:
        book.store._disconnect()
    assert isinstance(book.reserve(1, 1, 1, "k"), wire.Granted)
    assert book.reads("SELECT request_id, weighted FROM usage") == [("r", 5)]
    assert capsys.readouterr().err.count("recording again") == 1
    assert book.problems() == []


def test_a_session_that_is_ended_between_two_batches_is_not_noticed(book: Book, postgres: Server) -> None:
    book.open(1)
    with postgres.super() as db:
        db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'agentmon'")
    assert isinstance(book.reserve(1, 1, 1, "k"), wire.Granted)


def test_a_session_that_is_ended_before_its_commit_is_done_again(tmp_path: Path, postgres: Server) -> None:
    url, ending = postgres.new(), [False]

    def alter() -> None:
        if ending.pop():
            with postgres.super() as db:
                db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'agentmon'")
        ending.append(False)

    shared = shared_store(url, tmp_path / "o.db", alter=alter)
    shared.run([(wire.OpenRun(1, 1, "b1", "run1", "", (), {}), A)], START)
    ending[:] = [True]
    (held,) = shared.run([(wire.Reserve(1, 1, "claude", "m", 1, 1, "k"), A)], START).answers
    assert isinstance(held, wire.Granted)
    with Database(url).connect() as db:
        assert db.execute("SELECT count(*) FROM holds").fetchone() == (1,)
    shared.close()


class Deaf:
    """A socket between the two that loses the server's next answer to a COMMIT, and the connection with it."""

    def __init__(self, server: Path, place: Path) -> None:
        self._server = str(server / ".s.PGSQL.5432")
        self._listener = socket.socket(socket.AF_UNIX)
        self._path = str(place / ".s.PGSQL.5432")
        self._listener.bind(self._path)
        self._listener.listen()
        self.loses = False
        self.lost = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server)
                threading.Thread(target=self._asks, args=(client, server), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client), daemon=True).start()

    def _asks(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                if self.loses and b"COMMIT" in data:
                    self.loses, self.lost = False, self.lost + 1
                    client.shutdown(socket.SHUT_RDWR)  # nobody is told
                server.sendall(data)
        server.close()

    @staticmethod
    def _pass(server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                client.sendall(data)
        client.close()

    def close(self) -> None:
        """Nobody listens any more."""
        os.unlink(self._path)
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def test_a_commit_whose_answer_is_lost_is_done_once(tmp_path: Path, postgres: Server) -> None:
    """Rows without a key of their own, as audit's, too; also when the database is away afterwards."""
    place = tmp_path / "s"
    place.mkdir()
    deaf = Deaf(postgres.directory, place)
    url = postgres.new()
    shared = shared_store(url.replace(str(postgres.directory), str(place)), tmp_path / "o.db")

    def ask(*messages: Any) -> list[Any]:
        return shared.run([(m, A) for m in messages], START).answers

    ask(wire.OpenRun(1, 1, "b1", "run1", "", (), {}))
    deaf.loses = True
    answers = ask(wire.Audit(1, 0, "cut", "b1", {}), wire.Reserve(2, 1, "claude", "m", 1, 1, "k"))
    assert deaf.lost == 1 and isinstance(answers[1], wire.Granted)
    deaf.loses = True
    deaf.close()  # the retry finds nobody
    answers = ask(wire.Audit(3, 0, "freeze", "b1", {}), wire.Reserve(4, 1, "claude", "m", 1, 1, "k2"))
    assert deaf.lost == 2 and isinstance(answers[0], wire.Done) and answers[1].error == "unavailable"
    shared.close()
    again = shared_store(url, tmp_path / "o.db")
    again.run([(wire.Totals(1, 1), A)], START)
    with Database(url).connect() as db:
        assert db.execute("SELECT action FROM audit ORDER BY id").fetchall() == [("cut",), ("freeze",)]
        assert db.execute("SELECT key FROM holds").fetchall() == [("k",)]  # the one nobody was told of was given back
    again.close()


# ── hosts ────────────────────────────────────────────────────────────────────


def test_two_hosts_see_one_pool(book: Book) -> None:
    other, shared = other_host(book), scope("host", "host", of("claude", 100, "month"))
    book.open(1, shared, run="a")
    other.open(1, shared, run="b")
    one = book.reserve(1, 0, 70, "k")
    denied = other.reserve(1, 0, 70, "k")
    assert (denied.held, denied.waits) == (70, True)
    book.ask(wire.Progress, one.hold, usage(0, 90))
    assert other.line(1, "host")["held"] == 90
    book.ask(wire.Settle, one.hold, usage(0, 90, "r"))
    assert other.reserve(1, 0, 70, "k").tokens == 10
    assert [(c.threshold, c.slots) for c in other.crossed] == [(90, (1,))]
    assert book.ask(wire.Settle, one.hold, usage(0, 90, "r")).duplicate
    assert book.reserve(1, 0, 1, "z").held == 10
    assert book.problems() == []
    other.store.close()


def test_a_budget_that_is_set_on_one_host_holds_on_the_other(book: Book) -> None:
    other, shared = other_host(book), scope("parent", "team", of("claude", 1000, "day"))
    book.open(1, shared, run="a")
    other.open(1, shared, run="b")
    other.spend(1, 60, "r")
    book.ask(wire.SetBudget, "parent", "team", "", of("claude", 50, "day"), 0)
    assert other.line(1, "parent")["tokens"] == 50
    assert [(c.slots, c.scope, c.used, c.threshold) for c in other.crossed] == [((1,), "parent", 60, 100)]
    other.store.close()


def test_what_one_host_spends_crosses_on_the_other(book: Book) -> None:
    """Also a budget that only the other one knows: an agent's, of its own run."""
    other = other_host(book)
    book.open(1, scope("agent", "rev"), run="a")
    other.open(1, scope("agent", "rev", of("claude", 100, "day")), run="b")
    book.spend(1, 85, "r1")
    other.ask(wire.Totals, 1)
    book.spend(1, 35, "r2")
    other.ask(wire.Totals, 1)
    assert [(c.slots, c.threshold, c.used) for c in other.crossed] == [((1,), 80, 85), ((1,), 100, 120)]
    assert not book.crossed
    other.store.close()


def test_every_change_of_others_is_told_whatever_the_batch_that_looked(book: Book) -> None:
    other, poked = other_host(book), threading.Semaphore(0)
    shared = scope("host", "host", of("claude", 1000, "month"))
    book.open(1, shared, run="a")
    other.open(1, shared, run="b")
    assert isinstance(other.store, PostgresStore)
    other.store.listen(poked.release)
    assert poked.acquire(timeout=20)  # connected: what was missed
    for n in range(3):
        other.all([(Refresh(), A), (wire.Reserve(1, 1, "claude", "m", 1, 1, f"k{n}"), A)])
        while poked.acquire(blocking=False):
            pass
        book.spend(1, 5, f"r{n}")
        assert poked.acquire(timeout=20), n
    other.store.close()


def test_holds_of_a_host_that_has_gone_are_charged_and_its_late_word_corrects_them(
    tmp_path: Path, postgres: Server
) -> None:
    url, second = postgres.new(), 10**9
    gone, stays = (shared_store(url, tmp_path / name, hold_ns=second) for name in ("gone", "stays"))
    shared = (scope("host", "host", of("claude", 1000, "month")),)
    gone.run([(wire.OpenRun(1, 1, "b1", "run1", "", shared, {}), A)], START)
    stays.run([(wire.OpenRun(1, 1, "b2", "run2", "", shared, {}), A)], START)
    asks = [(wire.Reserve(n, 1, "claude", "m", 40, 60, f"k{n}"), A) for n in (1, 2)]
    held, given_back = gone.run(asks, START).answers

    def total() -> Any:
        stays.run([(wire.Reserve(2, 1, "claude", "m", 0, 2000, "asks"), A)], START)
        return stays.run([(wire.Totals(1, 1), A)], START).answers[0].value[0]

    end = time.monotonic() + 20
    while total()["used"] != 200 and time.monotonic() < end:
        pass
    assert (total()["used"], held.tokens) == (200, 100)
    gone.run([(wire.Release(1, given_back.hold), A)], START)
    (late,) = gone.run([(wire.Settle(1, held.hold, usage(40, 5, "r")), A)], START).answers
    assert not late.duplicate
    assert total()["used"] == 145
    with SharedReader(Database(url)) as reader:
        assert [row["source"] for row in reader.rows()] == ["estimate", "estimate", "reconciled"]
        assert reader.check() == []
    gone.close()
    stays.close()


def test_a_copied_machine_is_told_apart(book: Book) -> None:
    book.open(1)
    copy = book.another()
    with pytest.raises(LedgerTrouble, match="another ledger has the name of this host") as caught:
        copy.open()
    assert "delete" in caught.value.hint
    book.store.close()
    copy.open()
    copy.close()


def test_texts_that_a_database_cannot_hold_are_kept_all_the_same(book: Book) -> None:
    book.open(1)
    held = book.reserve(1, 1, 1, "k\0").hold
    row = replace_text(usage(5, request_id="r\0"), model="m\0")
    assert not book.ask(wire.Settle, held, row).duplicate
    second = book.reserve(1, 1, 1, "l").hold
    assert book.ask(wire.Settle, second, row).duplicate
    assert book.reads("SELECT model, request_id FROM usage") == [("m\ufffd", "r\ufffd")]


def replace_text(row: wire.Usage, **changed: str) -> wire.Usage:
    return wire.Usage(**{name: getattr(row, name) for name in row.__struct_fields__} | changed)


# ── what is kept ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("table", ["usage", "usage_folded", "enforcement", "audit", "approvals", "decisions"])
def test_rows_of_record_are_append_only(book: Book, table: str) -> None:
    fill(book)
    assert book.reads(f"SELECT count(*) FROM {table}") != [(0,)]
    for sql in (f"UPDATE {table} SET ts_ns = 7", f"DELETE FROM {table}", f"TRUNCATE {table} CASCADE"):
        with Database(book.url).connect() as db, pytest.raises(psycopg.errors.IntegrityConstraintViolation) as caught:
            db.execute(sql.encode())
        assert "append-only" in str(caught.value)
    with Database(book.url).connect() as db, pytest.raises(psycopg.errors.IntegrityConstraintViolation):
        db.execute(b"UPDATE turn SET folded = 10")


def fill(book: Book) -> None:
    book.open(1, scope("bottle", "b1", of("claude", 500)))
    row = wire.Usage(
        "claude", "opus", "r", 100, cache_read=50, cache_write_5m=3, cache_write_1h=4, output=20, reasoning=5
    )
    book.ask(wire.Settle, book.reserve(1, 1, 1, "old").hold, usage(1, request_id="old"))
    assert book.store.fold(START.wall_ns * 2) == 0
    book.ask(wire.Settle, book.reserve(1, 1, 1, "k").hold, row)
    assert book.store.fold(START.wall_ns * 2) == 1
    book.reserve(1, 30, 10, "in flight")
    book.ask(wire.Enforced, 1, "b1", "run1", "cutoff", "budget", "bottle:b1", 11, "cut")
    book.ask(wire.Audit, 1000, "allow", "b1", {"rule": "x.example"})
    texts = ("b1", "run1", "secret", "x.example", "POST", "/", "rule", "body", "…")
    number = book.ask(wire.Proposed, *texts).value
    book.ask(wire.Decide, number, "approved", 0, "looked at")


def test_views_have_the_columns_of_a_files(book: Book, tmp_path: Path) -> None:
    fill(book)
    place = tmp_path / "file"
    place.mkdir()
    file = Book(place)
    fill(file)
    with book.reader() as ours, file.reader() as theirs:
        for view in (*PROMISED, "usage_counts_v", "usage_folded_v"):
            (have, *_), (want, *_) = (r.dicts(f"SELECT * FROM {view}", ()) for r in (ours, theirs))
            assert have.keys() - want.keys() <= {"machine"}, view
            same = want.keys() - {"decided", "ts"}
            assert {key: have[key] for key in same} == {key: want[key] for key in same} or view == "budget_v", view
            assert want.get("ts") == have.get("ts")
    file.store.close()


def test_reports_do_not_change_when_old_rows_become_sums(tmp_path: Path, postgres: Server) -> None:
    url = postgres.new()
    book = history(tmp_path, [0, 1, 2, 3, 30, 31, 32, 60, 61, 1000, 1001, 1002], url)

    def told() -> Any:
        with book.reader() as reader:
            assert reader.check() == []
            return {by: reader.usage(by) for by in BY} | {"budgets": reader.budgets()}

    before = told()
    limit = at(900).wall_ns
    assert book.store.fold(limit) == 12 and book.store.fold(limit) == 0
    assert told() == before
    assert book.reads("SELECT count(*) FROM usage") == [(3,)]
    book.store.close()


WRONG = [
    ("UPDATE totals SET used = used + 7 WHERE per = 'run' AND provider = '*' AND scope = 'bottle'", "its rows say 133"),
    ("UPDATE pools SET held = held + 7 WHERE provider = '*' AND scope = 'host'", "47 tokens are held of host host"),
    ("DROP TRIGGER audit_change ON audit", "trigger audit_change is missing"),
    ("ALTER TABLE audit DISABLE TRIGGER audit_change", "trigger audit_change is not as agentmon made it"),
    ("CREATE TABLE mine (x int)", "table mine does not belong to a ledger"),
    ("DROP VIEW budget_v", "view budget_v is missing"),
]


@pytest.mark.parametrize(("sql", "said"), WRONG)
def test_check_names_what_is_wrong(book: Book, sql: str, said: str) -> None:
    fill(book)
    assert book.problems() == []
    with Database(book.url).connect() as db:
        db.execute(sql.encode())
    assert any(said in problem for problem in book.problems()), book.problems()
