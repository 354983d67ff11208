"""`ledger check`: what the file says against itself. Read-only, also while the ledger writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import apsw

from agentmon.ledger import migrations
from agentmon.ledger.owner import alive
from agentmon.ledger.state import Owner

_SUMS = """
WITH rows AS (
    SELECT run_id, provider, sum(weighted) AS used FROM usage GROUP BY 1, 2
    UNION ALL SELECT run_id, provider, sum(weighted) FROM usage_folded GROUP BY 1, 2),
charged AS (
    SELECT s.scope, s.name, r.run, rows.provider, rows.used
    FROM rows JOIN runs r ON r.id = rows.run_id JOIN run_scopes s ON s.run_id = rows.run_id),
each AS (SELECT * FROM charged UNION ALL SELECT scope, name, run, '*', used FROM charged),
periods (per) AS (VALUES ('run'), ('hour'), ('day'), ('week'), ('month')),
said AS (
    SELECT scope, name, provider, per, iif(per = 'run', run, '') AS run, sum(used) AS used
    FROM each, periods GROUP BY 1, 2, 3, 4, 5),
kept AS (
    SELECT scope, name, provider, per, iif(per = 'run', "window", '') AS run, sum(used) AS used
    FROM totals GROUP BY 1, 2, 3, 4, 5)
SELECT scope, name, provider, per, run, coalesce(kept.used, 0) AS total, coalesce(said.used, 0) AS rows
FROM said FULL OUTER JOIN kept USING (scope, name, provider, per, run)"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `notes` are not wrong, but worth knowing."""

    what: str
    count: int
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


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
    """Each run's totals equal its rows; of the other windows the sum over all of them does, in whatever time zone."""
    count, wrong = 0, []
    for scope, name, provider, per, run, total, rows in db.execute(_SUMS):
        count += 1
        if total == rows:
            continue
        if per == "run":
            wrong.append(f"total of {scope} {name}, {provider}, run {run} is {total}, its rows say {rows}")
        else:
            wrong.append(f"totals of {scope} {name}, {provider}, per {per} add up to {total}, their rows to {rows}")
    return Finding("totals against their rows", count, tuple(sorted(wrong)))


def _holds(db: apsw.Connection) -> Finding:
    sql = """SELECT h.id, r.run, r.closed_ns IS NULL, h.boot, h.pid, h.start
             FROM holds h LEFT JOIN runs r ON r.id = h.run_id ORDER BY h.id"""
    wrong, notes, count = [], [], 0
    for hold, run, is_open, boot, pid, start in db.execute(sql):
        count += 1
        if not is_open:
            wrong.append(f"hold {hold} belongs to run {run}, which has ended")
        elif not alive(Owner(str(boot), int(str(pid)), int(str(start)))):
            notes.append(f"hold {hold} of run {run}: process {pid} has ended; a running ledger charges its estimate")
    return Finding("holds and their owners", count, tuple(wrong), tuple(notes))


_CHECKS: tuple[Callable[[apsw.Connection], Finding], ...] = (
    _structure, _schema, _references, _folded, _totals, _holds,
)  # fmt: skip
