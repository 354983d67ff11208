"""Schema versions: integers, each migration in one transaction with its record.

A file of a newer version than this code knows is not touched: SchemaTooNew. To change the schema append to MIGRATIONS;
never edit what has been released.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw

from agentmon import errors
from agentmon.ledger.transaction import transaction

_SCHEMA, _RETENTION, _ESTIMATES, _SIZES, _APPROVALS = (  # now: the ledger may not read them later
    Path(__file__).with_name(name).read_text(encoding="utf-8")
    for name in ("schema.sql", "retention.sql", "estimates.sql", "sizes.sql", "approvals.sql")
)
APPLICATION_ID = 0x61676D6C  # "agml" in the file header, for file(1) and against a wrong path


class SchemaTooNew(errors.AgentmonError):
    """The file was written by a newer agentmon."""


class NotALedger(errors.AgentmonError):
    """The file is an SQLite database of something else."""


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    what: str
    apply: Callable[[apsw.Connection], Any]


def _first(db: apsw.Connection) -> None:
    db.execute(_SCHEMA)


_HAVE_KEY = {
    "usage": "id = NEW.id OR (provider = NEW.provider AND request_id = NEW.request_id) OR hold = NEW.hold",
    "enforcement": "id = NEW.id",
    "audit": "id = NEW.id",
}


def _no_replacing(db: apsw.Connection) -> None:
    """INSERT OR REPLACE deletes the row in its way without its DELETE trigger (unless PRAGMA recursive_triggers)."""
    for table, same in _HAVE_KEY.items():
        db.execute(
            f"CREATE TRIGGER {table}_replace BEFORE INSERT ON {table} WHEN EXISTS (SELECT 1 FROM {table} WHERE {same})"
            f" BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )


def _retention(db: apsw.Connection) -> None:
    db.execute(_RETENTION)


def _estimates(db: apsw.Connection) -> None:
    db.execute(_ESTIMATES)


def _sizes(db: apsw.Connection) -> None:
    db.execute(_SIZES)


def _approvals(db: apsw.Connection) -> None:
    db.execute(_APPROVALS)


MIGRATIONS: tuple[Migration, ...] = (
    Migration(1, "first schema", _first),
    Migration(2, "rows of record cannot be replaced", _no_replacing),
    Migration(3, "old usage is kept as sums", _retention),
    Migration(4, "estimates beside what was counted", _estimates),
    Migration(5, "sizes of answers", _sizes),
    Migration(6, "approvals and their decisions are rows of record", _approvals),
)


def version_of(db: apsw.Connection) -> int:
    """The schema version of an open file; 0 for an empty one.

    :raises NotALedger: it holds something else.
    """
    if not db.execute("SELECT count(*) FROM sqlite_schema").get:
        return 0
    if db.pragma("application_id") != APPLICATION_ID:
        raise NotALedger(
            f"{db.filename} is not a ledger of agentmon",
            "move it away, or name another file under `ledger:` in settings.yml",
        )
    return int(db.execute("SELECT coalesce(max(version), 0) FROM migrations").get)


def migrate(db: apsw.Connection, known: Sequence[Migration] = MIGRATIONS) -> int:
    """Bring the file to the newest known version; returns it. Nothing is written when it is there already.

    :raises SchemaTooNew: by a file of a later version. :raises NotALedger: see version_of().
    """
    have = version_of(db)
    newest = known[-1].version
    if have > newest:
        raise SchemaTooNew(
            f"{db.filename} has schema version {have}; this agentmon knows versions up to {newest}",
            "install the agentmon that wrote it, or a newer one",
        )
    for migration in known:
        if migration.version <= have:
            continue
        with transaction(db):
            if migration.version == 1:
                db.execute(
                    f"PRAGMA application_id = {APPLICATION_ID};"
                    "CREATE TABLE migrations"
                    " (version INTEGER PRIMARY KEY, what TEXT NOT NULL, applied_ns INTEGER NOT NULL)"
                )
            migration.apply(db)
            db.execute("INSERT INTO migrations VALUES (?, ?, ?)", (migration.version, migration.what, time.time_ns()))
    return newest
