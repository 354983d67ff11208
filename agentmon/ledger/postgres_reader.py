"""Reading a shared ledger: what reader.py does for a file. In the ledger's process only; commands ask that one.

Its `ledger check` compares with a schema that is made anew and rolled back, so that nothing is kept of it.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import psycopg

from agentmon.ledger import finding, postgres_migrations
from agentmon.ledger.finding import Finding
from agentmon.ledger.migrations import SchemaTooNew
from agentmon.ledger.postgres import Database, trouble
from agentmon.ledger.reading import Reading

_SCRATCH = "agentmon_check"
_OBJECTS = """
SELECT 'table ' || c.relname,
       string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relkind = 'r' AND c.relnamespace = %(schema)s::regnamespace GROUP BY 1
UNION ALL
SELECT 'view ' || c.relname, replace(pg_get_viewdef(c.oid), %(schema)s || '.', '')
FROM pg_class c WHERE c.relkind = 'v' AND c.relnamespace = %(schema)s::regnamespace
UNION ALL
SELECT 'index ' || c.relname, replace(pg_get_indexdef(c.oid), %(schema)s || '.', '')
FROM pg_class c WHERE c.relkind = 'i' AND c.relnamespace = %(schema)s::regnamespace
UNION ALL
SELECT 'trigger ' || t.tgname, t.tgenabled::text || replace(pg_get_triggerdef(t.oid), %(schema)s || '.', '')
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
WHERE NOT t.tgisinternal AND c.relnamespace = %(schema)s::regnamespace
UNION ALL
SELECT 'function ' || p.proname, p.prosrc FROM pg_proc p WHERE p.pronamespace = %(schema)s::regnamespace
"""
_POOLS = """
WITH own AS (
    SELECT h.provider, s.scope, s.name, r.run, greatest(h.tokens, h.progress) AS held, h.progress,
           greatest(0, h."full" - greatest(h.tokens, h.progress)) AS exposed
    FROM holds h JOIN runs r ON r.id = h.run_id JOIN run_scopes s ON s.run_id = h.run_id),
each AS (SELECT * FROM own UNION ALL SELECT '*', scope, name, run, held, progress, exposed FROM own),
said AS (SELECT scope, name, provider, run, held, progress, exposed FROM each
         UNION ALL SELECT scope, name, provider, '', held, progress, exposed FROM each),
summed AS (SELECT scope, name, provider, run, sum(held) AS held, sum(progress) AS progress, sum(exposed) AS exposed
           FROM said GROUP BY 1, 2, 3, 4)
