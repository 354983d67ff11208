"""Reading the ledger's file without the ledger: reports, the command line, anybody with permission. Never writes.

Every method is one short read transaction, so that the writer's log can be checkpointed. The file's directory is 0700:
root reads it, or user agentmon-ledger.
"""

from __future__ import annotations

from typing import Any

import apsw

from agentmon import errors
from agentmon.ledger import migrations
from agentmon.ledger.store import LedgerTrouble, trouble

BY = ("bottle", "agent", "provider", "model", "day")

_COUNTS = """count(*) - coalesce(sum(source = 'reconciled'), 0) AS requests, sum(input) AS input,
    sum(cache_read) AS cache_read, sum(cache_write) AS cache_write, sum(output) AS output, sum(reasoning) AS reasoning,
    sum(weighted) AS weighted, sum(source = 'estimate') AS estimated, sum(NOT complete) AS incomplete"""


class Reader:
    """A read-only connection; a context manager.

    :raises LedgerTrouble: no such file, no permission, damaged. :raises migrations.SchemaTooNew: of a newer agentmon.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._db = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
            self._db.set_busy_timeout(1000)
            have = migrations.version_of(self._db)
        except apsw.CantOpenError as e:
            hint = "the ledger is written by agentmon daemon, read by root"
            raise LedgerTrouble(f"{path}: cannot be read ({e})", hint) from e
        except apsw.Error as e:
            raise trouble(path, e) from e
        if have != migrations.MIGRATIONS[-1].version:
            self._db.close()
            raise migrations.SchemaTooNew(
                f"{path} has schema version {have}, this agentmon reads {migrations.MIGRATIONS[-1].version}",
                "let the same version's daemon and command line work on it",
            )

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def usage(self, by: str = "bottle", *, since_ns: int = 0, bottle: str = "") -> list[dict[str, Any]]:
        """Sums of usage_v: {<by>, requests, input, cache_read, cache_write, output, reasoning, weighted, estimated, …}.

        :param by: bottle | agent | provider | model | day (of the host's time zone).
        :raises errors.BadInput: another `by`.
        """
        if by not in BY:
            raise errors.BadInput(f"usage --by {by!r}: not one of {', '.join(BY)}", "agentmon usage --by bottle")
        column = "date(ts_ns / 1000000000, 'unixepoch', 'localtime')" if by == "day" else by
        return self._dicts(
            f"""SELECT {column} AS "{by}", {_COUNTS} FROM usage_v
                WHERE ts_ns >= ? AND (? = '' OR bottle = ?) GROUP BY 1 ORDER BY 1""",
            (since_ns, bottle, bottle),
        )

    def usage_of_run(self, run: str) -> dict[str, dict[str, Any]]:
        """The same sums for one run, by provider."""
        lines = self._dicts(f"SELECT provider, {_COUNTS} FROM usage_v WHERE run = ? GROUP BY 1", (run,))
        return {line.pop("provider"): line for line in lines}

    def rows(self, *, since_ns: int = 0, bottle: str = "", limit: int = -1) -> list[dict[str, Any]]:
        """Rows of usage_v, oldest first."""
        return self._dicts(
            "SELECT * FROM usage_v WHERE ts_ns >= ? AND (? = '' OR bottle = ?) ORDER BY id LIMIT ?",
            (since_ns, bottle, bottle, limit),
        )

    def budgets(self) -> list[dict[str, Any]]:
        """budget_v: shared scopes and running bottles, in their current windows."""
        return self._dicts("SELECT * FROM budget_v ORDER BY scope, name, provider, per, run", ())

    def scopes(self) -> dict[str, list[tuple[str, str]]]:
        """Run → its scopes, most specific first, of the runs that are open."""
        found: dict[str, list[tuple[str, str]]] = {}
        for line in self._dicts(
            """SELECT r.run, s.scope, s.name FROM runs r JOIN run_scopes s ON s.run_id = r.id
               WHERE r.closed_ns IS NULL ORDER BY r.id, s.position""",
            (),
        ):
            found.setdefault(line["run"], []).append((line["scope"], line["name"]))
        return found

    def enforcement(self, *, since_ns: int = 0, bottle: str = "") -> list[dict[str, Any]]:
        sql = "SELECT * FROM enforcement_v WHERE ts_ns >= ? AND (? = '' OR bottle = ?) ORDER BY id"
        return self._dicts(sql, (since_ns, bottle, bottle))

    def audit(self, *, since_ns: int = 0) -> list[dict[str, Any]]:
        return self._dicts("SELECT * FROM audit_v WHERE ts_ns >= ? ORDER BY id", (since_ns,))

    def check(self) -> list[str]:
        """What is wrong with the file, empty for nothing: SQLite's own check, then every total against its rows."""
        try:
            found = [str(line) for (line,) in self._db.execute("PRAGMA integrity_check") if line != "ok"]
        except apsw.Error as e:
            return [trouble(self.path, e).message]
        sums = """WITH summed AS (
            SELECT s.scope, s.name, u.provider, r.run, sum(u.weighted) AS used
            FROM usage u JOIN runs r ON r.id = u.run_id JOIN run_scopes s ON s.run_id = r.id GROUP BY 1, 2, 3, 4)
            SELECT summed.scope, summed.name, summed.provider, run, summed.used AS rows, coalesce(t.used, 0) AS total
            FROM summed LEFT JOIN totals t ON (t.scope, t.name, t.provider, t.per, t."window")
                = (summed.scope, summed.name, summed.provider, 'run', summed.run)
            WHERE rows <> total"""
        for line in self._dicts(sums, ()):
            where = f"{line['scope']} {line['name']}, {line['provider']}, run {line['run']}"
            found.append(f"total of {where} is {line['total']}, its rows say {line['rows']}")
        return found

    def backup(self, to: str) -> None:
        """A consistent copy, also while the ledger writes.

        :raises LedgerTrouble: `to` cannot be written.
        """
        try:
            with apsw.Connection(to) as copy, copy.backup("main", self._db, "main") as job:
                job.step()
        except apsw.Error as e:
            raise trouble(to, e) from e

    def _dicts(self, sql: str, values: tuple[Any, ...]) -> list[dict[str, Any]]:
        try:
            cursor = self._db.execute(sql, values)
            return [dict(zip((d[0] for d in cursor.description), row, strict=True)) for row in cursor]
        except apsw.Error as e:
            raise trouble(self.path, e) from e
