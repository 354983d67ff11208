"""`ledger check`: what is wrong is found and named; what is in order stays silent. `ledger export`: every row, once."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from agentmon import wire
from agentmon.ledger import reading
from agentmon.ledger.owner import boot_id, owner_of
from agentmon.ledger.reader import Reader
from agentmon.ledger.state import Owner
from tests.support.ledger_book import Book
from tests.support.ledger_rig import ROOT, scope
from tests.support.ledger_rig import budget as of


@pytest.fixture
def book(tmp_path: Path) -> Book:
    """A ledger where the command line looks for it: two runs, five rows, one hold of this process."""
    place = tmp_path / "var/lib/agentmon/ledger"
    place.mkdir(parents=True)
    book = Book(place)
    book.open(1, scope("bottle", "b1", of("claude", 500)), scope("parent", "team", of("*", 900, "day")))
    book.open(2, scope("parent", "team"))
    for n in range(5):
        book.spend(1 + n % 2, 10 + n, f"r{n}", ("claude", "codex")[n % 2])
    book.reserve(1, 5, 5, "in flight", owner=owner_of(os.getpid()))
    book.ask(wire.Audit, 0, "cut", "b1", {"why": 'a "quoted", word'})
    book.store.close()
    return book


def command(tmp_path: Path, *args: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "AGENTMON_ROOT": str(tmp_path), "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "agentmon.cli", "ledger", *args]
    return subprocess.run(argv, capture_output=True, env=environment, check=False)


def problems(book: Book) -> list[str]:
    with Reader(book.path) as reader:
        return reader.check()


def test_a_ledger_in_order_says_what_was_looked_at(book: Book, tmp_path: Path) -> None:
    done = command(tmp_path, "check")
    assert done.returncode == 0, done.stderr
    assert [line.partition(" (")[0] for line in done.stdout.decode().splitlines()] == [
        "pages of the file", "tables, views, triggers", "usage rows and their runs", "sums of old usage",
        "totals against their rows", "holds and their owners", "the ledger is in order",
    ]  # fmt: skip
    told = json.loads(command(tmp_path, "check", "--json").stdout)
    counts = {entry["what"]: entry["count"] for entry in told["checked"]}
    assert (told["ok"], told["problems"], told["notes"]) == (True, [], [])
    assert counts["usage rows and their runs"] == 5 and counts["holds and their owners"] == 1


WRONG = [
    (
        """UPDATE totals SET used = 7 WHERE (scope, provider, per) = ('parent', '*', 'run') AND "window" = 'run1'""",
        "total of parent team, *, run run1 is 7, its rows say 36",
    ),
    (
        "UPDATE totals SET used = used + 1 WHERE (scope, provider, per) = ('parent', 'codex', 'month')",
        "totals of parent team, codex, per month add up to 25, their rows to 24",
    ),
    ("DELETE FROM totals WHERE (scope, provider, per) = ('bottle', 'claude', 'week')", "per week add up to 0, their"),
    ("INSERT INTO totals VALUES ('host', 'host', 'gemini', 'run', 'run9', 3)", "run run9 is 3, its rows say 0"),
    ("DROP TRIGGER audit_delete", "trigger audit_delete is missing"),
    ("CREATE TRIGGER t AFTER INSERT ON usage BEGIN SELECT 1; END", "trigger t does not belong to a ledger"),
    ("DROP VIEW audit_v; CREATE VIEW audit_v AS SELECT 1", "view audit_v is not as agentmon made it"),
    ("UPDATE runs SET closed_ns = 5 WHERE run = 'run1'", "belongs to run run1, which has ended"),
    ("PRAGMA foreign_keys = OFF; DELETE FROM runs WHERE run = 'run2'", "of usage names a missing row of runs"),
]


@pytest.mark.parametrize(("sql", "said"), WRONG)
def test_what_is_wrong_is_named(book: Book, sql: str, said: str) -> None:
    db = apsw.Connection(book.path)
    db.execute(sql)
    db.close()
    assert any(said in problem for problem in problems(book)), problems(book)


def test_a_damaged_ledger_is_exit_status_1(book: Book, tmp_path: Path) -> None:
    sql, said = WRONG[0]
    db = apsw.Connection(book.path)
    db.execute(sql)
    db.close()
    done = command(tmp_path, "check")
    assert done.returncode == 1 and said in done.stdout.decode() and b"the ledger is damaged" in done.stdout
    assert json.loads(command(tmp_path, "check", "--json").stdout)["problems"] == [said]


def test_a_hold_without_its_process_is_a_note(book: Book) -> None:
    db = apsw.Connection(book.path)
    db.execute("UPDATE holds SET start = start + 1")
    db.close()
    with Reader(book.path) as reader:
        (note,) = (note for finding in reader.findings() for note in finding.notes)
        assert f"process {os.getpid()} has ended" in note and reader.check() == []
    assert Owner(boot_id(), os.getpid(), 0) != owner_of(os.getpid())


def test_rows_are_exported_once_each_as_json_lines_and_as_csv(
    book: Book, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Reader(book.path) as reader:
        rows = reader.rows()
        monkeypatch.setattr(reading, "_CHUNK", 2)
        assert list(reader.export("usage")) == rows and len(rows) == 5
        later = rows[0]["ts_ns"] + 1
        assert list(reader.export("usage", since_ns=later)) == [row for row in rows if row["ts_ns"] >= later]
    done = command(tmp_path, "export")
    assert [json.loads(line) for line in done.stdout.splitlines()] == rows
    parsed = list(
        csv.DictReader(io.StringIO(command(tmp_path, "export", "usage", "--csv").stdout.decode(), newline=""))
    )
    assert parsed == [{key: str(value) for key, value in row.items()} for row in rows]
    (audit,) = csv.DictReader(io.StringIO(command(tmp_path, "export", "audit", "--csv").stdout.decode(), newline=""))
    assert json.loads(audit["detail"]) == {"why": 'a "quoted", word'}
    assert command(tmp_path, "export", "enforcement", "--csv").stdout == b""
    assert command(tmp_path, "export", "audit", "--since", "1h").stdout == b""  # it is of the test's own past


def test_what_cannot_be_exported(book: Book, tmp_path: Path) -> None:
    both = command(tmp_path, "export", "--csv", "--json")
    assert both.returncode == 2 and b"choose one" in both.stderr
    nothing = command(tmp_path, "export", "dreams")
    assert nothing.returncode == 2 and b"hint: " in nothing.stderr
    none = command(tmp_path / "elsewhere", "export")
    assert none.returncode == 1 and none.stderr.startswith(b"error: ") and b"hint: " in none.stderr
