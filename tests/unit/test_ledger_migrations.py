"""A migration that is killed has not happened; a file of every released version becomes one of today."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from agentmon import wire
from agentmon.ledger import migrations
from agentmon.ledger.reader import Reader
from tests.support.ledger_book import Book
from tests.support.ledger_rig import ROOT

NEWEST = migrations.MIGRATIONS[-1].version
WHOLE = "SELECT type, name, sql FROM sqlite_schema ORDER BY 1, 2"


def old_file(path: Path, version: int) -> str:
    """A file as that version left it, with one run and two rows."""
    db = apsw.Connection(str(path / "ledger.db"))
    migrations.migrate(db, migrations.MIGRATIONS[:version])
    db.execute(
        """INSERT INTO runs VALUES (1, 'old', 1, 'b1', '', '{}', 1, NULL);
           INSERT INTO run_scopes VALUES (1, 0, 'bottle', 'b1'), (1, 1, 'host', 'host');
           CREATE TEMP TABLE one (ts_ns, hold, request_id, input);
           INSERT INTO one VALUES (1, 1, 'r1', 5), (2, 2, 'r2', 6);
           INSERT INTO usage (ts_ns, run_id, hold, provider, model, request_id, input, cache_read, cache_write_5m,
                              cache_write_1h, output, reasoning, weighted, source, complete, raw)
           SELECT ts_ns, 1, hold, 'claude', 'm', request_id, input, 0, 0, 0, 0, 0, input, 'wire', 1, x'' FROM one"""
    )
    for scope in ("bottle", "host"):
        for provider in ("claude", "*"):
            for per in ("run", "hour", "day", "week", "month"):
                window = "old" if per == "run" else "w"
                name = "b1" if scope == "bottle" else "host"
                db.execute("INSERT INTO totals VALUES (?, ?, ?, ?, ?, 11)", (scope, name, provider, per, window))
    db.close()
    return str(path / "ledger.db")


@pytest.mark.parametrize("version", range(1, NEWEST + 1))
def test_a_file_of_each_version_goes_on(tmp_path: Path, version: int) -> None:
    old_file(tmp_path, version)
    book = Book(tmp_path)
    assert book.spend(1, 7, "r3").duplicate is False
    assert book.spend(1, 6, "r2").duplicate  # the same answer, told again
    book.store.close()
    with Reader(book.path) as reader:
        assert reader.check() == []
        assert [(row["request_id"], row["weighted"]) for row in reader.rows()] == [("r1", 5), ("r2", 6), ("r3", 7)]


@pytest.mark.parametrize("version", range(NEWEST))
def test_killed_in_the_middle(tmp_path: Path, version: int) -> None:
    """SIGKILL between a migration's last statement and its record."""
    path = old_file(tmp_path, version) if version else str(tmp_path / "ledger.db")
    db = apsw.Connection(path)
    before = db.execute(WHOLE).fetchall()
    db.close()
    code = f"""
import os, signal
import apsw
from agentmon.ledger import migrations
db = apsw.Connection({path!r})
db.pragma("journal_mode", "wal")
next = migrations.MIGRATIONS[{version}]
def apply(db):
    next.apply(db)
    assert db.execute({WHOLE!r}).fetchall() != {before!r}
    os.kill(os.getpid(), signal.SIGKILL)
migrations.migrate(db, [*migrations.MIGRATIONS[:{version}], migrations.Migration(next.version, next.what, apply)])
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    db = apsw.Connection(path)
    assert migrations.version_of(db) == version
    assert db.execute(WHOLE).fetchall() == before
    assert migrations.migrate(db) == NEWEST
    db.close()


def test_a_newer_file_is_a_clear_error_for_the_writer_too(tmp_path: Path) -> None:
    path = old_file(tmp_path, NEWEST)
    db = apsw.Connection(path)
    db.execute("INSERT INTO migrations VALUES (?, 'later', 0)", (NEWEST + 1,))
    db.close()
    book = Book(tmp_path)
    with pytest.raises(migrations.SchemaTooNew, match=f"version {NEWEST + 1}; this agentmon knows") as caught:
        book.ask(wire.Totals, 1)
    assert "newer" in caught.value.hint
