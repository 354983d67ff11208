"""`ledger check`: what the file says against itself. Read-only, also while the ledger writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import apsw

from agentmon.ledger import migrations
from agentmon.ledger.finding import SUMS, Finding, holds, totals

__all__ = ["Finding", "findings"]


def findings(db: apsw.Connection) -> Iterator[Finding]:
    """Each check is one statement, so that a writer at work cannot make two halves of it disagree.

    :raises apsw.Error: the file is too damaged to be looked at.
    """
    for check in _CHECKS:
        yield check(db)


def _structure(db: apsw.Connection) -> Finding:
    found = [str(line) for (line,) in db.execute("PRAGMA integrity_check") if line != "ok"]
    return Finding("pages of the file", int(db.pragma("page_count")), tuple(found))


def _schema(db: apsw.Connection) -> Finding:
    """Views and append-only triggers are as this version makes them."""
    fresh = apsw.Connection(":memory:")
    try:
        migrations.migrate(fresh)
        want, have = _objects(fresh), _objects(db)
    finally:
        fresh.close()
    wrong = [f"{kind} {name} is missing" for kind, name in want.keys() - have.keys()]
    wrong += [f"{kind} {name} does not belong to a ledger" for kind, name in have.keys() - want.keys()]
    changed = (key for key in want.keys() & have.keys() if want[key] != have[key])
    wrong += [f"{kind} {name} is not as agentmon made it" for kind, name in changed]
    return Finding("tables, views, triggers", len(have), tuple(sorted(wrong)))


def _objects(db: apsw.Connection) -> dict[tuple[str, str], str]:
    """SQLite's own tables (sqlite_stat1 …) are left out."""
    sql = r"SELECT type, name, coalesce(sql, '') FROM sqlite_schema WHERE name NOT LIKE 'sqlite\_%' ESCAPE '\'"
    return {(str(kind), str(name)): str(text) for kind, name, text in db.execute(sql)}


def _references(db: apsw.Connection) -> Finding:
    broken: Any = db.execute("PRAGMA foreign_key_check")
    wrong = tuple(f"row {row} of {table} names a missing row of {to}" for table, row, to, _ in broken)
    return Finding("usage rows and their runs", int(db.execute("SELECT count(*) FROM usage").get), wrong)


def _folded(db: apsw.Connection) -> Finding:
    sql = """SELECT (SELECT count(*) FROM usage_folded), (SELECT coalesce(max(upto), 0) FROM usage_folded), m.value,
             (SELECT count(*) FROM usage WHERE id <= m.value) FROM meta m WHERE m.name = 'folded'"""
    found: Any = db.execute(sql).fetchone()
    if found is None:
        return Finding("sums of old usage", 0, ("meta does not say how far usage was folded",))
    count, upto, folded, both = found
    wrong = [] if upto == folded else [f"usage is folded up to row {upto}, meta says {folded}"]
    wrong += [f"{both} rows of usage are counted in sums too"] if both else []
    return Finding("sums of old usage", count, tuple(wrong))


def _totals(db: apsw.Connection) -> Finding:
    return totals(db.execute(SUMS))


def _holds(db: apsw.Connection) -> Finding:
    sql = """SELECT h.id, r.run, r.closed_ns IS NULL, h.boot, h.pid, h.start
             FROM holds h LEFT JOIN runs r ON r.id = h.run_id ORDER BY h.id"""
    return holds(db.execute(sql))


_CHECKS: tuple[Callable[[apsw.Connection], Finding], ...] = (
    _structure, _schema, _references, _folded, _totals, _holds,
)  # fmt: skip