SELECT scope, name, provider, run, coalesce(p.held, 0), coalesce(s.held, 0)
FROM summed s FULL OUTER JOIN pools p USING (scope, name, provider, run)
WHERE (coalesce(p.held, 0), coalesce(p.progress, 0), coalesce(p.exposed, 0))
    <> (coalesce(s.held, 0), coalesce(s.progress, 0), coalesce(s.exposed, 0))"""


class SharedReader(Reading):
    """A session that only reads.

    :param host: whose holds may be looked at as processes; "" none.
    :raises LedgerTrouble: no connection. :raises SchemaTooNew: of another version.
    """

    def __init__(self, database: Database, host: str = "") -> None:
        self._database = database
        self._host = host
        try:
            self._db = database.connect()
            self._db.execute(b"SET default_transaction_isolation TO 'repeatable read'")
            self._db.execute(b"SET idle_in_transaction_session_timeout TO '60s'")
            self._db.execute(b"SET statement_timeout TO '10min'")  # `ledger check` reads everything
            have = postgres_migrations.version_of(self._db)
        except psycopg.Error as e:
            raise trouble(database, e) from e
        newest = postgres_migrations.MIGRATIONS[-1].version
        if have != newest:
            self._db.close()
            raise SchemaTooNew(
                f"{database.place} has schema version {have}, this agentmon reads {newest}",
                "let the same version's daemon and command line work on it",
            )

    def close(self) -> None:
        self._db.close()

    def findings(self) -> list[Finding]:
        found: list[Finding] = []
        try:
            for check in (
                self._schema,
                self._references,
                self._folded,
                self._totals,
                self._pools,
                self._holds,
                self._hosts,
            ):
                found.append(check())
        except psycopg.Error as e:
            found.append(Finding("the database", 1, (trouble(self._database, e).message,)))
        return found

    def _schema(self) -> Finding:
        have = self._objects(postgres_migrations.SCHEMA)
        with self._db.transaction(force_rollback=True):
            self._db.execute(f"CREATE SCHEMA {_SCRATCH}".encode())
            self._db.execute(f"SET LOCAL search_path TO {_SCRATCH}".encode())
            postgres_migrations.migrate(self._db)
            want = self._objects(_SCRATCH)
        wrong = [f"{name} is missing" for name in want.keys() - have.keys()]
        wrong += [f"{name} does not belong to a ledger" for name in have.keys() - want.keys()]
        wrong += [
            f"{name} is not as agentmon made it" for name in want.keys() & have.keys() if want[name] != have[name]
        ]
        return Finding("tables, views, triggers", len(have), tuple(sorted(wrong)))

    def _objects(self, schema: str) -> dict[str, str]:
        return {str(name): str(text) for name, text in self._db.execute(_OBJECTS.encode(), {"schema": schema})}

    def _references(self) -> Finding:
        """The server holds them by foreign keys; these are counted so that it is said."""
        sql = b"SELECT count(*), count(*) FILTER (WHERE r.id IS NULL) FROM usage u LEFT JOIN runs r ON r.id = u.run_id"
        count, lost = self._db.execute(sql).fetchone() or (0, 0)
        return Finding(
            "usage rows and their runs", count, (f"{lost} rows of usage name a missing run",) if lost else ()
        )

    def _folded(self) -> Finding:
        sql = b"""SELECT (SELECT count(*) FROM usage_folded), (SELECT coalesce(max(upto), 0) FROM usage_folded), folded,
                  (SELECT count(*) FROM usage WHERE id <= folded) FROM turn"""
        found = self._db.execute(sql).fetchone()
        if found is None:
            return Finding("sums of old usage", 0, ("the row of table turn is missing",))
        count, upto, folded, both = found
        wrong = [] if upto == folded else [f"usage is folded up to row {upto}, turn says {folded}"]
        wrong += [f"{both} rows of usage are counted in sums too"] if both else []
        return Finding("sums of old usage", count, tuple(wrong))

    def _totals(self) -> Finding:
        return finding.totals(self._db.execute(finding.SUMS.encode()))

    def _pools(self) -> Finding:
        """What is held of each budget is what its holds say."""
        (count,) = self._db.execute(b"SELECT count(*) FROM pools").fetchone() or (0,)
        wrong = [
            f"{held} tokens are held of {scope} {name}, {provider}{', run ' + run if run else ''}, its holds say {said}"
            for scope, name, provider, run, held, said in self._db.execute(_POOLS.encode())
        ]
        return Finding("what is held against the holds", count, tuple(sorted(wrong)))

    def _holds(self) -> Finding:
        sql = b"""SELECT h.id, r.run, r.closed_ns IS NULL, h.boot, h.pid, h.start
                  FROM holds h JOIN runs r ON r.id = h.run_id WHERE h.host = %s ORDER BY h.id"""
        return finding.holds(self._db.execute(sql, (self._host,)))

    def _hosts(self) -> Finding:
        """Windows begin by each host's own clock and zone: hosts of one budget should agree."""
        found = self._db.execute(b"""SELECT name, zone, count(h.id), hosts.seen < now() - interval '10 minutes'
            FROM hosts LEFT JOIN holds h ON h.host = hosts.id GROUP BY hosts.id ORDER BY name""").fetchall()
        zones = sorted({zone for _, zone, _, _ in found})
        notes = [f"hosts differ in their time zone: {', '.join(zones)}"] if len(zones) > 1 else []
        notes += [
            f"{name} has not been heard of for ten minutes; {count} holds of it are charged by the others in time"
            for name, _, count, gone in found if gone and count
        ]  # fmt: skip
        return Finding("hosts", len(found), (), tuple(notes))

    def dicts(self, sql: str, values: tuple[Any, ...]) -> list[dict[str, Any]]:
        try:
            with self._db.transaction():
                self._db.execute(b"SET TRANSACTION READ ONLY")
                cursor = self._db.execute(sql.replace("?", "%s").encode(), values)
                names = [column.name for column in cursor.description or ()]
                return [dict(zip(names, map(_plain, row), strict=True)) for row in cursor]
        except psycopg.Error as e:
            raise trouble(self._database, e) from e


def _plain(value: Any) -> Any:
    """Sums of integers come as decimals."""
    return int(value) if isinstance(value, Decimal) else value
