"""Rows of record stay as they were written: the file itself refuses to change, drop or replace them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apsw
import pytest

from agentmon import wire
from agentmon.ledger import migrations
from tests.support.ledger_book import Book
from tests.support.ledger_rig import budget as of
from tests.support.ledger_rig import scope


@pytest.fixture
def book(tmp_path: Path) -> Any:
    book = Book(tmp_path)
    yield book
    book.store.close()


def test_rows_of_record_are_append_only(book: Book) -> None:
    book.open(1, scope("bottle", "b1", of("claude", 1, shadow=True)))
    book.spend(1, 5, "a")
    book.ask(wire.Enforced, 1, "b1", "run1", "cutoff", "budget", "bottle:b1", 12_000_000, "cut")
    book.ask(wire.Audit, 0, "cut", "b1", {"all": False})
    db = apsw.Connection(book.path)
    for table, column in (("usage", "input"), ("enforcement", "result"), ("audit", "action")):
        assert db.execute(f"SELECT count(*) FROM {table}").get
        for sql in (f"UPDATE {table} SET {column} = 7", f"DELETE FROM {table}"):
            with pytest.raises(apsw.ConstraintError, match="append-only"):
                db.execute(sql)
    db.close()


COPIES = [
    ("usage", {}),
    ("usage", {"id": "NULL", "hold": "NULL"}),  # by the request's name
    ("usage", {"id": "NULL", "request_id": "'other'"}),  # by its hold
    ("enforcement", {}),
    ("audit", {}),
]


def replace_row(db: apsw.Connection, table: str, changed: dict[str, str]) -> None:
    columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
    values = ", ".join(changed.get(name, f'"{name}"') for name in columns)
    db.execute(f"INSERT OR REPLACE INTO {table} SELECT {values} FROM {table} WHERE id = 1")


@pytest.mark.parametrize(("table", "changed"), COPIES)
def test_rows_of_record_cannot_be_replaced(book: Book, table: str, changed: dict[str, str]) -> None:
    book.open(1, scope("bottle", "b1", of("claude", 1, shadow=True)))
    book.spend(1, 5, "a")
    book.ask(wire.Enforced, 1, "b1", "run1", "cutoff", "budget", "bottle:b1", 12_000_000, "cut")
    book.ask(wire.Audit, 0, "cut", "b1", {"all": False})
    db = apsw.Connection(book.path)
    before = db.execute(f"SELECT * FROM {table}").fetchall()
    with pytest.raises(apsw.ConstraintError, match="append-only"):
        replace_row(db, table, changed)
    assert db.execute(f"SELECT * FROM {table}").fetchall() == before != []
    db.close()


def test_a_ledger_of_the_first_version_gets_the_same_protection(tmp_path: Path) -> None:
    db = apsw.Connection(str(tmp_path / "old.db"))
    assert migrations.migrate(db, migrations.MIGRATIONS[:1]) == 1
    db.execute("INSERT INTO audit VALUES (1, 1, 0, 'cut', 'b1', '{}')")
    assert migrations.migrate(db) == migrations.MIGRATIONS[-1].version
    with pytest.raises(apsw.ConstraintError, match="append-only"):
        replace_row(db, "audit", {"action": "'resume'"})
    db.execute("INSERT INTO audit VALUES (NULL, 2, 0, 'cut', 'b1', '{}')")
    db.close()
