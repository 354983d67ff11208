"""Schema versions of a shared ledger: the same integers as the file's, each in one transaction with its record.

A migration of migrations.py has one of the same number here (a test says when it is missing). Hosts that start together
wait for each other; a database of a newer agentmon is not touched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentmon.ledger.migrations import APPLICATION_ID, NotALedger, SchemaTooNew

if TYPE_CHECKING:
    import psycopg

SCHEMA = "agentmon"
_FIRST = Path(__file__).with_name("postgres.sql").read_text(encoding="utf-8")  # now: the ledger may not read it later


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    what: str
    apply: Callable[[psycopg.Connection[Any]], Any]


MIGRATIONS: tuple[Migration, ...] = (
    Migration(6, "first schema of a shared ledger", lambda db: db.execute(_FIRST.encode())),
)


def version_of(db: psycopg.Connection[Any]) -> int:
    """The schema version of the database; 0 where there is no ledger yet.

    :raises NotALedger: its schema `agentmon` is something else. :raises psycopg.Error: it cannot be read.
    """
    tables = """SELECT count(*), count(*) FILTER (WHERE c.relname = 'migrations') FROM pg_class c
                JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = current_schema()"""
    objects, ours = db.execute(tables.encode()).fetchone() or (0, 0)
    if not objects:
        return 0
    if not ours:
        raise NotALedger(
            f"schema {SCHEMA} of database {db.info.dbname} is not a ledger of agentmon",
            "name another database under `ledger:` in settings.yml",
        )
    (version,) = db.execute(b"SELECT coalesce(max(version), 0) FROM migrations").fetchone() or (0,)
    return int(version)


def migrate(db: psycopg.Connection[Any], known: Sequence[Migration] = MIGRATIONS) -> int:
    """Bring the database to the newest known version; returns it. Needs a connection in autocommit whose search_path
    is the schema.

    :raises SchemaTooNew: a later version wrote it. :raises NotALedger: see version_of(). :raises psycopg.Error: the
        database refuses; the version is as before.
    """
    newest = known[-1].version
    with db.transaction():
        db.execute(b"SELECT pg_advisory_xact_lock(%s)", (APPLICATION_ID,))
        if not (db.execute(b"SELECT current_schema()").fetchone() or (None,))[0]:
            db.execute(f"CREATE SCHEMA {SCHEMA}".encode())
        have = version_of(db)
    if have > newest:
        raise SchemaTooNew(
            f"database {db.info.dbname} has schema version {have}; this agentmon knows versions up to {newest}",
            "install the agentmon of the host that wrote it: all hosts of a ledger have the same version",
        )
    for migration in known:
        with db.transaction():
            db.execute(b"SELECT pg_advisory_xact_lock(%s)", (APPLICATION_ID,))
            if version_of(db) >= migration.version:
                continue
            db.execute(
                b"CREATE TABLE IF NOT EXISTS migrations"
                b" (version BIGINT PRIMARY KEY, what TEXT NOT NULL, applied_ns BIGINT NOT NULL)"
            )
            migration.apply(db)
            row = (migration.version, migration.what, time.time_ns())
            db.execute(b"INSERT INTO migrations VALUES (%s, %s, %s)", row)
    return newest
